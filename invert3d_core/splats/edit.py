"""Splats made of other splats."""

from dataclasses import replace

from .gaussians import GaussianSplats


def most_visible(splats: GaussianSplats, count: int) -> GaussianSplats:
    """The ``count`` splats that cover most, in the order they had; the same splats where there are no more than that.

    What a splat covers is its opacity times the product of its two largest scales: what a view of its broad side shows.
    Raises ValueError when count is below 1.
    """
    if count < 1:
        raise ValueError(f"most_visible: count is {count}, expected at least 1 splat")
    if len(splats) <= count:
        return splats
    largest = splats.scales.sort(dim=1, descending=True).values  # (N,3)
    covered = splats.opacities[:, 0] * largest[:, 0] * largest[:, 1]  # (N,)
    kept = covered.argsort(descending=True, stable=True)[:count].sort().values
    return replace(
        splats,
        positions=splats.positions[kept],
        scales=splats.scales[kept],
        rotations=splats.rotations[kept],
        opacities=splats.opacities[kept],
        sh=splats.sh[kept],
        check_values=False,
    )
