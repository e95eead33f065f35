"""The bytes of a splat file, on disk or in memory, behind one small interface."""

import io
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import FormatError

log = logging.getLogger("invert3d")

HEAD_BYTES = 1 << 16

FOLDER_FILE = "meta.json"
"""The file that a folder stands for: an unbundled SOG is a folder of pictures with this file to explain them."""


class Source:
    """An open splat file: its name for messages, its true size in bytes, and reads that never come short.

    name: the path in quotes, or how many bytes were given. suffix: the path's ending in lower case, "" for bytes.
    path: where it is, None for bytes. remarks: what its reader leaves out or takes otherwise, in words.
    """

    def __init__(
        self,
        stream: io.BufferedReader | io.BytesIO,
        name: str,
        size: int,
        suffix: str = "",
        path: Path | None = None,
    ) -> None:
        self.stream = stream
        self.name = name
        self.size = size
        self.suffix = suffix
        self.path = path
        self.remarks: list[str] = []

    def remark(self, what: str) -> None:
        """Note what is left out or taken otherwise; it is a warning in the log, too."""
        self.remarks.append(what)
        log.warning("%s: %s.", self.name, what)

    def head(self) -> bytes:
        """The first `HEAD_BYTES` bytes, fewer where the file is shorter; the position goes back to the start."""
        self.stream.seek(0)
        data = self.stream.read(HEAD_BYTES)
        self.stream.seek(0)
        return data

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes. Raises FormatError where the file ends before them."""
        data = self.stream.read(count)
        if len(data) < count:
            raise self.cut_short()
        return data

    def read_into(self, array: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """Fill a contiguous array of bytes with the next ones. Raises FormatError where the file ends before them."""
        view = memoryview(array.data)
        while view:
            count = self.stream.readinto(view)
            if not count:
                raise self.cut_short()
            view = view[count:]

    def cut_short(self) -> FormatError:
        """The error of a file that ends before what its own header promised."""
        return FormatError(
            f"{self.name} ends after {self.size} bytes, before its contents do: it was cut short, or is still being "
            "written. Copy or download it again."
        )


@contextmanager
def open_source(path_or_bytes: str | os.PathLike[str] | bytes | bytearray | memoryview) -> Iterator[Source]:
    """Open a splat file for reading, or wrap bytes that hold one; a folder stands for its `FOLDER_FILE`.

    Raises FormatError for a missing file, any other folder, anything that is not a regular file, an empty file, and
    whatever the system says against reading it.
    """
    if isinstance(path_or_bytes, (bytes, bytearray, memoryview)):
        size = memoryview(path_or_bytes).nbytes
        name = f"The splat data ({size} bytes)"
        if not size:
            raise FormatError("The splat data is empty (0 bytes). Give the contents of a splat file.")
        with io.BytesIO(path_or_bytes) as stream:
            yield Source(stream, name, size)
        return
    if not isinstance(path_or_bytes, (str, os.PathLike)):
        raise FormatError(f"Splats are loaded from a path or from bytes, not from {type(path_or_bytes).__name__}.")
    path = Path(path_or_bytes)
    try:
        if path.is_dir() and (path / FOLDER_FILE).is_file():
            path = path / FOLDER_FILE
        name = f"'{path}'"
        with _open_file(path, name) as stream:
            size = os.fstat(stream.fileno()).st_size
            if not size:
                raise FormatError(f"{name} is empty (0 bytes): its writing or download failed. Get it again.")
            yield Source(stream, name, size, path.suffix.lower(), path)
    except OSError as error:
        raise FormatError(f"'{path}' cannot be read ({error}). Check the path and its permissions.") from error


def _open_file(path: Path, name: str) -> io.BufferedReader:
    try:
        # Before opening: opening a pipe would wait for a writer.
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise FormatError(f"There is no splat file {name}. Check the path.") from error
    except ValueError as error:  # a NUL in the path
        raise FormatError(f"{name!r} is no path ({error}). Check the path.") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise FormatError(f"{name} is {kind}, not a splat file. Give the path of a file.")
    return open(path, "rb")
