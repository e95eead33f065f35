"""Pinhole cameras of other programs, each with a size, two focal lengths and a principal point, as our `Cameras`.

`Cameras` have one picture size, square pixels and the principal point in the middle. What a file says beyond that is
approximated only as far as pictures hardly show it, and always said.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ...errors import CameraError
from ..cameras import Cameras

logger = logging.getLogger("invert3d")

Floats = np.ndarray[Any, np.dtype[np.float64]]

MAX_CAMERAS = 100_000
TOLD_PIXELS = 0.1  # where a picture moves by less, nothing is said
MAX_SHARE = 0.02  # of the longer side, by which a picture may move at its border
ROTATION_TOLERANCE = 1e-2  # files round their matrices, to four digits some of them
ASPECT_TOLERANCE = 0.01  # halving an odd side changes the aspect by less
MAX_SIDE = 1 << 16
FARTHEST = 1e30  # float32 ends at 3e38, and squares are taken

FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenCV's camera axes (right, down, forward) and OpenGL's


class Lens(NamedTuple):
    """A pinhole: the picture's size, focal lengths and principal point in pixels."""

    width: float
    height: float
    fx: float
    fy: float
    cx: float
    cy: float


class Shot(NamedTuple):
    """A picture's name, its OpenGL camera-to-world matrix (4,4) and its lens."""

    name: str
    c2w: Floats
    lens: Lens


class LoadedCameras(NamedTuple):
    """What a file of cameras holds.

    cameras: in the frame of the file, which is that of a splat made from its pictures (`Cameras.frame` "splat").
    names: of the pictures, one for each. remarks: what could not be kept, in words. format: one of `formats.FORMATS`.
    """

    cameras: Cameras
    names: list[str]
    remarks: list[str]
    format: str


def to_cameras(shots: Sequence[Shot], file: str, form: str, size: tuple[int, int] | None = None) -> LoadedCameras:
    """Cameras of the shots' poses, with pictures of one size (width, height): what is given, else the commonest.

    Pictures of another shape are left out with a remark.

    A principal point off the middle is answered by turning the camera so that its axis goes through the middle of the
    picture, unequal focal lengths by their mean: the homography that is left is nearly the identity. How far it moves
    a pixel at most is computed; beyond a fiftieth of the picture's longer side the file is refused.

    file: in words, for messages. form: the file's format. Raises CameraError naming the picture and what is wrong.
    """
    if not 1 <= len(shots) <= MAX_CAMERAS:
        raise CameraError(f"{file} holds {len(shots):,} cameras; expected 1 to {MAX_CAMERAS:,}")
    names, lenses = [shot.name for shot in shots], np.array([shot.lens for shot in shots], np.float64)  # (C,6)
    c2w = np.stack([shot.c2w for shot in shots])
    good = (np.abs(lenses) < FARTHEST).all(1) & (lenses[:, :4] > 0).all(1) & (lenses[:, :2] <= MAX_SIDE).all(1)
    if not good.all():
        i = int(np.argmin(good))
        raise CameraError(
            f"{file}: the camera of {names[i]!r} has size {lenses[i, :2].tolist()}, focal lengths "
            f"{lenses[i, 2:4].tolist()} and principal point {lenses[i, 4:].tolist()} in pixels; expected positive "
            f"numbers, and sides up to {MAX_SIDE}"
        )
    width, height = size or _commonest(lenses)
    alike = np.abs(lenses[:, 0] / lenses[:, 1] * height / width - 1) <= ASPECT_TOLERANCE
    if not alike.any():
        raise CameraError(
            f"{file}: the picture {names[0]!r} is {lenses[0, 0]:g}×{lenses[0, 1]:g} pixels where {width}×{height} is "
            "expected, of another shape, and so are all others. Ask for another size, or crop the pictures"
        )
    remarks = []
    if not alike.all():
        lost = np.flatnonzero(~alike)
        remarks.append(
            f"{len(lost)} of {len(names)} pictures are left out (the first is {names[lost[0]]!r}): cameras loaded "
            f"together have one shape, and theirs is not that of {width}×{height}. Load them apart, by their own width "
            "and height"
        )
        names, lenses, c2w = [names[i] for i in np.flatnonzero(alike)], lenses[alike], c2w[alike]
    rotation, off = _orthonormal(c2w[:, :3, :3])
    bad = ~(np.abs(c2w) < FARTHEST).all((1, 2)) | ~(off <= ROTATION_TOLERANCE)
    if bad.any():
        i = int(np.argmax(bad))
        raise CameraError(
            f"{file}: the pose of {names[i]!r} is not a rotation and a position (off by {off[i]:.2g}); expected "
            "orthonormal right-handed axes, up to one scale. Export the cameras again"
        )
    with np.errstate(all="ignore"):  # a lens far from all sense is infinitely far from ours
        turned, focal, moved = _centred(lenses)
    sides = lenses[:, :2].max(1)
    if (moved > MAX_SHARE * sides).any():
        i = int(np.argmax(moved / sides))
        fx, fy, cx, cy = lenses[i, 2:]
        raise CameraError(
            f"{file}: the camera of {names[i]!r} has focal lengths {fx:.6g} and {fy:.6g} and its principal point at "
            f"({cx:.6g}, {cy:.6g}) of {lenses[i, 0]:g}×{lenses[i, 1]:g} pixels, which would move its picture by "
            f"{moved[i]:.1f} pixels; expected square pixels and a principal point near the middle. Undistort or crop "
            "the pictures first"
        )
    if moved.max() > TOLD_PIXELS:
        remarks.append(
            "principal points off the middle or unequal focal lengths are approximated by turning the cameras: "
            f"pictures move by up to {moved.max():.2g} pixels ({(moved / sides).max():.2%} of a side)"
        )
    if (np.abs(lenses[:, :2] - (width, height)) >= 1).any():
        remarks.append(f"pictures of other sizes of the same shape are taken as {width}×{height}")
    for remark in remarks:
        logger.warning("%s: %s", file, remark)
    pose = np.tile(np.eye(4), (len(names), 1, 1))
    pose[:, :3, :3] = rotation @ FLIP[:3, :3] @ turned @ FLIP[:3, :3]
    pose[:, :3, 3] = c2w[:, :3, 3]
    fov = 2 * np.degrees(np.arctan(lenses[:, 1] / 2 / focal))
    cams = Cameras(torch.from_numpy(pose).float(), torch.from_numpy(fov).float(), width, height, "splat")
    return LoadedCameras(cams, names, remarks, form)


def _commonest(lenses: Floats) -> tuple[int, int]:
    """The size (width, height) of the first picture whose shape most others have."""
    shapes = np.log(lenses[:, 0] / lenses[:, 1])
    ordered = np.sort(shapes)
    below = np.searchsorted(ordered, shapes - ASPECT_TOLERANCE, "left")
    above = np.searchsorted(ordered, shapes + ASPECT_TOLERANCE, "right")
    width, height = np.maximum(1, np.round(lenses[np.argmax(above - below), :2]))
    return int(width), int(height)


def _orthonormal(matrices: Floats) -> tuple[Floats, Floats]:  # (C,3,3) -> (C,3,3), (C,)
    """The rotations nearest to matrices up to a scale of each, and how far they were from that; not finite where not.

    A mirrored matrix is far from every rotation.
    """
    with np.errstate(all="ignore"):
        scale = np.cbrt(np.linalg.det(matrices))
        scaled = matrices / np.where(scale > 0, scale, np.nan)[:, None, None]
    finite: Any = np.isfinite(scaled).all((1, 2))
    u, _, vt = np.linalg.svd(np.where(finite[:, None, None], scaled, np.eye(3)))
    rotation = u @ vt
    off = np.where(finite, np.abs(rotation - scaled).max((1, 2)), np.inf)
    return rotation, off


def _centred(lenses: Floats) -> tuple[Floats, Floats, Floats]:
    """For each lens the rotation (C,3,3), in OpenCV's camera axes, that takes the axis to the middle of the picture,
    the focal length (C,) that then fits best, and how many pixels (C,) the border is off at most.
    """
    width, height, fx, fy, cx, cy = lenses.T
    axis = np.stack([(width / 2 - cx) / fx, (height / 2 - cy) / fy, np.ones_like(fx)], -1)
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    x, y, z = axis.T
    # The shortest turn from (0,0,1) to the axis, by Rodrigues' formula.
    turned = np.stack(
        [
            np.stack([1 - x * x / (1 + z), -x * y / (1 + z), x], -1),
            np.stack([-x * y / (1 + z), 1 - y * y / (1 + z), y], -1),
            np.stack([-x, -y, z], -1),
        ],
        1,
    )
    across, down = (grid.reshape(-1) for grid in np.meshgrid((0, 0.5, 1), (0, 0.5, 1)))
    pixels = np.stack([across * width[:, None], down * height[:, None]], -1)  # (C,9,2)
    rays = np.stack(
        [
            (pixels[..., 0] - cx[:, None]) / fx[:, None],
            (pixels[..., 1] - cy[:, None]) / fy[:, None],
            np.ones_like(pixels[..., 0]),
        ],
        -1,
    )
    seen = rays @ turned
    wanted = pixels - lenses[:, None, :2] / 2
    # A ray beside or behind the turned camera has no place in its picture: nothing fits then.
    flat = np.where(seen[..., 2:] > 1e-6, seen[..., :2] / seen[..., 2:], np.nan)
    focal = (flat * wanted).sum((1, 2)) / (flat * flat).sum((1, 2))
    moved = np.linalg.norm(flat * focal[:, None, None] - wanted, axis=-1).max(1)
    return turned, focal, np.where(np.isfinite(moved) & (focal > 0), moved, np.inf)
