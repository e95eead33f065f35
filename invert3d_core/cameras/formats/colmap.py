"""COLMAP models: the files cameras and images, as .bin or .txt (colmap.github.io/format.html).

Poses are world-to-camera in OpenCV's axes: a quaternion w,x,y,z and a translation. Points are skipped, not read.
"""

import codecs
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch

from ... import rotations
from ...errors import CameraError
from ..cameras import Cameras
from ..conversions import to_intrinsics, to_viewmats
from .container import Container, beside, where
from .lenses import FLIP, MAX_CAMERAS, Floats, Lens, LoadedCameras, Shot, to_cameras

NAME = "colmap"
FOLDERS = ("", "sparse/0/", "sparse/", "colmap/sparse/0/")  # where a folder of a reconstruction keeps its model

MAX_NAME = 4096
MAX_LINE = 1 << 24  # the points of one picture

# id → name, number of parameters, and where among them fx, fy, cx, cy stand; the others distort
_LENSES: dict[int, tuple[str, int, tuple[int, int, int, int] | None]] = {
    0: ("SIMPLE_PINHOLE", 3, (0, 0, 1, 2)),
    1: ("PINHOLE", 4, (0, 1, 2, 3)),
    2: ("SIMPLE_RADIAL", 4, (0, 0, 1, 2)),
    3: ("RADIAL", 5, (0, 0, 1, 2)),
    4: ("OPENCV", 8, (0, 1, 2, 3)),
    5: ("OPENCV_FISHEYE", 8, None),
    6: ("FULL_OPENCV", 12, (0, 1, 2, 3)),
    7: ("FOV", 5, None),
    8: ("SIMPLE_RADIAL_FISHEYE", 4, None),
    9: ("RADIAL_FISHEYE", 5, None),
    10: ("THIN_PRISM_FISHEYE", 12, None),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16, None),
}
_IDS = {name: number for number, (name, _, _) in _LENSES.items()}


def find(container: Container) -> str | None:
    """The file of images of the model in a container, None when there is none."""
    return container.find(*(f"{folder}images.{ending}" for folder in FOLDERS for ending in ("bin", "txt")))


def read(container: Container, images: str, size: tuple[int, int] | None = None) -> LoadedCameras:
    """The cameras of a model, one for each picture in the order of their names.

    images: the name of its images.bin or images.txt; the cameras file of the same ending lies beside it. Only lenses
    without distortion can be used. Raises CameraError naming the file and what is wrong in it.
    """
    ending = images.rsplit(".", 1)[-1].lower()
    wanted = beside(images, f"cameras.{ending}")
    if container.find(wanted) != wanted:
        raise CameraError(
            f"{where(container, images)} has no cameras.{ending} beside it, which holds the lenses; put both files "
            "into one folder"
        )
    lenses = _guarded(_lenses_bin if ending == "bin" else _lenses_txt, container, wanted)
    poses = _guarded(_poses_bin if ending == "bin" else _poses_txt, container, images)
    poses.sort(key=lambda pose: pose[0])
    shots = []
    for (name, lens_id, _), c2w in zip(poses, _c2w([pose for _, _, pose in poses]), strict=True):
        if lens_id not in lenses:
            raise CameraError(
                f"{where(container, images)}: the picture {name!r} has camera {lens_id}, which "
                f"{where(container, wanted)} does not hold; both files must be of one model"
            )
        lens = lenses[lens_id]
        shots.append(Shot(name, c2w, lens if isinstance(lens, Lens) else _refuse(container, wanted, lens)))
    return to_cameras(shots, where(container, images), NAME, size)


def write(cams: Cameras, folder: Path, names: Sequence[str], binary: bool = True) -> dict[Path, bytes]:
    """The contents of a model's files cameras, images and points3D (none), by path.

    The poses are written as they are: cameras in a splat's frame, for a model that a splat is trained from.
    """
    precise = cams.to("cpu", torch.float64)
    viewmats = to_viewmats(precise)
    poses = torch.cat([rotations.quaternions(viewmats[:, :3, :3]), viewmats[:, :3, 3]], 1).tolist()
    intrinsics = to_intrinsics(precise)
    lenses = intrinsics[:, (0, 1, 0, 1), (0, 1, 2, 2)].tolist()
    shared = list(dict.fromkeys(map(tuple, lenses)))
    ids = {lens: i + 1 for i, lens in enumerate(shared)}
    rows = [
        (i + 1, pose, ids[tuple(lens)], name)
        for i, (pose, lens, name) in enumerate(zip(poses, lenses, names, strict=True))
    ]
    if binary:
        cameras = struct.pack("<Q", len(shared)) + b"".join(
            struct.pack("<iiQQ4d", ids[lens], 1, cams.width, cams.height, *lens) for lens in shared
        )
        images = struct.pack("<Q", len(rows)) + b"".join(
            struct.pack("<I7dI", i, *pose, lens) + name.encode() + struct.pack("<xQ", 0) for i, pose, lens, name in rows
        )
        files = {"cameras.bin": cameras, "images.bin": images, "points3D.bin": struct.pack("<Q", 0)}
    else:
        size = f"{cams.width} {cams.height}"
        cameras = "".join(f"{ids[lens]} PINHOLE {size} {' '.join(map(repr, lens))}\n" for lens in shared)
        images = "".join(f"{i} {' '.join(map(repr, pose))} {lens} {name}\n\n" for i, pose, lens, name in rows)
        files = {
            "cameras.txt": f"# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n{cameras}".encode(),
            "images.txt": f"# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME\n{images}".encode(),
            "points3D.txt": b"# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[]\n",
        }
    return {folder / name: content for name, content in files.items()}


Pose = tuple[str, int, Sequence[float]]  # name, id of the lens, quaternion and translation
Unusable = str
Read = TypeVar("Read")


def _guarded(reader: Callable[[BinaryIO, int], Read], container: Container, name: str) -> Read:
    """What a reader of a file gives; whatever it stumbles over is told with the file."""
    try:
        with container.open(name) as file:
            return reader(file, container.size(name))
    except CameraError as error:
        raise CameraError(f"{where(container, name)}: {error}") from error
    except (struct.error, ValueError, OverflowError, IndexError) as error:
        raise CameraError(
            f"{where(container, name)} is damaged ({error}); expected a file of a COLMAP model. Export the model again"
        ) from error


def _lenses_bin(file: BinaryIO, size: int) -> dict[int, Lens | Unusable]:
    (count,) = _unpack(file, "<Q")
    _check_count(count, 24 + 3 * 8, size)
    lenses = {}
    for _ in range(count):
        number, model, width, height = _unpack(file, "<iiQQ")
        if model not in _LENSES:
            raise CameraError(f"camera {number} has the model {model}, which is unknown; expected 0 to 11")
        name, parameters, _ = _LENSES[model]
        lenses[number] = _lens(name, width, height, _unpack(file, f"<{parameters}d"))
    return lenses


def _lenses_txt(file: BinaryIO, size: int) -> dict[int, Lens | Unusable]:
    lenses = {}
    for line in _lines(file):
        words = line.split()
        if not words:
            continue
        if len(words) < 5:
            raise CameraError(f"the line {line[:60]!r} is no camera; expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]")
        lenses[int(words[0])] = _lens(words[1], int(words[2]), int(words[3]), [float(word) for word in words[4:]])
        if len(lenses) > MAX_CAMERAS:
            raise CameraError(f"there are more than {MAX_CAMERAS:,} cameras")
    return lenses


def _poses_bin(file: BinaryIO, size: int) -> list[Pose]:
    (count,) = _unpack(file, "<Q")
    _check_count(count, 4 + 7 * 8 + 4 + 1 + 8, size)
    poses = []
    for _ in range(count):
        _, *pose, lens = _unpack(file, "<I7dI")
        name = bytearray()
        while (letter := file.read(1)) != b"\0":
            if not letter or len(name) == MAX_NAME:
                raise CameraError("the name of a picture does not end")
            name += letter
        (points,) = _unpack(file, "<Q")
        _skip(file, points * 24, size)
        poses.append((name.decode("utf-8", "replace"), lens, pose))
    return poses


def _poses_txt(file: BinaryIO, size: int) -> list[Pose]:
    poses = []
    lines = _lines(file)
    for line in lines:
        if not line.strip():
            continue
        words = line.split(maxsplit=9)
        if len(words) < 10:
            raise CameraError(
                f"the line {line[:60]!r} is no picture; expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, and a "
                "line of points after each, which may be empty"
            )
        poses.append((words[9].strip(), int(words[8]), [float(word) for word in words[1:8]]))
        points = next(lines, "").split()
        if points and not points[-1].lstrip("-").isdigit():
            raise CameraError(
                f"the line {' '.join(points)[:60]!r} follows the picture {poses[-1][0]!r}, whose points are expected "
                "there; the line may be empty, but not left out. Export the model again"
            )
        if len(poses) > MAX_CAMERAS:
            raise CameraError(f"there are more than {MAX_CAMERAS:,} pictures")
    return poses


def _lens(model: str, width: int, height: int, parameters: Sequence[float]) -> Lens | Unusable:
    """The lens without its distortion, or why it cannot be used: a file may hold lenses that no picture has."""
    if model not in _IDS:
        return f"the lens model {model}, which is unknown"
    _, count, places = _LENSES[_IDS[model]]
    if len(parameters) != count:
        raise CameraError(f"a {model} has {len(parameters)} parameters, expected {count}")
    if places is None or any(parameters[max(places) + 1 :]):
        return f"the lens model {model}, which bends lines"
    fx, fy, cx, cy = (parameters[place] for place in places)
    return Lens(float(width), float(height), fx, fy, cx, cy)


def _refuse(container: Container, name: str, reason: str) -> Lens:
    raise CameraError(
        f"{where(container, name)} has {reason}; expected pinholes without distortion. Undistort the pictures: "
        "'colmap image_undistorter' writes such a model"
    )


def _c2w(poses: Sequence[Sequence[float]]) -> Floats:  # (C,7) -> (C,4,4)
    values = np.array(poses, np.float64).reshape(-1, 7)
    length = np.abs(values[:, :4]).max(1)
    # A quaternion without a direction gives a matrix without one, which is told with its picture.
    directed = (length > 1e-6) & (length < 1e6)
    unit = torch.from_numpy(np.where(directed[:, None], values[:, :4], (1.0, 0.0, 0.0, 0.0)))
    rotation = np.where(directed[:, None, None], rotations.rotation_matrices(unit).numpy().swapaxes(1, 2), np.nan)
    c2w = np.tile(np.eye(4), (len(values), 1, 1))
    c2w[:, :3, :3] = rotation
    with np.errstate(all="ignore"):
        c2w[:, :3, 3] = -(rotation @ values[:, 4:, None])[..., 0]
        return c2w @ FLIP


def _unpack(file: BinaryIO, form: str) -> tuple:
    data = file.read(struct.calcsize(form))
    if len(data) < struct.calcsize(form):
        raise CameraError("it ends too early: its writing or copying broke off. Export the model again")
    return struct.unpack(form, data)


def _check_count(count: int, least_bytes: int, size: int) -> None:
    if count > MAX_CAMERAS or count * least_bytes > size:
        raise CameraError(
            f"it says it holds {count:,} entries, which {size:,} bytes cannot (or which is more than {MAX_CAMERAS:,}); "
            "expected a .bin file of a COLMAP model"
        )


def _skip(file: BinaryIO, count: int, size: int) -> None:
    if count > size:
        raise CameraError("a picture says it has more points than the file has room for")
    while count > 0:
        got = len(file.read(min(count, 1 << 20)))
        if not got:
            raise CameraError("it ends too early: its writing or copying broke off. Export the model again")
        count -= got


def _lines(file: BinaryIO) -> Iterator[str]:
    """Lines that are no comments, empty ones too: an empty line may stand for no points."""
    start = True
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise CameraError(f"a line is longer than {MAX_LINE >> 20} MB")
        line = line.removeprefix(codecs.BOM_UTF8) if start else line  # editors of Windows put it there
        start = False
        if not line.startswith(b"#"):
            yield line.decode("utf-8", "replace")
