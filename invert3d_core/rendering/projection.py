"""From Gaussians in space to Gaussians on the screen: the EWA projection of 3D Gaussian splatting in plain torch.

Written from the equations of "3D Gaussian Splatting for Real-Time Radiance Field Rendering" (Kerbl et al., 2023) and
"EWA Splatting" (Zwicker et al., 2002). Works in float32 and float64, on any device, differentiable in every input.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..splats import spherical_harmonics

BLUR = 0.3  # px² added to the screen covariance: a splat is never smaller than about a pixel
FRUSTUM_MARGIN = 1.3  # of tan(fov/2), where the projection is linearised at the latest
BOUND_SLACK = 1e-3  # relative, and in pixels: rounding must not cut a pixel that reaches the least alpha

# columns of a row: what the compositing needs to know about one splat in one view
MEAN, FACTOR, OPACITY, COLOR, DEPTH = slice(0, 2), slice(2, 5), 5, slice(6, 9), 9
COLUMNS = 10


class Limits(NamedTuple):
    """The thresholds of compositing; the defaults are those of 3D Gaussian splatting.

    alpha_max: no splat covers more than this. alpha_min: less than this is skipped. transmittance_min: compositing
    stops before the splat that would let less light than this through. 0 turns the latter two off.
    """

    alpha_max: float = 0.99
    alpha_min: float = 1 / 255
    transmittance_min: float = 1e-4


class Scene(NamedTuple):
    """Splats and cameras as the tensors that gradients flow to."""

    positions: Tensor  # (N,3)
    scales: Tensor  # (N,3)
    rotations: Tensor  # (N,4) wxyz
    opacities: Tensor  # (N,1)
    sh: Tensor  # (N,K,3)
    viewmats: Tensor  # (C,4,4) OpenCV world-to-camera
    focal: Tensor  # (C,) pixels
    centers: Tensor  # (C,3) camera positions


class Frame(NamedTuple):
    """What stays constant while a scene is drawn."""

    width: int
    height: int
    sh_degree: int
    near: float
    limits: Limits


class Visible(NamedTuple):
    """The V (view, splat) combinations that reach a picture, nearest first over all views."""

    view: Tensor  # (V,)
    splat: Tensor  # (V,)
    bounds: Tensor  # (V,4) int: first column, first row, last column, last row of the pixels that can be reached


def select_visible(scene: Scene, frame: Frame) -> tuple[Visible, Tensor]:
    """The combinations that can colour a pixel, and their rows (V,10); without gradients."""
    depths = (scene.positions[:, None] * scene.viewmats[:, 2, :3]).sum(-1) + scene.viewmats[:, 2, 3]  # (N,C)
    opaque = scene.opacities.reshape(-1, 1) >= max(frame.limits.alpha_min, torch.finfo(depths.dtype).tiny)
    splat, view = ((depths > frame.near) & opaque).nonzero(as_tuple=True)
    geometry, cov_xx, cov_yy = _geometry(scene, frame, view, splat)

    opacities = geometry[:, OPACITY]
    if frame.limits.alpha_min > 0:
        reach = (2 * (opacities / frame.limits.alpha_min).log().clamp_min(0)).sqrt()[:, None]  # in standard deviations
    else:
        reach = torch.full_like(opacities, math.inf)[:, None]
    half = reach * torch.stack([cov_xx, cov_yy], -1).sqrt() * (1 + BOUND_SLACK) + BOUND_SLACK
    size = torch.tensor([frame.width, frame.height], dtype=half.dtype, device=half.device)
    first = (geometry[:, MEAN] - half - 0.5).ceil().clamp_min(0)
    last = torch.minimum((geometry[:, MEAN] + half - 0.5).floor(), size - 1)
    keep = (first <= last).all(-1) & geometry[:, : COLOR.start].isfinite().all(-1)

    keep = keep.nonzero()[:, 0]
    keep = keep[_ascending(geometry[keep, DEPTH])]
    bounds = torch.cat([first[keep], last[keep]], -1).int()
    visible = Visible(view[keep], splat[keep], bounds)
    rows = geometry[keep]
    rows[:, COLOR] = _colors(scene, frame, visible)
    return visible, rows


def project_visible(scene: Scene, frame: Frame, visible: Visible) -> Tensor:
    """The same rows (V,10) as those of `select_visible`, with gradients."""
    geometry, _, _ = _geometry(scene, frame, visible.view, visible.splat)
    colors = _colors(scene, frame, visible)
    return torch.cat([geometry[:, : COLOR.start], colors, geometry[:, DEPTH:]], -1)


def _geometry(scene: Scene, frame: Frame, view: Tensor, splat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (V,10) with zeros for the colour, and the variances (V,), (V,) along x and y on the screen in px².

    The falloff of a splat around its mean is exp(−u² − v²) with u = f0 dx + f1 dy and v = f2 dy: the Cholesky factor of
    half the inverse screen covariance. Unlike a dx² + 2 b dx dy + c dy² it does not cancel for long thin splats.
    """
    position = scene.positions.index_select(0, splat)
    world_to_camera = scene.viewmats[:, :3].index_select(0, view)  # (V,3,4)
    rotation = world_to_camera[:, :, :3]
    x, y, z = ((rotation * position[:, None]).sum(-1) + world_to_camera[:, :, 3]).unbind(-1)
    focal = scene.focal.index_select(0, view)
    x_ratio, y_ratio = x / z, y / z
    mean_x = focal * x_ratio + frame.width / 2
    mean_y = focal * y_ratio + frame.height / 2

    limit_x, limit_y = (FRUSTUM_MARGIN * side / 2 / focal.detach() for side in (frame.width, frame.height))
    x_ratio = torch.minimum(torch.maximum(x_ratio, -limit_x), limit_x)
    y_ratio = torch.minimum(torch.maximum(y_ratio, -limit_y), limit_y)
    ratios = torch.stack([x_ratio, y_ratio], -1)
    jacobian = (focal / z)[:, None, None] * (rotation[:, :2] - ratios[:, :, None] * rotation[:, 2:])  # (V,2,3)
    axes = _rotation_matrices(scene.rotations.index_select(0, splat)) * scene.scales.index_select(0, splat)[:, None]
    # (V,3) each; the screen covariance is their Gram matrix. No matrix products: on a GPU they may be TF32.
    spread_x, spread_y = (jacobian[:, :, :, None] * axes[:, None]).sum(2).unbind(1)

    plain_xx, plain_yy = spread_x.square().sum(-1), spread_y.square().sum(-1)
    cov_xx, cov_yy, cov_xy = plain_xx + BLUR, plain_yy + BLUR, (spread_x * spread_y).sum(-1)
    # The determinant of the Gram matrix by Lagrange's identity: no cancellation.
    determinant = torch.linalg.cross(spread_x, spread_y).square().sum(-1) + BLUR * (plain_xx + plain_yy) + BLUR**2
    f0 = (cov_yy / (2 * determinant)).sqrt()
    f1 = -f0 * cov_xy / cov_yy
    f2 = (2 * cov_yy).rsqrt()
    opacity = scene.opacities.reshape(-1).index_select(0, splat)
    zero = torch.zeros_like(z)
    return torch.stack([mean_x, mean_y, f0, f1, f2, opacity, zero, zero, zero, z], -1), cov_xx, cov_yy


def _colors(scene: Scene, frame: Frame, visible: Visible) -> Tensor:  # (V,3)
    """max(0, SH + 0.5) along the direction from the camera to the splat."""
    toward = scene.positions.index_select(0, visible.splat) - scene.centers.index_select(0, visible.view)
    directions = torch.nn.functional.normalize(toward, dim=-1)
    sh = scene.sh[:, : (frame.sh_degree + 1) ** 2].index_select(0, visible.splat)
    return (spherical_harmonics.evaluate(sh, directions, frame.sh_degree) + 0.5).clamp_min(0)


def _rotation_matrices(quaternions: Tensor) -> Tensor:  # (V,4) wxyz, any length -> (V,3,3)
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = (
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def _ascending(depths: Tensor) -> Tensor:
    """The order of positive numbers, equal ones as they come. As whole numbers their bits sort the same, but faster."""
    bits = torch.int32 if depths.dtype == torch.float32 else torch.int64
    return torch.argsort(depths.contiguous().view(bits), stable=True)
