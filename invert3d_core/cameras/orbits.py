"""Camera rigs around an asset, and how far away they stand to frame it."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..errors import CameraError
from .cameras import Cameras

if TYPE_CHECKING:
    from ..splats import GaussianSplats

Numbers = float | Sequence[float] | Tensor

FILL = 0.875  # of the picture's smaller side by the bounding sphere; MVDream's own recipe lies between 0.8 and 1
VISIBLE_OPACITY = 0.05  # below it a splat alone does not show
CORE_SHARE = 0.9  # of the opacity, that belongs to the object even if something floats far away
SHELL_GROWTH, SHELL_SHARE = 1.25, 0.002  # what lies beyond the core belongs to it as long as shells are populated
RADIUS_SHARE = 0.995  # of the object's opacity that the sphere holds
NEAR, NEAR_SHARE, NEAREST = 0.2, 0.05, 1e-4  # of 3D Gaussian splatting, scene units; of the distance; at the least


def azimuths(count: int, start_deg: float = 0.0, span_deg: float = 360.0) -> Tensor:
    """``count`` evenly spaced azimuths (count,), float64 degrees: start + i·span/count, the end left out.

    Raises CameraError when count is below 1.
    """
    if count < 1:
        raise CameraError(f"azimuths: count is {count}, expected at least 1 camera")
    return start_deg + torch.arange(count, dtype=torch.float64) * (span_deg / count)


def orbit(
    azimuths_deg: Numbers,
    elevations_deg: Numbers,
    radius: Numbers,
    fov_y_deg: Numbers,
    width: int,
    height: int,
    target: Sequence[float] | Tensor = (0.0, 0.0, 0.0),
) -> Cameras:
    """Cameras on a sphere around ``target``, looking at it, upright (y up).

    Azimuth 0 = front (+z), growing towards +x; elevation in [−90, 90], positive = above; radius in world units, > 0;
    fov_y_deg vertical. Each is a number, used for all, or a sequence of C, one per camera. target: (3,) or (C,3).
    At the poles the camera keeps the horizon of its azimuth. Computed in float64, returned in float32.

    position = target + r (cos e sin a, sin e, cos e cos a); backward = towards the camera; right = up × backward.
    Raises CameraError when lengths differ, an elevation or radius is out of range, and as `Cameras`.
    """
    columns = [torch.as_tensor(value).detach().cpu().double() for value in (azimuths_deg, elevations_deg, radius)]
    fov = torch.as_tensor(fov_y_deg).detach().cpu().double()
    center = torch.as_tensor(target).detach().cpu().double()
    lengths = {value.numel() for value in (*columns, fov) if value.ndim}
    if center.ndim == 2:
        lengths.add(len(center))
    count = max(lengths, default=1)
    if any(value.ndim > 1 for value in (*columns, fov)) or lengths - {1, count} or center.shape[-1:] != (3,):
        raise CameraError(
            f"orbit: azimuths {tuple(columns[0].shape)}, elevations {tuple(columns[1].shape)}, radius "
            f"{tuple(columns[2].shape)}, fov {tuple(fov.shape)} and target {tuple(center.shape)} do not go together; "
            "expected numbers or sequences of one length, and a target (3,) or (C,3)"
        )
    azimuth, elevation, distance = (value.reshape(-1).expand(count) for value in columns)
    if not (elevation.abs() <= 90).all():
        raise CameraError(
            f"orbit: elevation {float(elevation[elevation.abs().argmax()]):g}° is out of range, "
            "expected −90 (below) to 90 (above)"
        )
    if not (distance > 0).all():
        raise CameraError(f"orbit: radius {float(distance.min()):g} is out of range, expected a positive distance")
    a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    zero = torch.zeros_like(a)
    backward = torch.stack([e.cos() * a.sin(), e.sin(), e.cos() * a.cos()], -1)
    right = torch.stack([a.cos(), zero, -a.sin()], -1)  # up × backward in closed form: defined at the poles too
    up = torch.linalg.cross(backward, right)
    c2w = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    c2w[:, :3] = torch.stack([right, up, backward, center + distance[:, None] * backward], -1)
    return Cameras(c2w.float(), fov.reshape(-1).expand(count).float(), width, height)


def turn(cams: Cameras, azimuth_deg: float) -> Cameras:
    """The cameras rotated about the world's up axis: what stood at azimuth a stands at a + azimuth_deg.

    A model that believes the front of things to be at azimuth F sees an asset's view from azimuth a as one from a + F:
    ``turn(cams, F)`` before `conversions.to_mvdream`, ``turn(cams, -F)`` on the way back.
    """
    angle = math.radians(azimuth_deg % 360)
    sin, cos = math.sin(angle), math.cos(angle)
    return cams.moved(torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]], dtype=torch.float64))


class Sphere(NamedTuple):
    """A bounding sphere: center (3,) on the CPU in float32, and radius, in the units of the splats."""

    center: Tensor
    radius: float


def fit_sphere(splats: "GaussianSplats") -> Sphere:
    """A bounding sphere (center, radius) of what one sees of a splat, for framing it.

    Splats with an opacity below 0.05 do not count; the others count by their opacity. The object is the nine tenths of
    that weight around its median, plus everything around them until a shell of the relative thickness 1.25 is all but
    empty: far floaters are left out however far they are, thin long parts stay in. The centre is the middle of the
    object's smallest ball (Bădoiu and Clarkson's iteration); the radius holds 99.5 % of its weight, one standard
    deviation of the splats included. When no splat is visible all of them count alike.

    Raises CameraError when there are no splats.
    """
    positions = splats.positions.detach().float().cpu()
    if len(positions) == 0:
        raise CameraError("fit_sphere: the splat holds no Gaussians, so there is nothing to frame; load another file")
    weights = splats.opacities.detach().float().cpu().reshape(-1)
    reach = splats.scales.detach().float().cpu().amax(-1)
    visible = weights >= VISIBLE_OPACITY
    if not visible.any():
        visible, weights = torch.ones_like(visible), torch.ones_like(weights)
    positions, weights, reach = positions[visible], weights[visible], reach[visible]

    median = torch.stack([weighted_quantile(positions[:, axis], weights, 0.5) for axis in range(3)])
    distances = (positions - median).norm(dim=-1)
    inside = distances <= _populated_radius(distances, weights)
    positions, weights, reach = positions[inside], weights[inside], reach[inside]

    center = (positions.amin(0) + positions.amax(0)) / 2
    for i in range(1, 65):
        farthest = positions[(positions - center).square().sum(-1).argmax()]
        center = center + (farthest - center) / (i + 1)
    radius = weighted_quantile((positions - center).norm(dim=-1) + reach, weights, RADIUS_SHARE)
    return Sphere(center, float(radius))


def fit_radius(sphere_radius: float, fov_y_deg: float, width: int, height: int, fill: float = FILL) -> float:
    """The distance from which a sphere's silhouette spans ``fill`` of the picture's smaller side.

    sphere_radius in world units, > 0; fov_y_deg vertical, in (0, 180); fill > 0 (1 touches the border). A camera at
    distance D sees the sphere under the half angle asin(R/D), so D = R / sin(atan(fill · tan(half the smaller fov))).
    Raises CameraError for values out of range.
    """
    if not (sphere_radius > 0 and math.isfinite(sphere_radius)):
        raise CameraError(f"fit_radius: the sphere's radius is {sphere_radius}, expected a positive number")
    if not 0 < fov_y_deg < 180:
        raise CameraError(f"fit_radius: fov_y_deg is {fov_y_deg}, expected degrees between 0 and 180 (exclusive)")
    if fill <= 0 or width < 1 or height < 1:
        raise CameraError(
            f"fit_radius: fill {fill}, width {width}, height {height}; expected a positive share and positive pixels"
        )
    half = math.tan(math.radians(fov_y_deg) / 2) * min(1.0, width / height)
    return sphere_radius / math.sin(math.atan(fill * half))


def near_plane(cams: Cameras, target: Tensor) -> float:
    """Where views begin, as a distance along the view axis in scene units: 0.2, but well before a small object.

    target: (3,) what the cameras look at, in their frame. 0.2 is what 3D Gaussian splatting takes for scenes; a thing
    smaller than a hand would be cut away by it, so that it is a twentieth of the least distance to the target at most.
    """
    distance = float((cams.centers.detach().cpu() - target.detach().cpu()).norm(dim=-1).min())
    return max(NEAREST, min(NEAR, NEAR_SHARE * distance))


def weighted_quantile(values: Tensor, weights: Tensor, share: float) -> Tensor:  # (N,), (N,) -> ()
    """The smallest value at or below which ``share`` of the weight lies."""
    ordered, order = values.sort()
    cumulative = weights[order].double().cumsum(0)
    index = torch.searchsorted(cumulative, share * cumulative[-1])
    return ordered[index.clamp_max(len(ordered) - 1)]


def _populated_radius(distances: Tensor, weights: Tensor) -> float:
    """The distance at which the object around 0 ends: shells beyond the core count as long as they are populated."""
    ordered, order = distances.sort()
    cumulative = weights[order].double().cumsum(0)
    radius = float(weighted_quantile(distances, weights, CORE_SHARE))
    while radius < float(ordered[-1]):
        edges = torch.tensor([radius, radius * SHELL_GROWTH], dtype=ordered.dtype)
        counts = torch.searchsorted(ordered, edges, right=True)
        held = [float(cumulative[i - 1]) if i > 0 else 0.0 for i in counts.tolist()]
        if held[1] - held[0] < SHELL_SHARE * float(cumulative[-1]):
            break
        radius *= SHELL_GROWTH
    return radius
