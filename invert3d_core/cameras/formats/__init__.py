"""Files of cameras: COLMAP models, transforms.json, a splat training's cameras.json, DTU's cameras.npz.

What is read stands in the frame of the file (`Cameras.frame` "splat"): that of the splats made from its pictures.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import CameraError
from ...files import write_atomically
from ..cameras import Cameras
from . import colmap, dtu, training, transforms
from .container import Archive, Container, Folder, open_archive, where
from .json_text import read_json
from .lenses import LoadedCameras

__all__ = ["EXTENSIONS", "FORMATS", "LoadedCameras", "load", "save"]

FORMATS = (colmap.NAME, transforms.NAME, training.NAME, dtu.NAME)
EXTENSIONS = (".json", ".npz", ".zip", ".bin", ".txt")  # of files that hold cameras

_EXPECTED = (
    "expected a COLMAP model (images and cameras, .bin or .txt), transforms.json, a training's cameras.json or a DTU "
    "scene's cameras.npz"
)


def load(path: Path | str, *, size: tuple[int, int] | None = None, normalised: bool = True) -> LoadedCameras:
    """The cameras of a file, of a folder that holds one, or of a zip archive of such a folder, by what is in it.

    size: (width, height) in pixels of the pictures wanted; by default that of the file's first picture. Where a file
    does not say it and no picture lies beside it, size is needed, and taken for the pictures' own. normalised: of a DTU
    scene, in the unit sphere rather than as measured.

    Raises CameraError naming the file when there is none, it is damaged, a lens is no pinhole, or the pictures have
    different shapes.
    """
    path = Path(path)
    if size is not None and not all(1 <= side <= 1 << 16 for side in size):
        raise CameraError(f"cameras.load: size is {size}, expected width and height of 1 to 65536 pixels")
    try:
        if path.is_dir():
            return _load_from(Folder(path), size, normalised)
        if not path.is_file():
            raise CameraError(f"There is no file or folder '{path}'; {_EXPECTED}.")
        with open(path, "rb") as file:
            head = file.read(512)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise CameraError(f"'{path}' cannot be read ({error}). Check the path and its permissions.") from error
    folder = Folder(path.parent)
    if head.startswith(b"PK"):
        with open_archive(path) as archive:
            if archive.find(dtu.MEMBER):
                return dtu.read(archive, size, folder, normalised)
            return _load_from(archive, size, normalised)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return _load_json(folder, path.name, size)
    if path.suffix.lower() in (".bin", ".txt"):
        images = f"images{path.suffix.lower()}"
        if path.name != images and not folder.find(images):
            raise CameraError(f"'{path}' has no {images} beside it, which holds the poses; {_EXPECTED}.")
        return colmap.read(folder, images, size)
    raise CameraError(f"'{path}' starts with {head[:8]!r} and is no file of cameras; {_EXPECTED}.")


def save(
    cams: Cameras,
    path: Path | str,
    format: str | None = None,
    names: Sequence[str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write cameras as they stand, in their own frame, and return the paths written, each whole or not at all.

    format: "transforms" writes the .json named by path, "dtu" the .npz, "colmap" a binary model and "colmap-text" one
    in words into the folder path; by default by the extension, a folder's name for colmap. names: of the pictures; by
    default view_000.png and so on. more: further entries of a transforms.json, as in `transforms.write`.

    Raises CameraError when there are no cameras, the names do not fit or the format is unknown; StorageError when a
    file cannot be written.
    """
    path = Path(path)
    names = list(names) if names is not None else view_names(len(cams))
    if len(cams) == 0 or len(names) != len(cams):
        raise CameraError(
            f"cameras.save: {len(names)} names for {len(cams)} cameras, expected at least one, each named"
        )
    if bad := next((name for name in names if not name or "\n" in name or "\0" in name), None):
        raise CameraError(f"cameras.save: the name {bad!r} cannot be written, expected one line")
    form = format or {".json": transforms.NAME, ".npz": dtu.NAME, "": colmap.NAME}.get(path.suffix.lower())
    if form == transforms.NAME:
        files = {path: transforms.write(cams, names, more)}
    elif form == dtu.NAME:
        files = {path: dtu.write(cams)}
    elif form in (colmap.NAME, f"{colmap.NAME}-text"):
        files = colmap.write(cams, path, names, binary=form == colmap.NAME)
    else:
        raise CameraError(
            f"cameras.save: no format {format!r} for '{path.name}', expected transforms (.json), dtu (.npz), colmap or "
            "colmap-text (a folder)"
        )
    for file, content in files.items():
        write_atomically(file, content)
    return list(files)


def view_names(count: int, ending: str = ".png") -> list[str]:
    """view_000.png, view_001.png and so on, with as many digits as the last one needs."""
    digits = max(3, len(str(count - 1)))
    return [f"view_{index:0{digits}d}{ending}" for index in range(count)]


def _load_from(container: Folder | Archive, size: tuple[int, int] | None, normalised: bool) -> LoadedCameras:
    images = colmap.find(container)
    if images:
        return colmap.read(container, images, size)
    name = container.find(*transforms.FILES, *training.FILES)
    if name:
        return _load_json(container, name, size)
    if isinstance(container, Folder):
        name = container.find("cameras_sphere.npz", "cameras.npz")
        if name:
            return load(container.path / name, size=size, normalised=normalised)
    raise CameraError(f"{container.name} holds no cameras; {_EXPECTED}.")


def _load_json(container: Container, name: str, size: tuple[int, int] | None) -> LoadedCameras:
    value = read_json(container, name)
    if isinstance(value, dict) and "frames" in value:
        return transforms.read(container, name, value, size)
    if isinstance(value, list) and value:
        return training.read(container, name, value, size)
    raise CameraError(f"{where(container, name)} is JSON, but holds no cameras; {_EXPECTED}.")
