"""cameras.json, which trainers of 3D Gaussian splatting leave beside the splat: one entry for each training picture.

Each has id, img_name, width, height, position (of the camera), rotation (camera-to-world, rows, OpenCV's camera axes),
fx and fy in pixels; the principal point is the middle.
"""

from typing import Any

import numpy as np

from ...errors import CameraError
from .container import Container, where
from .json_text import matrix_of, number_of
from .lenses import FLIP, Lens, LoadedCameras, Shot, to_cameras

NAME = "training"
FILES = ("cameras.json",)


def read(container: Container, name: str, value: Any, size: tuple[int, int] | None = None) -> LoadedCameras:
    """The cameras of a training, in the order of the file, in the frame of its splat.

    value: the file's JSON. Raises CameraError naming the file and what is wrong in it.
    """
    file = where(container, name)
    shots = []
    for i, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise CameraError(f"{file}: entry {i} is no camera; expected the cameras.json of a splat's training")
        title = str(entry.get("img_name") or f"camera {i}")
        numbers = [number_of(entry, key, f"{file}, {title!r}") for key in ("width", "height", "fx", "fy")]
        if None in numbers:
            raise CameraError(f"{file}: {title!r} lacks width, height, fx or fy; expected a training's cameras.json")
        width, height, fx, fy = (float(number or 0) for number in numbers)
        c2w = np.eye(4)
        c2w[:3, :3] = matrix_of(entry.get("rotation"), ((3, 3),), f"rotation of {title!r}", file)
        c2w[:3, 3] = matrix_of(entry.get("position"), ((3,),), f"position of {title!r}", file)
        with np.errstate(all="ignore"):  # what is not finite is told with its picture
            shots.append(Shot(title, c2w @ FLIP, Lens(width, height, fx, fy, width / 2, height / 2)))
    return to_cameras(shots, file, NAME, size)
