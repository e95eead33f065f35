"""What every reader fills: the arrays of the splats, checked block by block while they are still in the cache."""

import logging
from typing import Any, NamedTuple

import numpy as np
import torch

from ...errors import FormatError
from .. import spherical_harmonics
from ..gaussians import GaussianSplats
from .source import Source

log = logging.getLogger("invert3d")

Floats = np.ndarray[Any, np.dtype[np.float32]]

BLOCK_BYTES = 2 << 20
"""How much of a file is converted at a time: a block and what becomes of it stay in the processor's cache."""

MAX_BAD_FRACTION = 0.1
"""Up to this part of the splats may be unusable (NaN, infinite, negative scale); they are dropped with a warning.

A training that diverged leaves a handful, which every viewer skips; a file with more of them is damaged or no splat.
"""


class Block(NamedTuple):
    """Rows start to stop of the arrays of a `SplatBuffer`, to be written to."""

    positions: Floats  # (n,3)
    scales: Floats  # (n,3)
    rotations: Floats  # (n,4)
    opacities: Floats  # (n,1)
    sh: Floats  # (n,K,3)


class SplatBuffer:
    """Room for ``count`` splats of an SH degree. Fill each `block`, `check` it, then `finish`.

    Make one only after the file's true size has been found to fit the count.
    """

    def __init__(self, count: int, degree: int) -> None:
        self.count = count
        bands = spherical_harmonics.coefficients(degree)
        # numpy's memory, not torch's: it comes in huge pages where the system has them, which halves the time to fill.
        shapes = ((count, 3), (count, 3), (count, 4), (count, 1), (count, bands, 3))
        self.arrays = Block(*(np.empty(shape, np.float32) for shape in shapes))
        self._bad: np.ndarray[Any, np.dtype[np.bool_]] | None = None

    def block(self, start: int, stop: int) -> Block:
        """The rows of the splats start to stop."""
        return Block(*(array[start:stop] for array in self.arrays))

    def check(self, start: int, stop: int) -> None:
        """Note which of the filled rows are unusable: not finite, a negative scale, an opacity outside [0,1]."""
        block = self.block(start, stop)
        # One number tells almost always that all is well: NaN and infinity survive a sum, a negative a minimum.
        with np.errstate(all="ignore"):
            total = sum(float(np.add.reduce(array, axis=None)) for array in block)
            low, high = block.opacities.min(), block.opacities.max()
            if np.isfinite(total) and block.scales.min() >= 0 and low >= 0 and high <= 1:
                return
        good = np.ones(stop - start, bool)
        for array in block:
            good &= np.isfinite(array).reshape(stop - start, -1).all(axis=1)
        good &= (block.scales >= 0).all(axis=1) & (block.opacities >= 0)[:, 0] & (block.opacities <= 1)[:, 0]
        if not good.all():
            if self._bad is None:
                self._bad = np.zeros(self.count, bool)
            self._bad[start:stop] = ~good

    def finish(self, source: Source, comment: str = "") -> GaussianSplats:
        """The splats; unusable ones are dropped with a warning, up to `MAX_BAD_FRACTION` of them.

        Raises FormatError where more are unusable.
        """
        arrays = self.arrays
        if self._bad is not None:
            bad = int(self._bad.sum())
            if bad > MAX_BAD_FRACTION * self.count:
                raise FormatError(
                    f"{source.name}: {bad} of {self.count} splats are unusable (NaN, infinite or impossible values; "
                    f"the first is splat {int(self._bad.argmax())}). Expected at most {MAX_BAD_FRACTION:.0%}, which "
                    "would be dropped: the file is damaged, its training diverged, or it is of another type."
                )
            source.remark(
                f"dropped {bad} of {self.count} splats with NaN, infinite or impossible values (the first is splat "
                f"{int(self._bad.argmax())})"
            )
            arrays = Block(*(array[~self._bad] for array in arrays))
        return GaussianSplats(*map(torch.from_numpy, arrays), comment=comment, check_values=False)


def normalize_quaternions(
    quaternions: Floats,  # (n,4) w,x,y,z of any length
    out: Floats,  # (n,4)
) -> None:
    """Write unit quaternions; a zero one, which says nothing, becomes the identity. NaN and infinity give NaN."""
    with np.errstate(all="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", quaternions, quaternions))
        np.divide(quaternions, lengths[:, None], out=out)
        if lengths.min() > 1e-15 and lengths.max() < 1e15:
            return
        # Squares left float32's range: only these rows again, scaled by their largest part first.
        odd = ~((lengths > 1e-15) & (lengths < 1e15))
        rows = quaternions[odd].astype(np.float64)
        largest = np.abs(rows).max(axis=1, keepdims=True)
        rows = np.where(largest == 0, (1.0, 0.0, 0.0, 0.0), rows / largest)
        out[odd] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
