"""transforms.json, of NeRF (one camera_angle_x), and of nerfstudio and instant-ngp (fl_x, fl_y, cx, cy, w, h).

Both give camera-to-world matrices in OpenGL's camera axes, as ours are, in a world whose up is by habit +z:
docs.nerf.studio/quickstart/data_conventions.html. Lenses may stand at the top or with each frame.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...errors import CameraError
from ..cameras import Cameras
from ..conversions import to_intrinsics
from .container import Container, picture_size, where
from .json_text import matrix_of, number_of
from .lenses import Lens, LoadedCameras, Shot, to_cameras

NAME = "transforms"
FILES = ("transforms.json", "transforms_train.json")

PINHOLES = {"", "PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "PERSPECTIVE"}
DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
STRAIGHT = 1e-6  # a coefficient below it bends no line by a pixel


def read(container: Container, name: str, value: Any, size: tuple[int, int] | None = None) -> LoadedCameras:
    """The cameras of a transforms.json, one a frame in the file's order, in the file's world.

    value: the file's JSON. size: (width, height) of the pictures that are wanted; where the file does not say theirs
    and its pictures do not lie beside it, it is taken for theirs. Raises CameraError naming the file and the cause.
    """
    file = where(container, name)
    frames = value.get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise CameraError(
            f"{file} has no list of frames; expected a transforms.json of NeRF, nerfstudio or instant-ngp"
        )
    shots, found = [], None
    for i, frame in enumerate(frames):
        path = frame.get("file_path")
        title = path if isinstance(path, str) and path else f"frame {i}"
        side = _size_of({**value, **frame}, file)
        if side is None:  # asked of the first picture alone: opening thousands takes its time
            found = found or (picture_size(container, name, title) if isinstance(path, str) else None) or size
            side = found
        if side is None:
            raise CameraError(
                f"{file} does not say how large its pictures are (w, h), and they do not lie beside it; say it (width "
                "and height)"
            )
        pose = matrix_of(frame.get("transform_matrix"), ((4, 4), (3, 4)), f"transform_matrix of {title!r}", file)
        c2w = np.vstack([pose[:3], [0, 0, 0, 1]])
        shots.append(Shot(title, c2w, _lens_of(frame, value, side, title, file)))
    loaded = to_cameras(shots, file, NAME, size)
    if value.get("applied_transform") is not None:
        loaded.remarks.append("the file says its world was moved (applied_transform); the poses are as in the file")
    return loaded


def write(cams: Cameras, names: Sequence[str], more: Mapping[str, Any] | None = None) -> bytes:
    """The text of a transforms.json that NeRF, nerfstudio and instant-ngp read.

    The poses are written as they are. names: the pictures' paths relative to the file. more: further entries of the
    top, or with the key "frames" a list of further entries of each frame.
    """
    precise = cams.to("cpu", torch.float64)
    focal = to_intrinsics(precise)[:, 0, 0].tolist()
    lenses = [
        {
            "fl_x": length,
            "fl_y": length,
            "camera_angle_x": 2 * math.atan(cams.width / 2 / length),
            "camera_angle_y": 2 * math.atan(cams.height / 2 / length),
        }
        for length in focal
    ]
    extra = dict(more or {})
    additions = extra.pop("frames", [{}] * len(cams))
    one = len(set(focal)) == 1
    frames = [
        {"file_path": name, "transform_matrix": pose, **({} if one else lens), **addition}
        for name, pose, lens, addition in zip(names, precise.c2w.tolist(), lenses, additions, strict=True)
    ]
    top = {
        "camera_model": "PINHOLE",
        "w": cams.width,
        "h": cams.height,
        "cx": cams.width / 2,
        "cy": cams.height / 2,
        **(lenses[0] if one else {}),
        **extra,
        "frames": frames,
    }
    text = io.StringIO()
    json.dump(top, text, indent=1)  # `dumps` would list every bracket and number first
    return (text.getvalue() + "\n").encode()


def _size_of(values: Mapping[str, Any], file: str) -> tuple[float, float] | None:
    width, height = number_of(values, "w", file), number_of(values, "h", file)
    return None if width is None or height is None else (width, height)


def _lens_of(
    frame: Mapping[str, Any], top: Mapping[str, Any], size: tuple[float, float], title: str, file: str
) -> Lens:
    values = {**top, **frame}
    model = str(values.get("camera_model") or "").upper()
    bent = [key for key in DISTORTION if abs(number_of(values, key, file) or 0) > STRAIGHT]
    if model not in PINHOLES or bent or values.get("is_fisheye") is True:
        reason = f"distortion ({', '.join(bent)})" if bent else f"the model {values.get('camera_model')!r}"
        raise CameraError(
            f"{file}: the camera of {title!r} has {reason}; expected a pinhole without distortion. Undistort the "
            "pictures and export the cameras again"
        )
    width, height = size
    # A frame's own lens wins as a whole: its angle goes before a focal length at the top.
    for place in (frame, top):
        fx = _focal(place, "fl_x", "camera_angle_x", width, file)
        fy = _focal(place, "fl_y", "camera_angle_y", height, file)
        fx, fy = fx or fy, fy or fx
        if fx is not None:
            break
    if fx is None or fy is None:
        raise CameraError(
            f"{file}: the camera of {title!r} has no focal length; expected fl_x, or camera_angle_x in radians"
        )
    cx, cy = number_of(values, "cx", file), number_of(values, "cy", file)
    return Lens(width, height, fx, fy, width / 2 if cx is None else cx, height / 2 if cy is None else cy)


def _focal(values: Mapping[str, Any], length: str, angle: str, side: float, file: str) -> float | None:
    focal = number_of(values, length, file)
    if focal is not None:
        return focal
    radians = number_of(values, angle, file)
    if radians is None:
        return None
    if not 0 < radians < math.pi:
        raise CameraError(f"{file}: {angle} is {radians:g}, expected radians between 0 and pi")
    return side / 2 / math.tan(radians / 2)
