"""Some of the splats: by what they show, and by where they are.

The questions (`inside_box`, …) answer with a mask (N,) that `select` takes, so that ``~`` inverts and ``&`` and ``|``
combine them. A splat is where its centre is.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..cameras import Cameras
from ..cameras.conversions import to_intrinsics, to_viewmats
from .gaussians import GaussianSplats

Vector = Sequence[float] | Tensor


def select(
    splats: GaussianSplats,
    chosen: Tensor,  # (N,) bool, or (M,) indices
) -> GaussianSplats:
    """The chosen splats: those where a mask (N,) is true, or those with the given indices (M,); differentiable.

    Raises ValueError for a mask of another length.
    """
    if chosen.dtype == torch.bool and chosen.shape != (len(splats),):
        raise ValueError(
            f"select: the mask has shape {tuple(chosen.shape)}, expected one value per splat: {len(splats)}"
        )
    return replace(
        splats,
        positions=splats.positions[chosen],
        scales=splats.scales[chosen],
        rotations=splats.rotations[chosen],
        opacities=splats.opacities[chosen],
        sh=splats.sh[chosen],
        check_values=False,
    )


def coverage(splats: GaussianSplats) -> Tensor:  # (N,)
    """What each splat covers, (N,), scene units squared: its opacity times the product of its two largest scales.

    That is, up to 2π, the integral of its alpha over a view of its broad side.
    """
    largest = splats.scales.topk(2, dim=1).values  # (N,2)
    return splats.opacities[:, 0] * largest[:, 0] * largest[:, 1]


def most_visible(splats: GaussianSplats, count: int) -> GaussianSplats:
    """The ``count`` splats that cover most, in the order they had; the same splats where there are no more than that.

    What a splat covers is its `coverage`. Raises ValueError when count is below 1.
    """
    if count < 1:
        raise ValueError(f"most_visible: count is {count}, expected at least 1 splat")
    if len(splats) <= count:
        return splats
    kept = coverage(splats).argsort(descending=True, stable=True)[:count].sort().values
    return select(splats, kept)


def inside_box(
    splats: GaussianSplats,
    center: Vector,  # (3,)
    size: Vector,  # (3,)
    rotation: Tensor | None = None,  # (3,3)
) -> Tensor:  # (N,) bool
    """Which splats lie in a box (its faces included): a mask (N,).

    center: its middle; size: its edges, scene units, ≥ 0. rotation: from the box's own axes to the scene's; None: none.
    Raises ValueError for a size that is negative or not three numbers.
    """
    return (_in_units_of(splats, center, size, rotation, "inside_box").abs() <= 1).all(1)


def inside_ellipsoid(
    splats: GaussianSplats,
    center: Vector,  # (3,)
    size: Vector,  # (3,)
    rotation: Tensor | None = None,  # (3,3)
) -> Tensor:  # (N,) bool
    """Which splats lie in an ellipsoid (its surface included), a sphere where the three sizes are equal: a mask (N,).

    center: its middle; size: its diameters, scene units, ≥ 0. rotation: from its own axes to the scene's; None: none.
    Raises ValueError for a size that is negative or not three numbers.
    """
    return _in_units_of(splats, center, size, rotation, "inside_ellipsoid").square().sum(1) <= 1


def inside_view(splats: GaussianSplats, cams: Cameras, near: float = 0.0, far: float = math.inf) -> Tensor:  # (N,) bool
    """Which splats the cameras' pictures hold, hidden ones included: a mask (N,), true where any camera's does.

    cams: in the splats' own frame (`Orientation.into_splat_frame`). near, far: distances along the view axis, scene
    units, both included; what lies at the camera or behind it is in no view.
    Raises ValueError unless 0 ≤ near ≤ far.
    """
    if not 0 <= near <= far:
        raise ValueError(f"inside_view: near is {near} and far is {far}, expected 0 ≤ near ≤ far")
    precise = cams.to("cpu", torch.float64)
    viewmats, intrinsics = to_viewmats(precise).to(splats.positions), to_intrinsics(precise).to(splats.positions)
    seen = torch.zeros(len(splats), dtype=torch.bool, device=splats.device)
    for view, lens in zip(viewmats, intrinsics, strict=True):
        x, y, z = (splats.positions.detach() @ view[:3, :3].T + view[:3, 3]).unbind(1)
        column, row = x * lens[0, 0] + z * lens[0, 2], y * lens[1, 1] + z * lens[1, 2]  # pixels times depth
        across, down = (column >= 0) & (column <= z * cams.width), (row >= 0) & (row <= z * cams.height)
        seen |= across & down & (z > 0) & (z >= near) & (z <= far)
    return seen


def _in_units_of(
    splats: GaussianSplats, center: Vector, size: Vector, rotation: Tensor | None, caller: str
) -> Tensor:  # (N,3)
    """Positions in a body's own axes, from −1 to 1 inside along each."""
    middle = torch.as_tensor(center).to(splats.positions)
    half = torch.as_tensor(size).to(splats.positions) / 2
    if middle.shape != (3,) or half.shape != (3,) or not bool((half >= 0).all()):
        raise ValueError(
            f"{caller}: center {center} and size {size}; expected three numbers each, and no negative size"
        )
    offsets = splats.positions.detach() - middle
    if rotation is not None:
        offsets = offsets @ rotation.to(offsets)  # rows: the transpose turns back
    # A side of 0 holds only what lies exactly on it: 0/0 must count as inside, x/0 as outside.
    return torch.where(offsets == 0, 0, offsets / half)
