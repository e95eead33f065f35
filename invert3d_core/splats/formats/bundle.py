"""The parts of a splat file that is a zip or a folder: read whole, within bounds that its size sets, and written.

Format page: PKWARE's APPNOTE.TXT.
"""

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from ...errors import FormatError
from ...files import write_atomically
from .source import Source, open_source

_END = b"PK\x05\x06"
_END_BYTES = 22
_MAX_COMMENT = (1 << 16) - 1
_MAX_DIRECTORY = 1 << 20
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_SPARE = 1 << 20
_MAX_REASON = 200  # characters: some repeat a damaged name, however long
_UNIX = 3
_BROKEN = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError, struct.error, KeyError, IndexError)


class Parts(Protocol):
    """Files that belong together. size: of all on disk, in bytes, as far as they were opened."""

    size: int

    def read(self, name: str) -> bytes:
        """A part's contents. Raises FormatError where there is none of this name, and where it is damaged."""
        ...


class FolderParts:
    """The files beside an opened one."""

    def __init__(self, source: Source) -> None:
        self.size = source.size
        self._source = source

    def read(self, name: str) -> bytes:
        path = self._source.path
        if path is None:
            raise FormatError(
                f"{self._source.name} is the meta.json of an unbundled .sog, without the pictures beside it. Load it "
                "by its path, or bundle it."
            )
        if not name or name in (".", "..") or set(name) & set("/\\:\0"):
            raise FormatError(
                f"{self._source.name} names {name!r} as one of its files; expected a plain name of a file beside it. "
                "Export it again."
            )
        try:
            with open_source(path.parent / name) as part:
                self.size += part.size
                return part.read(part.size)
        except FormatError as error:
            raise FormatError(f"{self._source.name} needs the file '{name}' beside it. {error}") from error


class ZipParts:
    """The entries of a zip that lie in the same folder of it as one of a given name.

    Raises FormatError for a damaged zip, and for one without that name.
    """

    def __init__(self, source: Source, beside: str) -> None:
        self.size = source.size
        self._source = source
        self._left = 2 * source.size + _SPARE  # bytes to unpack: what is inside is packed already, and hardly shrank
        _check_directory(source)
        source.stream.seek(0)
        try:
            self._zip = zipfile.ZipFile(source.stream)
        except (*_BROKEN, NotImplementedError) as error:
            raise self._damaged(str(error)) from error
        names = [name for name in self._zip.namelist() if name.rsplit("/", 1)[-1] == beside]
        if not names:
            found = ", ".join(self._zip.namelist()[:6])
            raise FormatError(
                f"{source.name} is a zip file without {beside}, so no .sog (it holds {found or 'nothing'}). Unpack it, "
                "and load what is inside."
            )
        self._folder = min(names, key=len).removesuffix(beside)

    def read(self, name: str) -> bytes:
        try:
            entry = self._zip.getinfo(self._folder + name)
        except KeyError as error:
            raise FormatError(
                f"{self._source.name}: its meta.json names '{name}', which is not in the zip (it holds "
                f"{', '.join(self._zip.namelist()[:12])}). Export it again."
            ) from error
        if entry.compress_type not in _PACKED:
            raise self._damaged(f"'{name}' is packed by method {entry.compress_type}; expected 0 or 8")
        self._left -= entry.file_size
        if self._left < 0 or entry.compress_size > self.size:
            raise self._damaged(f"'{name}' claims {entry.file_size} bytes in a file of {self.size}")
        try:
            with self._zip.open(entry) as opened:
                data = opened.read(entry.file_size)
                if len(data) < entry.file_size:
                    raise EOFError(f"'{name}' ends after {len(data)} of {entry.file_size} bytes")
                return data
        except (*_BROKEN, NotImplementedError) as error:
            raise self._damaged(str(error) or f"'{name}' is cut short") from error

    def _damaged(self, reason: str) -> FormatError:
        return FormatError(
            f"{self._source.name}: the zip is damaged ({reason[:_MAX_REASON]}). Copy or download it again, or export "
            "it again."
        )


def _check_directory(source: Source) -> None:
    """Raise FormatError for a zip without an end, and for a directory so large that parsing it takes much memory."""
    length = min(source.size, _END_BYTES + _MAX_COMMENT)
    source.stream.seek(source.size - length)
    tail = source.read(length)
    at = tail.rfind(_END)
    if at < 0 or at + _END_BYTES > length:
        raise FormatError(
            f"{source.name} ends after {source.size} bytes without the directory of a zip: it was cut short, or is "
            "still being written. Copy or download it again."
        )
    directory = struct.unpack_from("<I", tail, at + 12)[0]
    if directory > _MAX_DIRECTORY or tail.find(b"PK\x06\x06") >= 0:
        raise FormatError(
            f"{source.name} is a zip with a directory of {directory} bytes, or a Zip64; a .sog has ten small entries "
            f"in at most {_MAX_DIRECTORY} bytes. Export it again."
        )


def write_zip(file: BinaryIO, parts: Mapping[str, bytes]) -> None:
    """Write parts, as they are, into a zip; the same parts give the same bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            entry = zipfile.ZipInfo(name)  # of 1980, not of now
            entry.create_system = _UNIX
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)


def write_beside(folder: Path, parts: Mapping[str, bytes]) -> dict[str, str]:
    """Write parts as files of a folder, all or none, and give the name of each file.

    Names tell contents apart (by their hash), so that what the folder held before stays whole until its header names
    other files. Raises StorageError where the system refuses.
    """
    names, new = {}, []
    try:
        for name, data in parts.items():
            stem, dot, end = name.rpartition(".")
            names[name] = f"{stem}.{hashlib.sha256(data).hexdigest()[:8]}{dot}{end}"
            path = folder / names[name]
            if not path.exists():
                new.append(path)
            write_atomically(path, data)
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise
    return names
