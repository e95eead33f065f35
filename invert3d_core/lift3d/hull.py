"""Where an object is before anything is fitted: the region that cameras look at, and the hull of its silhouettes."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras, Sphere
from ..cameras.conversions import to_intrinsics, to_viewmats
from ..errors import CameraError

COARSE, FINE = 40, 72  # cells per side of the grid that finds the object, and of the one that carves it
LEAST_CELLS = 64  # a hull of fewer is no object: silhouettes that do not fit together
LEAST_AGREEMENT = 0.5  # share of the views that a hull needs at least
LEAST_VIEWS = 0.5  # share of the views that must know of a cell for it to count


class Hull(NamedTuple):
    """The surface cells of a visual hull: centres (P,3), outward unit normals (P,3), and the side of a cell."""

    points: Tensor
    normals: Tensor
    spacing: float


def seen_region(cams: Cameras) -> Sphere:
    """The sphere (center on the CPU, radius) that the cameras look at: around the point nearest to all their axes.

    The radius is the largest from any camera to the border of its picture, at the centre's distance.
    Raises CameraError when the centre lies behind a camera, as in a room seen from within.
    """
    c2w, centers = cams.c2w.detach().cpu().double(), cams.centers.detach().cpu().double()
    axes = -c2w[:, :3, 2]
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None]  # (C,3,3)
    # The least-norm solution: with parallel axes the point of them that is nearest to the origin.
    center = torch.linalg.pinv(across.sum(0), rtol=1e-6) @ (across @ centers[:, :, None]).sum(0)[:, 0]
    distances = ((center - centers) * axes).sum(-1)
    if float(distances.min()) <= 0:
        i = int(distances.argmin())
        raise CameraError(
            f"The cameras do not look at one thing: what is in the middle of most lies behind camera {i}. Expected "
            "cameras around an object, each looking at it; look for poses in another convention."
        )
    fov = cams.fov_y_deg.detach().cpu().double()
    half = torch.tan(torch.deg2rad(fov) / 2) * max(1.0, cams.width / cams.height)
    return Sphere(center.float(), float((distances * half).max()))


def visual_hull(
    silhouettes: Tensor, cams: Cameras, region: Sphere, between: Callable[[], None] = lambda: None
) -> Hull | None:
    """The surface of the region's part that lies inside the silhouettes (C,H,W; bool); None when there is none.

    Where no cells lie inside all of them, the largest number of views counts in which some do, down to half of them:
    silhouettes of generated views do not fit together exactly. A view whose silhouette is cut off by its border carves
    nothing beyond it. between: called between views.
    """
    device = silhouettes.device
    # A pixel more: thin parts must not fall between the cells.
    grown = F.max_pool2d(silhouettes[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0
    low = region.center.to(device) - region.radius
    coarse = _agreement(grown, cams, low, torch.full((3,), 2 * region.radius, device=device), COARSE, between)
    level = _agreeing(coarse, len(cams))
    if level is None:
        return None
    cells = (coarse >= level).nonzero()  # (P,3)
    side = 2 * region.radius / COARSE
    first, last = low + (cells.amin(0) - 1) * side, low + (cells.amax(0) + 2) * side
    size = (last - first).amax().expand(3)  # a cube, so that cells are cubes
    low = (first + last) / 2 - size / 2
    fine = _agreement(grown, cams, low, size, FINE, between)
    level = _agreeing(fine, len(cams))
    if level is None:
        return None
    return _surface(fine >= level, low, float(size[0]) / FINE)


def _agreement(
    silhouettes: Tensor, cams: Cameras, low: Tensor, size: Tensor, cells: int, between: Callable[[], None]
) -> Tensor:  # (R,R,R)
    """For each cell the share of the views that know of it in which it lies inside the silhouette."""
    device = silhouettes.device
    steps = (torch.arange(cells, device=device) + 0.5) / cells
    grid = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    points = low + size * grid
    precise = cams.to("cpu", torch.float64)
    viewmats, focals = to_viewmats(precise).to(device, torch.float32), to_intrinsics(precise)[:, 1, 1].tolist()
    inside = torch.zeros(len(points), device=device)
    seen = torch.zeros(len(points), device=device)
    for silhouette, viewmat, focal in zip(silhouettes, viewmats, focals, strict=True):
        pixel, shown = project(points, viewmat, focal, cams.width, cams.height)
        inside += silhouette[pixel[:, 1], pixel[:, 0]] & shown
        # A silhouette that keeps clear of the border has nothing beyond it.
        cut = silhouette[[0, -1]].any() | silhouette[:, [0, -1]].any()
        seen += shown | ~cut
        between()
    share = torch.where(seen >= max(1.0, LEAST_VIEWS * len(cams)), inside / seen.clamp_min(1), 0)
    return share.view(cells, cells, cells)


def project(points: Tensor, viewmat: Tensor, focal: float, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Columns and rows (P,2) of the pixels in which points (P,3) lie, and whether they lie in the picture (P,)."""
    # Elements, no matrix product: a GPU may do that in TF32.
    seen = (points[:, None] * viewmat[:3, :3]).sum(-1) + viewmat[:3, 3]
    depth = seen[:, 2]
    place = seen[:, :2] / depth.clamp_min(1e-6)[:, None] * focal
    pixel = (place + torch.tensor([width / 2, height / 2], device=points.device)).floor()
    limits = torch.tensor([width - 1, height - 1], device=points.device)
    shown = (depth > 1e-6) & ((pixel >= 0) & (pixel <= limits)).all(-1)
    return torch.minimum(pixel.clamp_min(0), limits).long(), shown


def _agreeing(share: Tensor, views: int) -> float | None:
    """The highest agreement that enough cells have; None when even half of the views do not agree on anything."""
    for agreeing in range(views, math.ceil(LEAST_AGREEMENT * views) - 1, -1):
        level = agreeing / views - 1e-6
        if int((share >= level).sum()) >= LEAST_CELLS:
            return level
    return None


def _surface(inside: Tensor, low: Tensor, spacing: float) -> Hull:
    """The cells (R,R,R; bool) with an empty neighbour, and where out is."""
    solid = F.pad(inside[None, None].float(), (1,) * 6)
    smooth = F.avg_pool3d(solid, 3, stride=1, padding=1)
    neighbours = torch.stack([solid.roll(step, axis) for axis in (2, 3, 4) for step in (1, -1)]).amin(0)
    outer = (solid > 0) & (neighbours == 0)
    slopes = [smooth.roll(1, axis) - smooth.roll(-1, axis) for axis in (2, 3, 4)]
    cells = outer[0, 0].nonzero()
    normals = torch.stack([slope[0, 0][tuple(cells.mT)] for slope in slopes], -1)
    return Hull(low + (cells - 1 + 0.5) * spacing, F.normalize(normals, dim=-1), spacing)
