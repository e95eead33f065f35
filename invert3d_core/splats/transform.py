"""Splats moved, turned and scaled as a whole, with their view-dependent colours."""

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ..cameras import Orientation, fit_sphere
from ..cameras.orbits import VISIBLE_OPACITY, weighted_quantile
from ..rotations import multiply, quaternions, rotation_matrices
from . import spherical_harmonics
from .gaussians import GaussianSplats
from .selection import Vector

ROTATION_TOLERANCE = 1e-3  # on R Rᵀ = 1
GROUND_REACH = 1.1  # radii of the object's sphere, which may leave out a pointed foot
GROUND_SHARE = 0.001  # of the opacity may lie below the ground: a few splats always stick out


def transform(
    splats: GaussianSplats,
    rotation: Tensor | None = None,  # (3,3)
    translation: Vector = (0.0, 0.0, 0.0),  # (3,)
    scale: float | Tensor = 1.0,
    center: Vector = (0.0, 0.0, 0.0),  # (3,)
) -> GaussianSplats:
    """The splats after a similarity: p becomes scale · R (p − center) + center + translation.

    rotation: (3,3) R, None for none; translation and center in scene units; scale > 0. The splats' own axes, sizes and
    spherical harmonics follow (`spherical_harmonics.rotate`), so that a camera that moves along sees the same picture.
    The comment stays: what it says of up and front is said of the frame, in which the splats are now turned.
    Differentiable in the splats and in the motion.
    Raises ValueError for a matrix that is not a rotation, a scale that is not positive, and for a translation or center
    that is not three finite numbers.
    """
    factor = float(torch.as_tensor(scale).detach())
    if not (factor > 0 and math.isfinite(factor)):
        raise ValueError(f"transform: scale is {factor:g}, expected a positive number")
    pivot, shift = (torch.as_tensor(value).to(splats.positions) for value in (center, translation))
    if not (pivot.shape == shift.shape == (3,) and bool((pivot + shift).detach().isfinite().all())):
        raise ValueError(
            f"transform: translation {translation} and center {center}; expected three finite numbers each"
        )
    offsets, rotations, sh = splats.positions - pivot, splats.rotations, splats.sh
    if rotation is not None:
        check_rotation(rotation, "transform")
        right, up, back = rotation.to(offsets).unbind(1)
        # Written out: some settings of a GPU's matrix products would blunt it.
        offsets = offsets[:, :1] * right + offsets[:, 1:2] * up + offsets[:, 2:] * back
        rotations = multiply(quaternions(rotation.cpu().double()).to(rotations).expand_as(rotations), rotations)
        sh = spherical_harmonics.rotate(sh, rotation)
    return replace(
        splats,
        positions=offsets * scale + (pivot + shift),  # far from the origin one may undo the other
        scales=splats.scales * scale,
        rotations=rotations,
        sh=sh,
        check_values=False,
    )


def normalize(
    splats: GaussianSplats,
    radius: float | None = 1.0,
    place: Literal["center", "ground", "keep"] = "center",
    orientation: Orientation | None = None,
    target: Orientation | None = None,
) -> GaussianSplats:
    """The splats brought to a common size, place and stance.

    radius: of the object afterwards, in scene units (`cameras.fit_sphere`: far floaters do not count); None keeps its
    size. place: "center" puts the object's middle at the origin; "ground" puts it above the origin and stands it on the
    plane through the origin that up is perpendicular to; "keep" scales and turns about the origin.
    orientation: how the asset stands; None: as the comment states, else the default. target: how it shall stand; None
    leaves it. Splats are turned only for a target, and then the comment states the new axes.

    Differentiable in the splats; the sphere is taken as given. Raises ValueError for a radius that is not positive,
    for another place and for splats without extent that shall have a radius, and CameraError when there are no splats.
    """
    if radius is not None and not (radius > 0 and math.isfinite(radius)):
        raise ValueError(f"normalize: radius is {radius}, expected a positive number or None")
    if place not in ("center", "ground", "keep"):
        raise ValueError(f"normalize: place is {place!r}, expected 'center', 'ground' or 'keep'")
    orientation = orientation or Orientation.stated_or_usual(splats.comment)
    sphere = fit_sphere(splats)
    if radius is not None and not sphere.radius > 0:
        raise ValueError("normalize: the object is a single point, which has no radius to change; keep its size")
    up = orientation.matrix()[:, 1]  # float64, as the file has it
    if place == "keep":
        anchor = torch.zeros(3, dtype=torch.float64)
    else:
        anchor = sphere.center.double()
        if place == "ground":
            anchor = anchor + (_lowest(splats, up, sphere.center, sphere.radius) - anchor @ up) * up
    turn = None if target is None else target.matrix() @ orientation.matrix().T
    scale = 1.0 if radius is None else radius / sphere.radius
    moved = transform(splats, turn, -anchor, scale, anchor)
    if target is None:
        return moved
    return replace(moved, comment=target.stated_in(splats.comment), check_values=False)


def check_rotation(rotation: Tensor, caller: str) -> None:
    """ValueError unless a matrix (3,3) is a rotation: orthonormal, and not a mirror."""
    matrix = rotation.detach().cpu().double()
    if matrix.shape != (3, 3):
        raise ValueError(f"{caller}: the rotation has shape {tuple(matrix.shape)}, expected (3,3)")
    error = float((matrix @ matrix.T - torch.eye(3, dtype=torch.float64)).abs().max())
    if not error <= ROTATION_TOLERANCE or float(torch.linalg.det(matrix)) < 0:
        raise ValueError(
            f"{caller}: the matrix is not a rotation (off by {error:.2g}, determinant "
            f"{float(torch.linalg.det(matrix)):.3g}); take scale and mirroring out of it first"
        )


@torch.no_grad()
def _lowest(splats: GaussianSplats, up: Tensor, center: Tensor, radius: float) -> Tensor:
    """The height along up of the object's lowest part, one standard deviation of the splats included; a CPU scalar."""
    positions, axis = splats.positions, up.to(splats.positions)
    weights = splats.opacities[:, 0] * (splats.opacities[:, 0] >= VISIBLE_OPACITY)
    weights = weights * ((positions - center.to(positions)).norm(dim=1) <= GROUND_REACH * radius)
    if not bool((weights > 0).any()):
        weights = torch.ones_like(weights)
    own_axes = torch.einsum("nij,i->nj", rotation_matrices(splats.rotations), axis)  # up as each splat sees it
    heights = positions @ axis - (own_axes * splats.scales).norm(dim=1)
    return weighted_quantile(heights.cpu(), weights.cpu(), GROUND_SHARE).double()
