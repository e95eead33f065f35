"""Splats without what training leaves behind: haze, giants, needles and floaters.

Each question answers with a mask (N,), true for what should go; `prune` asks them all.
"""

import math

import torch
from torch import Tensor

from ..progress import Progress, no_progress
from .gaussians import GaussianSplats
from .neighbors import nearest
from .selection import select

NEIGHBORS = 16
MAD_OF_SIGMA = 1.4826  # a normal distribution's standard deviation in median absolute deviations


def faint(splats: GaussianSplats, opacity: float) -> Tensor:  # (N,) bool
    """Which splats have an opacity below this one, in [0,1]: haze that costs time and shows little."""
    return splats.opacities.detach()[:, 0] < opacity


def oversized(splats: GaussianSplats, size: float) -> Tensor:  # (N,) bool
    """Which splats are larger than this: their largest standard deviation, scene units."""
    return splats.scales.detach().amax(1) > size


def needles(splats: GaussianSplats, ratio: float) -> Tensor:  # (N,) bool
    """Which splats are longer than ``ratio`` times their second axis: spikes. Flat discs are none, however thin."""
    longest, second = splats.scales.detach().topk(2, dim=1).values.unbind(1)
    return longest > ratio * second


@torch.no_grad()
def floaters(
    splats: GaussianSplats, tolerance: float, neighbors: int = NEIGHBORS, progress: Progress = no_progress
) -> Tensor:  # (N,) bool
    """Which splats hang far from the others, for their size.

    The mean distance to the nearest neighbours is divided by the splat's own size (the largest standard deviation) plus
    the median of those distances: a large splat on a bare wall may stand further off than a small one. The logarithm of
    this ratio is compared with all others': what lies more than ``tolerance`` robust standard deviations above the
    median floats. It is the statistical outlier removal of point clouds (Rusu et al., 2008) with medians, which the
    outliers themselves do not move. neighbors: how many; a group of floaters that is larger than that is not seen.
    Raises ValueError when neighbors is below 1.
    """
    if neighbors < 1:
        raise ValueError(f"floaters: neighbors is {neighbors}, expected at least 1")
    if len(splats) < 3:  # two are equally far from each other
        return torch.zeros(len(splats), dtype=torch.bool, device=splats.device)
    distances = nearest(splats.positions, min(neighbors, len(splats) - 1), progress)[0].mean(1)
    gaps = distances / (splats.scales.amax(1) + distances.median()).clamp_min(1e-30)
    score = gaps.clamp_min(1e-30).log()
    middle = score.median()
    spread = MAD_OF_SIGMA * (score - middle).abs().median()
    return score > middle + tolerance * spread.clamp_min(1e-3)  # a regular grid has no spread


def prune(
    splats: GaussianSplats,
    min_opacity: float = 0.0,
    max_size: float = math.inf,
    max_ratio: float = math.inf,
    floater_tolerance: float = math.inf,
    neighbors: int = NEIGHBORS,
    progress: Progress = no_progress,
) -> GaussianSplats:
    """The splats that are not `faint`, `oversized`, `needles` or `floaters`; the defaults keep all.

    min_opacity in [0,1]; max_size in scene units; max_ratio ≥ 1; floater_tolerance in robust standard deviations:
    6 takes what clearly hangs alone, 3 also frays. Floaters are looked for among what the other limits
    leave; progress counts that search alone.
    """
    kept = splats
    poor = faint(splats, min_opacity) | oversized(splats, max_size) | needles(splats, max_ratio)
    if bool(poor.any()):
        kept = select(splats, ~poor)
    if floater_tolerance < math.inf:
        afloat = floaters(kept, floater_tolerance, neighbors, progress)
        kept = select(kept, ~afloat) if bool(afloat.any()) else kept
    return kept
