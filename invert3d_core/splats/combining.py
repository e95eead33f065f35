"""Several splats as one, spherical harmonics of another degree, and all splats thicker or fainter at once."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from . import spherical_harmonics
from .gaussians import GaussianSplats


def merge(items: Sequence[GaussianSplats]) -> GaussianSplats:
    """All splats of several, in order, in one; differentiable.

    Lower degrees of spherical harmonics are raised with zeros to the highest. The device and the comment are the first
    one's: all must stand in one frame. Raises ValueError when there is none.
    """
    if not items:
        raise ValueError("merge: no splats were given, expected at least one")
    first = items[0]
    degree = max(item.degree for item in items)
    raised = [with_degree(item.to(first.device), degree) for item in items]
    return replace(
        first,
        positions=torch.cat([item.positions for item in raised]),
        scales=torch.cat([item.scales for item in raised]),
        rotations=torch.cat([item.rotations for item in raised]),
        opacities=torch.cat([item.opacities for item in raised]),
        sh=torch.cat([item.sh for item in raised]),
        check_values=False,
    )


def with_degree(splats: GaussianSplats, degree: int) -> GaussianSplats:
    """The splats with spherical harmonics of this degree, 0 to 4: what is above goes, what is missing is zero.

    Differentiable. Raises FormatError for another degree.
    """
    count = spherical_harmonics.coefficients(degree)
    missing = count - splats.sh.shape[1]
    if missing == 0:
        return splats
    if missing < 0:
        return replace(splats, sh=splats.sh[:, :count].contiguous(), check_values=False)  # lets go of the rest
    return replace(
        splats, sh=torch.cat([splats.sh, splats.sh.new_zeros(len(splats), missing, 3)], 1), check_values=False
    )


def gain(splats: GaussianSplats, opacity: float | Tensor = 1.0, scale: float | Tensor = 1.0) -> GaussianSplats:
    """The splats with opacities and sizes multiplied; opacities end at 1, positions stay. Differentiable.

    Raises ValueError for a factor that is negative or not finite.
    """
    factors = [float(torch.as_tensor(factor).detach()) for factor in (opacity, scale)]
    if not all(0 <= factor < math.inf for factor in factors):
        raise ValueError(
            f"gain: opacity {factors[0]:g} and scale {factors[1]:g}; expected finite factors of at least 0"
        )
    return replace(
        splats,
        opacities=(splats.opacities * opacity).clamp(max=1),
        scales=splats.scales * scale,
        check_values=False,
    )
