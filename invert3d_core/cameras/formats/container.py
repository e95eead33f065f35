"""Where files of cameras lie: a folder, a zip archive, or one file with what lies beside it."""

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, Protocol

from ...errors import CameraError

MAX_BYTES = 1 << 30  # of one file: the poses of a hundred thousand pictures with all their points take less
MAX_REASON = 200  # characters: some repeat a damaged name, however long
MAX_INFLATION, FREE_INFLATION = 60, 1 << 20  # of a member of an archive; a text of poses shrinks to a quarter


class Container(Protocol):
    """Files by their relative names, with "/" between folders."""

    name: str
    """The container in words, for messages."""

    def find(self, *names: str) -> str | None:
        """The first of these names that is there: as it is, else in the folder nearest to the top."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file."""
        ...

    def open(self, name: str) -> BinaryIO:
        """The content of a file, to be read from its start."""
        ...


class Folder:
    """A folder on disk. Subfolders are named, not searched."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = f"'{path}'"

    def find(self, *names: str) -> str | None:
        return next((name for name in names if (self.path / name).is_file()), None)

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def open(self, name: str) -> BinaryIO:
        return open(self.path / name, "rb")


class Archive:
    """An open zip archive; names are found in any of its folders."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self.name = name
        self._archive = archive
        # Some programs of Windows write its own separator.
        named = [(member.filename.replace("\\", "/"), member) for member in archive.infolist()]
        self._members = {name: member for name, member in named if name[-1:] not in ("", "/")}

    def find(self, *names: str) -> str | None:
        for name in names:
            if name in self._members:
                return name
            found = [member for member in self._members if member.endswith(f"/{name}")]
            if found:
                return min(found, key=lambda member: (member.count("/"), member))
        return None

    def size(self, name: str) -> int:
        return self._members[name].file_size

    def open(self, name: str) -> BinaryIO:
        member = self._members[name]
        if member.file_size > MAX_INFLATION * member.compress_size + FREE_INFLATION:
            raise CameraError(
                f"{self.name}: '{name}' says it is {member.file_size:,} bytes packed into {member.compress_size:,}, "
                "which no file of cameras is; unpack the archive to see what it holds"
            )
        return self._archive.open(member)  # pyright: ignore[reportReturnType]


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """The archive of a zip file. Raises CameraError when it is damaged or needs what is not there to unpack it."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield Archive(archive, f"'{path}'")
    except CameraError:
        raise
    # zlib.error, NotImplementedError and RuntimeError (a password) come from the members.
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise CameraError(
            f"'{path}' cannot be unpacked ({str(error)[:MAX_REASON]}). Pack its files again, or give the folder."
        ) from error


def read_whole(container: Container, name: str, limit: int = MAX_BYTES) -> bytes:
    """The content of a file. Raises CameraError when it is larger than limit bytes, whatever its archive says."""
    # Never ask for more than the file says it has: a read takes that much memory before it knows.
    with container.open(name) as file:
        content = file.read(min(container.size(name), limit) + 1)
    if len(content) > limit:
        raise CameraError(
            f"{where(container, name)} is larger than {limit >> 20} MB, expected a file of cameras; give another file"
        )
    return content


def where(container: Container, name: str) -> str:
    """A file of a container in words, for messages."""
    if isinstance(container, Folder):
        return f"'{container.path / name}'"
    return f"'{name}' in {container.name}"


def beside(name: str, other: str) -> str:
    """The name of a file in the same folder as another."""
    return str(PurePosixPath(name).parent / other)


def picture_size(container: Container, name: str, picture: str) -> tuple[int, int] | None:
    """Width and height of a picture that a file of cameras names, None when there is none or it cannot be read.

    picture: relative to the file, with or without ".png", folders apart by "/" or as in Windows. It is not looked for
    outside the container.
    """
    from PIL import Image

    picture = picture.replace("\\", "/")
    for ending in ("", ".png", ".jpg"):
        target = PurePosixPath(beside(name, picture + ending))
        if PureWindowsPath(target).anchor or ".." in target.parts or "\0" in picture:
            return None
        try:
            if container.find(str(target)) != str(target):
                continue
            with container.open(str(target)) as file:
                head = io.BytesIO(file.read(1 << 20))
            with Image.open(head) as image:
                return image.size
        # Pillow names its own failures in many ways; a picture is a help here, not a need.
        except (OSError, SyntaxError, ValueError, CameraError, Image.DecompressionBombError):
            continue
    return None
