"""Gaussian splats as data: what they are in memory, and reading and writing their files."""

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import FormatError
from ..files import storage_error
from . import formats, spherical_harmonics
from .formats.source import FOLDER_FILE, open_source
from .gaussians import GaussianSplats

__all__ = ["GaussianSplats", "LoadedSplats", "formats", "load", "read", "save", "spherical_harmonics"]

log = logging.getLogger("invert3d")


class LoadedSplats(NamedTuple):
    """What a splat file holds.

    splats: in the frame of the file, on the CPU. remarks: what was left out or taken otherwise, in words.
    format: a name in `formats.FORMATS`.
    """

    splats: GaussianSplats
    remarks: list[str]
    format: str


def load(
    path_or_bytes: str | os.PathLike[str] | bytes | bytearray | memoryview,
    format: str = "auto",
) -> GaussianSplats:
    """Read a splat file, on disk or in memory, whole or not at all.

    path_or_bytes: a file's path or its contents; also the path of a folder that is an unbundled .sog, or of its
        meta.json.
    format: "auto" goes by the contents, never by the name; else a name in `formats.FORMATS`, which the contents must
        not contradict. Only a .splat has no header: it is known by its size and values, and where they are too odd for
        that, by its extension.
    A few unusable splats (NaN, infinite) are dropped with a warning in the log; more than a tenth of them is an error.

    Returns activated splats in the frame of the file, on the CPU.
    Raises FormatError, naming the file and the cause, for anything that is not a whole, supported splat file. What a
    file claims to hold is compared with its size before memory is taken for it.
    """
    return read(path_or_bytes, format).splats


def read(
    path_or_bytes: str | os.PathLike[str] | bytes | bytearray | memoryview,
    format: str = "auto",
) -> LoadedSplats:
    """As `load`, with what its reader has to say."""
    with open_source(path_or_bytes) as source:
        form = formats.for_reading(source, format)
        return LoadedSplats(form.read(source), source.remarks, form.name)


def save(
    splats: GaussianSplats,
    path: str | os.PathLike[str],
    format: str | None = None,
    **options: Any,
) -> list[str]:
    """Write a splat file, whole or not at all: a file that was there is replaced only by a complete one.

    path: the file; for an unbundled .sog its meta.json, beside which the pictures are written.
    format: a name in `formats.FORMATS`; None goes by the path's extension. Folders on the way are made.
    options: the format's own, such as ``sort=False`` of .splat and .sog, which keeps the order of the splats.

    Returns what was lost, in words; [] when nothing was. The same is a warning in the log.
    Raises FormatError for a format that is not written, for no splats, for values no splat has, and where the system
    refuses to write.
    """
    path = Path(path)
    form = formats.for_writing(path, format)
    assert form.write is not None
    if form.name == formats.sog.NAME and path.name.lower() == FOLDER_FILE:
        options = {"folder": path.parent, **options}
    if not len(splats):
        raise FormatError(f"There are no splats to write to '{path}'. A file needs at least one.")
    splats.validate()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path) as file:
            lost = form.write(splats, file, **options)
    except OSError as error:
        raise FormatError(str(storage_error(path, error))) from error
    if lost:
        log.warning("'%s': not kept by the format %s: %s.", path, form.name, "; ".join(lost))
    return lost


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file beside the path that takes its place once it is complete, and goes if it does not get there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with open(temporary, "xb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            file.close()  # Windows replaces no open file
            os.replace(temporary, path)
        except BaseException:
            file.close()
            temporary.unlink(missing_ok=True)
            raise
