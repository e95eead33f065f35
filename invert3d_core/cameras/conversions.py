"""Our cameras in the conventions of others: OpenCV rasterisers, MVDream's camera vector, the host's camera_info.

Ours: `Cameras.c2w` is OpenGL camera-to-world (right, up, backward), the world right-handed with y up, ``fov_y_deg``
vertical. Each conversion has a golden test.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from .. import rotations
from ..errors import CameraError
from .cameras import Cameras, Orientation
from .orbits import turn

HOST_DEFAULT_FOV_DEG = 35.0  # what the host takes for a camera_info without fov
MIN_TARGET_DISTANCE = 1e-6

FovSide = Literal["vertical", "smaller"]


def to_viewmats(cams: Cameras) -> Tensor:
    """World-to-camera matrices (C,4,4) in OpenCV axes: x right, y down, z forward.

    inverse(c2w · diag(1, −1, −1, 1)); dtype and device of c2w, differentiable in it.
    """
    flip = torch.tensor([1.0, -1.0, -1.0], dtype=cams.c2w.dtype, device=cams.c2w.device)
    rotation = flip[:, None] * cams.c2w[:, :3, :3].mT  # (C,3,3)
    return _matrices(rotation, -(rotation * cams.centers[:, None]).sum(-1))


def to_intrinsics(cams: Cameras) -> Tensor:
    """OpenCV intrinsics (C,3,3): focal length height / 2 / tan(fov_y / 2) pixels, principal point (width/2, height/2).

    Pixel centres lie at (column + 0.5, row + 0.5).
    """
    focal = cams.height / 2 / torch.tan(torch.deg2rad(cams.fov_y_deg) / 2)
    intrinsics = torch.zeros(len(cams), 3, 3, dtype=focal.dtype, device=focal.device)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal
    intrinsics[:, 0, 2] = cams.width / 2
    intrinsics[:, 1, 2] = cams.height / 2
    intrinsics[:, 2, 2] = 1
    return intrinsics


def from_viewmats(viewmats: Tensor, intrinsics: Tensor, width: int, height: int) -> Cameras:
    """Cameras from OpenCV world-to-camera matrices (C,4,4) and intrinsics (C,3,3): the inverse of the two above.

    Raises CameraError when the principal point is not the middle of the picture or the focal lengths differ, by more
    than a thousandth of the picture: `Cameras` has neither.
    """
    if viewmats.ndim != 3 or viewmats.shape[1:] != (4, 4) or intrinsics.shape != (len(viewmats), 3, 3):
        raise CameraError(
            f"from_viewmats: viewmats have shape {tuple(viewmats.shape)} and intrinsics {tuple(intrinsics.shape)}, "
            "expected (C,4,4) and (C,3,3)"
        )
    off_x = (intrinsics[:, 0, 2] / width - 0.5).abs()
    off_y = (intrinsics[:, 1, 2] / height - 0.5).abs()
    uneven = (intrinsics[:, 0, 0] / intrinsics[:, 1, 1] - 1).abs()
    if (torch.stack([off_x, off_y, uneven]) > 1e-3).any():
        raise CameraError(
            "from_viewmats: a camera has unequal focal lengths or a principal point off the middle of the picture "
            f"({width}×{height}); rectify and crop its pictures first"
        )
    flip = torch.tensor([1.0, -1.0, -1.0], dtype=viewmats.dtype, device=viewmats.device)
    rotation = viewmats[:, :3, :3].mT
    position = -(rotation * viewmats[:, None, :3, 3]).sum(-1)
    c2w = _matrices(rotation * flip, position)
    fov = 2 * torch.rad2deg(torch.atan(height / 2 / intrinsics[:, 1, 1]))
    return Cameras(c2w, fov, width, height)


def y_up_to_z_up(c2w: Tensor) -> Tensor:
    """Poses (…,4,4) of a y-up world in Blender's z-up world: (x, y, z) → (x, −z, y). Camera axes stay OpenGL.

    MVDream's ``convert_opengl_to_blender``; defined for any affine matrix.
    """
    return torch.stack([c2w[..., 0, :], -c2w[..., 2, :], c2w[..., 1, :], c2w[..., 3, :]], dim=-2)


def normalize_translation(c2w: Tensor) -> Tensor:
    """Poses (…,4,4) with translations of unit length, t / (‖t‖ + 1e-8); the input is not touched.

    MVDream's ``normalize_camera``; defined for any affine matrix, a zero translation stays zero.
    """
    result = c2w.clone()
    translation = c2w[..., :3, 3]
    result[..., :3, 3] = translation / (translation.norm(dim=-1, keepdim=True) + 1e-8)
    return result


def to_mvdream(cams: Cameras, front_azimuth_deg: float = 0.0) -> Tensor:
    """MVDream's camera vectors (C,16): z-up camera-to-world with unit translation, row-major, last row 0 0 0 1.

    cams: around the asset's origin (field of view and distance do not enter). front_azimuth_deg: the azimuth at which
    the model believes the front to be (MVDream 90, the built-in toy 0): the asset's azimuth a is the model's
    a + front_azimuth_deg. ``mvdream/camera_utils.py: get_camera``.

    Raises CameraError for cameras in a splat's frame: where their asset's front is cannot be seen from them.
    """
    if cams.frame == "splat":
        raise CameraError(
            "to_mvdream: the cameras stand in the frame of a splat's file, expected cameras around the asset; turn "
            "them with Orientation.from_splat_frame, or load them as cameras around the object"
        )
    if front_azimuth_deg % 360:
        cams = turn(cams, front_azimuth_deg)
    return normalize_translation(y_up_to_z_up(cams.c2w)).flatten(-2)


def to_camera_info(cams: Cameras, fov_side: FovSide = "vertical") -> list[dict[str, Any]]:
    """The host's LOAD3D_CAMERA dictionaries, one per camera, of plain Python numbers.

    Keys: position, target {x,y,z}; quaternion {x,y,z,w} (the camera's rotation, always written: a turntable in the
    host starts from it); fov; aspect; zoom 1; cameraType "perspective". The host's world is ours (y up); it shows a
    splat's frame turned by (x, −y, −z), and cameras that stand in it are turned alike. The target is the point of the
    view axis nearest to the origin, or one unit ahead where that lies behind the camera.

    fov_side: "vertical" as the host documents fov; "smaller" puts the angle of the picture's smaller side, as its splat
    renderer reads it. They differ for pictures higher than wide.
    """
    infos = []
    pose = cams.c2w.detach().cpu().double()
    if cams.frame == "splat":
        pose = Orientation().from_splat_frame(replace(cams, c2w=pose)).c2w
    fov = _smaller_side(cams.fov_y_deg.detach().cpu().double(), cams, fov_side, to_smaller=True)
    for matrix, angle, quaternion in zip(pose, fov, rotations.quaternions(pose[:, :3, :3]), strict=True):
        position, forward = matrix[:3, 3], -matrix[:3, 2]
        distance = -position @ forward
        target = position + (distance if distance > MIN_TARGET_DISTANCE else 1.0) * forward
        w, x, y, z = quaternion.tolist()
        infos.append(
            {
                "position": dict(zip("xyz", position.tolist(), strict=True)),
                "target": dict(zip("xyz", target.tolist(), strict=True)),
                "quaternion": {"x": x, "y": y, "z": z, "w": w},
                "fov": float(angle),
                "aspect": cams.width / cams.height,
                "zoom": 1.0,
                "cameraType": "perspective",
            }
        )
    return infos


def from_camera_info(
    info: Mapping[str, Any] | Sequence[Mapping[str, Any]], width: int, height: int, fov_side: FovSide = "vertical"
) -> Cameras:
    """Cameras from one or several of the host's camera_info dictionaries; poses in float32.

    With a quaternion its rotation is exact, roll included; without one the camera looks from position to target,
    upright. zoom scales the focal length; a missing fov is the host's 35°. fov_side as in `to_camera_info`.

    Raises CameraError for what is no camera_info, an orthographic camera, a missing or malformed position, a zero
    quaternion, a position that equals the target, or an angle that is no number or out of range.
    """
    infos = [info] if isinstance(info, Mapping) else list(info)
    poses, angles = [], []
    for i, entry in enumerate(infos):
        if not isinstance(entry, Mapping):
            raise CameraError(f"camera_info {i} is {entry!r:.60}, expected a dictionary with position and target")
        if str(entry.get("cameraType", "perspective")).lower().startswith("ortho"):
            raise CameraError(
                f"camera_info {i}: an orthographic camera cannot be rendered here; switch its cameraType to perspective"
            )
        position = _vector(entry, "position", i)
        if entry.get("quaternion"):
            rotation = _rotation_of(_vector(entry, "quaternion", i, "wxyz"), i)
        else:
            rotation = _look_at(position, _vector(entry, "target", i), i)
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3], pose[:3, 3] = rotation, position
        poses.append(pose)
        fov, zoom = (_number(entry, name, default) for name, default in (("fov", HOST_DEFAULT_FOV_DEG), ("zoom", 1.0)))
        if not (0 < fov < 180 and 0 < zoom < math.inf):
            raise CameraError(
                f"camera_info {i}: fov {entry.get('fov')!r} and zoom {entry.get('zoom')!r}, expected degrees between 0 "
                "and 180 and a zoom above 0"
            )
        angles.append(2 * math.degrees(math.atan(math.tan(math.radians(fov) / 2) / zoom)))
    if not poses:
        raise CameraError("from_camera_info: no camera_info was given, expected at least one")
    cams = Cameras(torch.stack(poses).float(), torch.tensor(angles, dtype=torch.float64), width, height)
    fov = _smaller_side(torch.tensor(angles, dtype=torch.float64), cams, fov_side, to_smaller=False)
    return Cameras(cams.c2w, fov, width, height)


def _matrices(rotation: Tensor, translation: Tensor) -> Tensor:  # (C,3,3), (C,3) -> (C,4,4)
    last_row = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=rotation.dtype, device=rotation.device)
    return torch.cat([torch.cat([rotation, translation[..., None]], -1), last_row.expand(len(rotation), 1, 4)], 1)


def _smaller_side(fov_deg: Tensor, cams: Cameras, fov_side: FovSide, to_smaller: bool) -> Tensor:
    """Angles of the vertical as angles of the smaller side, or back; unchanged for "vertical" and wide pictures."""
    if fov_side not in ("vertical", "smaller"):
        raise CameraError(f"fov_side is {fov_side!r}, expected 'vertical' or 'smaller'")
    if fov_side == "vertical" or cams.width >= cams.height:
        return fov_deg
    ratio = cams.width / cams.height if to_smaller else cams.height / cams.width
    return 2 * torch.rad2deg(torch.atan(ratio * torch.tan(torch.deg2rad(fov_deg) / 2)))


def _number(entry: Mapping[str, Any], name: str, default: float) -> float:
    """A number of a camera_info, NaN for what is none; the host takes 0 and nothing for the default."""
    try:
        return float(entry.get(name) or default)
    except (TypeError, ValueError):
        return math.nan


def _vector(entry: Mapping[str, Any], name: str, index: int, keys: str = "xyz") -> Tensor:
    try:
        values = [float(entry[name][key]) for key in keys]
    except (KeyError, TypeError, ValueError) as error:
        raise CameraError(
            f"camera_info {index}: {name} is {entry.get(name)!r}, expected numbers {', '.join(sorted(keys))}"
        ) from error
    return torch.tensor(values, dtype=torch.float64)


def _look_at(position: Tensor, target: Tensor, index: int) -> Tensor:
    """Rotation (right, up, backward) of an upright camera."""
    backward = position - target
    distance = backward.norm()
    if distance < MIN_TARGET_DISTANCE:
        raise CameraError(
            f"camera_info {index}: position and target are the same point, so it looks nowhere; move one of them"
        )
    backward = backward / distance
    up = torch.tensor([0.0, 1.0, 0.0], dtype=backward.dtype)
    right = torch.linalg.cross(up, backward)
    if right.norm() < MIN_TARGET_DISTANCE:  # straight up or down: keep the horizon of azimuth 0, as `orbit` does
        right = torch.tensor([1.0, 0.0, 0.0], dtype=backward.dtype)
    right = right / right.norm()
    return torch.stack([right, torch.linalg.cross(backward, right), backward], dim=-1)


def _rotation_of(quaternion: Tensor, index: int) -> Tensor:  # (4,) wxyz -> (3,3)
    norm = quaternion.norm()
    if not (torch.isfinite(norm) and norm > MIN_TARGET_DISTANCE):
        raise CameraError(f"camera_info {index}: the quaternion {quaternion.tolist()} (w,x,y,z) has no direction")
    return rotations.rotation_matrices(quaternion)
