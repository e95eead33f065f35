"""What writing a file loses: measured against what a reader will get back, and said in the same words for all formats.

Each is a noun phrase, with the largest change where there is one, so that "not kept: a; b; c" reads as a sentence.
"""

from typing import Any

import numpy as np

from .. import spherical_harmonics
from ..gaussians import GaussianSplats
from ..spherical_harmonics import C0
from .buffer import Block, normalize_quaternions

# Changes below these are float32's own rounding, of values that went through a logarithm or a norm.
_EXACT = 2e-6
_EXACT_DEGREES = 0.002

Array = np.ndarray[Any, np.dtype[Any]]


def blocks(splats: GaussianSplats) -> Block:
    """All arrays of the splats on the CPU, for a writer to cut into blocks."""
    tensors = (splats.positions, splats.scales, splats.rotations, splats.opacities, splats.sh)
    return Block(*(tensor.detach().cpu().numpy() for tensor in tensors))


def rows(arrays: Block, chosen: slice | Array) -> Block:
    """These rows of all arrays, with quaternions of unit length."""
    block = Block(*(array[chosen] for array in arrays))
    unit = np.empty_like(block.rotations)
    normalize_quaternions(block.rotations, unit)
    return block._replace(rotations=unit)


class Losses:
    """Collects, block after block, what a writer could not keep. `words` says it, the worst of each kind."""

    def __init__(self) -> None:
        self._dropped: list[str] = []
        self._clipped: dict[str, int] = {}
        self._notes: list[str] = []
        self._moved = self._stretched = self._turned = self._thinned = self._faded = self._shifted = 0.0

    def truncate(self, splats: GaussianSplats, degree: int) -> None:
        """Note that SH above this degree are left out, if any of them is not 0."""
        if splats.degree > degree and bool(splats.sh[:, spherical_harmonics.coefficients(degree) :].any()):
            which = f"{degree + 1} to {splats.degree}" if splats.degree > degree + 1 else f"{splats.degree}"
            self._dropped.append(f"view-dependent colour (SH degree {which})")

    def note(self, what: str) -> None:
        """Note anything else, in words; it is said last."""
        self._notes.append(what)

    def comment(self, splats: GaussianSplats) -> None:
        """Note that the comment is left out, if there is one."""
        if splats.comment:
            self.note("the comment, and what it states about the axes")

    def clip(
        self,
        values: Array,  # (n,...)
        low: float,
        high: float,
        what: str,
    ) -> Array:  # (n,...)
        """The values brought into a range; counts the splats that were outside: "{what} of 3 splats, clipped".

        The same array where all are inside.
        """
        if not values.size or (values.min() >= low and values.max() <= high):
            return values
        margin = _EXACT * max(abs(low), abs(high))
        outside = ((values < low - min(margin, _EXACT * abs(low))) | (values > high + margin)).reshape(len(values), -1)
        self._clipped[what] = self._clipped.get(what, 0) + int(outside.any(axis=1).sum())
        return values.clip(low, high)

    def compare(self, wanted: Block, found: Block) -> None:
        """Measure what a reader gets back (found) against what was to be kept (wanted: of `rows`, after `clip`)."""
        self._moved = max(self._moved, _moved(wanted.positions, found.positions))
        with np.errstate(divide="ignore", invalid="ignore"):
            stretched = np.abs(found.scales / wanted.scales - 1)
        # A scale of 0 that stays 0 is kept.
        self._stretched = max(self._stretched, float(np.where(found.scales == wanted.scales, 0, stretched).max()))
        self._turned = max(self._turned, _turn_degrees(wanted.rotations, found.rotations))
        self._thinned = max(self._thinned, _largest(found.opacities, wanted.opacities))
        self._faded = max(self._faded, C0 * _largest(found.sh[:, 0], wanted.sh[:, 0]))
        kept = min(found.sh.shape[1], wanted.sh.shape[1])
        if kept > 1:
            self._shifted = max(self._shifted, _largest(found.sh[:, 1:kept], wanted.sh[:, 1:kept]))

    def words(self) -> list[str]:
        """What was lost, in words; [] when nothing was."""
        lost = [*self._dropped]
        lost += [f"{what} of {count} splats, clipped" for what, count in self._clipped.items() if count]
        if self._moved:
            lost.append(f"position precision (moves by up to {self._moved:.2g})")
        if self._stretched > _EXACT:
            lost.append(f"scale precision (changes by up to {self._stretched:.2%})")
        if self._turned > _EXACT_DEGREES:
            lost.append(f"rotation precision (turns by up to {self._turned:.2g} degrees)")
        if self._thinned > _EXACT:
            lost.append(f"opacity precision (changes by up to {self._thinned:.2g})")
        if self._faded > _EXACT:
            lost.append(f"colour precision (changes by up to {self._faded:.2g})")
        if self._shifted > _EXACT:
            lost.append(f"view-dependent colour precision (coefficients change by up to {self._shifted:.2g})")
        return lost + self._notes


def _largest(found: Array, wanted: Array) -> float:
    difference = found - wanted
    return max(float(difference.max()), -float(difference.min()))


def _moved(wanted: Array, found: Array) -> float:  # (n,3)
    """How far a position moves at most, of those that move by more than float32's own rounding.

    That is told by each splat's own distance, as a far one says nothing of the others, and by the usual one for those
    near the origin.
    """
    largest = _largest(found, wanted)
    if not largest or largest > _EXACT / 4 * float(np.abs(wanted).max()):
        return largest
    distance = np.abs(wanted).max(axis=1)
    moves = np.abs(found - wanted).max(axis=1)
    return float(moves.max(initial=0, where=moves > _EXACT / 4 * np.maximum(distance, np.median(distance))))


def _turn_degrees(
    before: Array,  # (n,4) unit
    after: Array,  # (n,4) unit
) -> float:
    """The largest angle between two rotations, through the chord: a cosine cannot tell small angles apart."""
    same = np.einsum("ij,ij->i", before, after)
    chord = before - np.where(same < 0, np.float32(-1), np.float32(1))[:, None] * after
    return float(4 * np.degrees(np.arcsin(np.sqrt(np.einsum("ij,ij->i", chord, chord).max()) / 2)))
