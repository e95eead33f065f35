"""Disks that are full and folders that nobody may write to, as the system itself makes them."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def full_disk(file_bytes: int = 100) -> Iterator[None]:
    """Inside, no file of this process can grow beyond so many bytes: writes fail half-way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Inside, this process cannot write into a folder. What it needs must be imported before."""
    above = [path for path in folder.parents if path.stat().st_uid == os.geteuid() and path != path.parent]
    modes = {path: path.stat().st_mode & 0o7777 for path in (folder, *above)}
    user = os.geteuid()
    for path in above:
        path.chmod(modes[path] | 0o011)
    folder.chmod(0o555)
    if user == 0:  # whom no mode stops
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(user)
        for path, mode in modes.items():
            path.chmod(mode)
