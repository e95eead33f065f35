"""From Gaussians in space to Gaussians on the screen: the EWA projection of 3D Gaussian splatting in plain torch.

Written from the equations of "3D Gaussian Splatting for Real-Time Radiance Field Rendering" (Kerbl et al., 2023), "EWA
Splatting" (Zwicker et al., 2002) and, for the anti-aliased mode, "Mip-Splatting" (Yu et al., 2024). Works in float32
and float64, on any device, differentiable in every input. Splats are taken in chunks, with one number of many splats
lying side by side, so that a CPU computes in its cache.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..splats import spherical_harmonics
from .workers import Run

BLUR = 0.3  # px² added to the screen covariance: a splat is never smaller than about a pixel
FRUSTUM_MARGIN = 1.3  # of tan(fov/2), where the projection is linearised at the latest
BOUND_SLACK = 1e-3  # relative, and in pixels: rounding must not cut a pixel that reaches the least alpha
COMBINATIONS_AT_ONCE = {"cpu": 16_384, "other": 500_000}  # (view, splat) combinations projected together

# columns of a row: what the compositing needs to know about one splat in one view
MEAN, FACTOR, OPACITY, ONE, COLOR, DEPTH, NORMAL = slice(0, 2), slice(2, 5), 5, 6, slice(7, 10), 10, slice(11, 14)
VALUES = slice(ONE, None)  # what is blended: 1 for alpha, colour, depth, and the normal where one is asked for


class Limits(NamedTuple):
    """The thresholds of compositing; the defaults are those of 3D Gaussian splatting.

    alpha_max: no splat covers more than this. alpha_min: less than this is skipped. transmittance_min: compositing
    stops before the splat that would let less light than this through. 0 turns the latter two off.
    """

    alpha_max: float = 0.99
    alpha_min: float = 1 / 255
    transmittance_min: float = 1e-4


SPLAT_TENSORS = ("positions", "scales", "rotations", "opacities", "sh")
CAMERA_TENSORS = ("viewmats", "intrinsics", "centers")


class Scene(NamedTuple):
    """Splats and cameras as the tensors that gradients flow to."""

    positions: Tensor  # (N,3)
    scales: Tensor  # (N,3)
    rotations: Tensor  # (N,4) wxyz
    opacities: Tensor  # (N,1)
    sh: Tensor  # (N,K,3)
    viewmats: Tensor  # (C,4,4) OpenCV world-to-camera
    intrinsics: Tensor  # (C,3,3) OpenCV, the principal point in the middle
    centers: Tensor  # (C,3) camera positions

    @property
    def focal(self) -> Tensor:
        """(C,) pixels."""
        return self.intrinsics[:, 1, 1]

    def of_splats(self, splats: slice | Tensor) -> "Scene":
        """The same cameras and some of the splats."""
        chosen = {
            name: tensor[splats] if isinstance(splats, slice) else tensor.index_select(0, splats)
            for name, tensor in zip(SPLAT_TENSORS, self, strict=False)
        }
        return self._replace(**chosen)


class Frame(NamedTuple):
    """What stays constant while a scene is drawn.

    normals: whether rows carry a normal. antialiased: whether the opacity of a splat falls by as much as the blur
    spreads it.
    """

    width: int
    height: int
    sh_degree: int
    near: float
    limits: Limits
    normals: bool = False
    antialiased: bool = False


class Visible(NamedTuple):
    """The V (view, splat) combinations that reach a picture, nearest first over all views."""

    view: Tensor  # (V,)
    splat: Tensor  # (V,)
    bounds: Tensor  # (V,4) int: first column, first row, last column, last row of the pixels that can be reached


def select_visible(scene: Scene, frame: Frame, run: Run = map) -> tuple[Visible, Tensor]:
    """The combinations that can colour a pixel, and their rows (V,11), with normals (V,14); without gradients."""
    views, count = len(scene.viewmats), len(scene.positions)
    at_once = max(1, _at_once(scene) // max(1, views))
    chunks = [slice(start, start + at_once) for start in range(0, max(1, count), at_once)]
    found = list(run(lambda chunk: _select(scene.of_splats(chunk), frame, chunk.start), chunks))
    visible = Visible(*(torch.cat(parts) for parts in zip(*(visible for visible, _ in found), strict=True)))
    rows = torch.cat([rows for _, rows in found])
    order = _ascending(rows[:, DEPTH])
    return Visible(*(tensor.index_select(0, order) for tensor in visible)), rows.index_select(0, order)


def project_visible(part: Scene, frame: Frame, view: Tensor) -> Tensor:
    """The rows of V splats, each in its view (V,), as those of `select_visible`, with gradients."""
    rows, _, _ = _rows(part, frame, view)
    return rows


def chunks_of(scene: Scene, visible: Visible) -> Iterator[tuple[slice, Visible]]:
    """Where a bounded number of visible combinations lies, and which they are, until there are no more."""
    at_once = _at_once(scene)
    for start in range(0, len(visible.view), at_once):
        chunk = slice(start, start + at_once)
        yield chunk, Visible(*(tensor[chunk] for tensor in visible))


def _at_once(scene: Scene) -> int:
    return COMBINATIONS_AT_ONCE.get(scene.positions.device.type, COMBINATIONS_AT_ONCE["other"])


def _select(part: Scene, frame: Frame, first_splat: int) -> tuple[Visible, Tensor]:
    """`select_visible` for the splats from ``first_splat`` on, in their own order."""
    depths = (part.positions[:, None] * part.viewmats[:, 2, :3]).sum(-1) + part.viewmats[:, 2, 3]  # (N,C)
    least = max(frame.limits.alpha_min, torch.finfo(depths.dtype).tiny)
    splat, view = ((depths > frame.near) & (part.opacities.reshape(-1, 1) >= least)).nonzero(as_tuple=True)
    whole = len(part.viewmats) == 1 and len(splat) == len(part.positions)
    rows, cov_xx, cov_yy = _rows(part if whole else part.of_splats(splat), frame, view)

    opacities = rows[:, OPACITY]
    if frame.limits.alpha_min > 0:
        reach = (2 * (opacities / frame.limits.alpha_min).log().clamp_min(0)).sqrt()[:, None]  # in standard deviations
    else:
        reach = torch.full_like(opacities, math.inf)[:, None]
    half = reach * torch.stack([cov_xx, cov_yy], -1).sqrt() * (1 + BOUND_SLACK) + BOUND_SLACK
    size = torch.tensor([frame.width, frame.height], dtype=half.dtype, device=half.device)
    first = (rows[:, MEAN] - half - 0.5).ceil().clamp_min(0)
    last = torch.minimum((rows[:, MEAN] + half - 0.5).floor(), size - 1)
    geometry = rows[:, : COLOR.start]
    keep = (first <= last).all(-1) & geometry.isfinite().all(-1) & (opacities >= least)
    keep = keep.nonzero()[:, 0]
    bounds = torch.cat([first, last], -1).index_select(0, keep).int()
    return Visible(view[keep], splat[keep] + first_splat, bounds), rows.index_select(0, keep)


def _rows(part: Scene, frame: Frame, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of V splats, each in its view (V,), and the variances (V,), (V,) along x and y on the screen in px².

    The falloff of a splat around its mean is exp(−u² − v²) with u = f0 dx + f1 dy and v = f2 dy: the Cholesky factor of
    half the inverse screen covariance. Unlike a dx² + 2 b dx dy + c dy² it does not cancel for long thin splats.
    """
    one_view = len(part.viewmats) == 1  # then its numbers need not be repeated for every splat
    viewmats = part.viewmats[:, :3] if one_view else part.viewmats[:, :3].index_select(0, view)
    camera = viewmats.permute(1, 2, 0).contiguous()  # (3,4,V or 1)
    focal = part.focal if one_view else part.focal.index_select(0, view)
    positions = part.positions.T.contiguous()  # (3,V)
    x, y, z = (row[0] * positions[0] + row[1] * positions[1] + row[2] * positions[2] + row[3] for row in camera)
    x_ratio, y_ratio = x / z, y / z
    mean_x, mean_y = focal * x_ratio + frame.width / 2, focal * y_ratio + frame.height / 2

    limit_x, limit_y = (FRUSTUM_MARGIN * side / 2 / focal.detach() for side in (frame.width, frame.height))
    x_ratio = torch.minimum(torch.maximum(x_ratio, -limit_x), limit_x)
    y_ratio = torch.minimum(torch.maximum(y_ratio, -limit_y), limit_y)
    enlarged = focal / z
    jacobian_x = enlarged * (camera[0, :3] - x_ratio * camera[2, :3])  # (3,V)
    jacobian_y = enlarged * (camera[1, :3] - y_ratio * camera[2, :3])
    turned = _rotation_matrices(part.rotations.T)  # (3,3,V), columns are the axes
    axes = turned * part.scales.T
    # (3,V) each; the screen covariance is their Gram matrix. No matrix products: on a GPU they may be TF32.
    spread_x, spread_y = (j[0] * axes[0] + j[1] * axes[1] + j[2] * axes[2] for j in (jacobian_x, jacobian_y))

    plain_xx, plain_yy = spread_x.square().sum(0), spread_y.square().sum(0)
    cov_xx, cov_yy, cov_xy = plain_xx + BLUR, plain_yy + BLUR, (spread_x * spread_y).sum(0)
    # The determinant of the Gram matrix by Lagrange's identity: no cancellation.
    area = torch.linalg.cross(spread_x, spread_y, dim=0)
    determinant = area.square().sum(0) + BLUR * (plain_xx + plain_yy) + BLUR**2
    f0 = (cov_yy / (2 * determinant)).sqrt()
    f1 = -f0 * cov_xy / cov_yy
    f2 = (2 * cov_yy).rsqrt()
    opacity = part.opacities.reshape(-1)
    if frame.antialiased:  # √(determinant without blur / with blur): what a splat covers stays what it was
        opacity = opacity * torch.linalg.vector_norm(area, dim=0) * determinant.rsqrt()
    color = _colors(part, frame, view)
    columns = [mean_x, mean_y, f0, f1, f2, opacity, torch.ones_like(z), *color, z]
    if frame.normals:
        columns += _normals(turned, part.scales, camera, torch.stack([x, y, z]))
    return torch.stack(columns, -1), cov_xx, cov_yy


def _colors(part: Scene, frame: Frame, view: Tensor) -> list[Tensor]:  # three of (V,)
    """max(0, SH + 0.5) along the direction from the camera to the splat."""
    centers = part.centers if len(part.centers) == 1 else part.centers.index_select(0, view)
    directions = _unit((part.positions - centers).T.contiguous()).T
    values = spherical_harmonics.evaluate(part.sh[:, : (frame.sh_degree + 1) ** 2], directions, frame.sh_degree)
    return list((values + 0.5).clamp_min(0).unbind(-1))


def _normals(turned: Tensor, scales: Tensor, camera: Tensor, seen: Tensor) -> list[Tensor]:
    """The shortest axis of each splat, turned towards the camera, in its OpenGL space: three of (V,).

    turned: (3,3,V) the splats' axes as columns. scales: (V,3). camera: (3,4,V or 1). seen: (3,V) the splats in OpenCV
    camera space.
    """
    shortest = scales.argmin(-1).expand(3, 1, -1)
    axis = turned.gather(1, shortest)[:, 0]  # (3,V)
    x, y, z = (row[0] * axis[0] + row[1] * axis[1] + row[2] * axis[2] for row in camera)
    away = x * seen[0] + y * seen[1] + z * seen[2] > 0
    sign = torch.where(away, -1.0, 1.0).to(x.dtype)
    return [x * sign, -y * sign, -z * sign]


def normals_of(scene: Scene) -> Tensor:  # (C,N,3)
    """The normals that rows carry, for every splat in every view."""
    turned, positions = _rotation_matrices(scene.rotations.T), scene.positions.T
    found = []
    for viewmat in scene.viewmats:
        camera = viewmat[:3, :, None]
        seen = (camera[:, :3] * positions[None]).sum(1) + camera[:, 3]
        found.append(torch.stack(_normals(turned, scene.scales, camera, seen), -1))
    return torch.stack(found)


def _rotation_matrices(quaternions: Tensor) -> Tensor:  # (4,V) wxyz, any length -> (3,3,V)
    w, x, y, z = _unit(quaternions.contiguous())
    rows = (
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack(rows).unflatten(0, (3, 3))


def _unit(vectors: Tensor) -> Tensor:  # (D,V): along the first dimension; much faster so than by the library's norm
    squares = torch.stack([row * row for row in vectors]).sum(0)
    return vectors * squares.clamp_min(torch.finfo(vectors.dtype).tiny).rsqrt()


def _ascending(depths: Tensor) -> Tensor:
    """The order of positive numbers, equal ones as they come. As whole numbers their bits sort the same, but faster."""
    bits = torch.int32 if depths.dtype == torch.float32 else torch.int64
    return torch.argsort(depths.contiguous().view(bits), stable=True)
