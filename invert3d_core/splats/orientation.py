"""How an asset probably stands in the frame of its file, guessed where the file does not say it.

Nothing turns by itself on a guess: it is shown, and a person chooses. What is known of a file goes first (a statement,
the tool that wrote it, what most files have); the shape decides where it speaks clearly: things are more alike left and
right than above and below, stand on something, and are lit from above. The weights are round numbers near a logistic
fit on the toy's families; `benchmarks/orientation.py` says how far they go.
"""

import math
import re
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..cameras import Orientation, fit_sphere
from ..rotations import rotation_matrices
from .gaussians import GaussianSplats
from .selection import select
from .spherical_harmonics import C0

SURE = 0.8  # the probability below which the guess of a front gives way to the one by habit

UPS = ("-y", "+y", "+z", "-z", "+x", "-x")
FRONTS = {"-y": "-z", "+y": "+z", "+z": "-y", "-z": "+y", "+x": "+z", "-x": "-z"}
"""The front that goes with each up by habit: of trained splats, of LGM, of programs with z up."""

# Logarithms of how often each up is met. Trained scenes have the first, but also what TRELLIS writes; LGM the second.
# The first is a little more than that, since a shape that misleads is worse than one that says nothing.
_USUAL = {"-y": 2.7, "+y": 1.5, "+z": 0.5}
_DECLARED = 6.0  # for an up that the tool which wrote the file declares
_HABITUAL_FRONT, _OPPOSITE_FRONT = 2.0, 0.5  # against a front to either side

# What the shape adds for a unit of each measure.
_UNLIKE, _FOOTING, _LIGHT = 4.0, 2.0, 4.0
_SIDES = 6.0

_SAMPLES = 50_000
_FEWEST = 100  # splats with which something has a shape
_VISIBLE_OPACITY = 0.05
_REACH = 1.1  # radii of the object's sphere, which may leave out a pointed end
_GRID = 20
_END = 0.15  # of half the extent: how much of the object is its end


class Guess(NamedTuple):
    """A possible stance.

    confidence: the probability, in [0,1], that the up is right; 1 where the file states both.
    reasons: what speaks for it, in words.
    """

    orientation: Orientation
    confidence: float
    reasons: tuple[str, ...]

    @property
    def stated(self) -> bool:
        """Whether this is no guess but what the file states."""
        return self.confidence == 1


def guess_orientation(splats: GaussianSplats) -> Guess:
    """How the asset stands: as the comment states, else what is likeliest by what is known of it and by its shape.

    Where neither speaks, that is the usual frame, `Orientation()`. The front that goes with an up by habit wins unless
    the sides are those of another with a probability of at least `SURE`. Looks at 50,000 splats at most, evenly
    picked, on the CPU.
    Raises CameraError when there are no splats.
    """
    return candidates(splats)[0]


@torch.no_grad()
def candidates(splats: GaussianSplats, count: int = 4) -> list[Guess]:
    """The likely stances for a person to choose from, each with another up, the likeliest first; before them what the
    file states.

    count: 1 to 6. Raises CameraError when there are no splats, and ValueError for another count.
    """
    if not 1 <= count <= len(UPS):
        raise ValueError(f"candidates: count is {count}, expected 1 to {len(UPS)}")
    step = max(1, math.ceil(len(splats) / _SAMPLES))
    some = select(splats, torch.arange(0, len(splats), step, device=splats.device)).to("cpu")
    known, reasons = _known(splats.comment)
    measures = _measure(some)
    shape = {up: measures.of_up(up) for up in UPS}
    chances = _shares([known.get(up, 0.0) + shape[up] for up in UPS])
    found = []
    for chance, up in zip(chances, UPS, strict=True):
        front, side = _front(measures, up)
        said = list(reasons.get(up, ()))
        if shape[up] > 0.5:
            said.append("the shape stands and is lit this way up")
        found.append(Guess(Orientation(up, front), chance, (*said, side)))
    found.sort(key=lambda guess: -guess.confidence)
    stated = Orientation.from_comment(splats.comment)
    if stated:
        others = [guess for guess in found if guess.orientation.up != stated.up]
        found = [Guess(stated, 1.0, ("the file states it",)), *others]
    return found[:count]


def turned(orientation: Orientation, quarters: int) -> Orientation:
    """The same up with another front: what faced the camera from azimuth 90° · quarters."""
    right, _, front = orientation.matrix().T
    way = (front, right, -front, -right)[quarters % 4]
    return Orientation(orientation.up, _axis_name(way))


def stating(splats: GaussianSplats, orientation: Orientation) -> GaussianSplats:
    """The splats as they are, with a comment that states how they stand, in place of what it stated before."""
    return replace(splats, comment=orientation.stated_in(splats.comment), check_values=False)


def gltf_remark(splats: GaussianSplats) -> str | None:
    """What is to be said of splats that go into a glTF as they stand; None where they state its up, +y."""
    stated = Orientation.from_comment(splats.comment)
    if stated is None:
        return "Viewers of glTF take +y for up. These splats do not state theirs: look how they stand"
    return None if stated.up == "+y" else f"Viewers of glTF take +y for up. These splats state {stated.up}"


def _axis_name(way: Tensor) -> str:
    axis = int(way.abs().argmax())
    return ("+" if way[axis] > 0 else "-") + "xyz"[axis]


def _known(comment: str) -> tuple[dict[str, float], dict[str, tuple[str, ...]]]:
    """The weight of each up before the shape is looked at, and the reasons for some."""
    weights, reasons = dict(_USUAL), {"-y": ("the usual frame of trained splats",)}
    # Nerfstudio means it. Brush writes "Vertical axis: y" into every file.
    if re.search(r"^\s*vertical axis:\s*z\s*$", comment, re.IGNORECASE | re.MULTILINE):
        weights["+z"] += _DECLARED
        reasons["+z"] = ("the tool that wrote the file declares z vertical",)
    return weights, reasons


class _Measures(NamedTuple):
    """What the shape says of each axis x, y, z; three numbers each.

    unlike: by how much the halves on the two sides of the middle differ, in [0,1]. footing: how much wider the low end
    is spread than the high end, in units of the object. light: how much lighter what faces the axis' positive end is
    than what faces away, a correlation.
    """

    unlike: list[float]
    footing: list[float]
    light: list[float]

    def of_up(self, up: str) -> float:
        """What the shape adds to the weight of an up."""
        axis, sign = "xyz".index(up[1]), 1 if up[0] == "+" else -1
        others = (sum(self.unlike) - self.unlike[axis]) / 2
        return (
            _UNLIKE * (self.unlike[axis] - others)
            + _FOOTING * sign * self.footing[axis]
            + _LIGHT * sign * self.light[axis]
        )


def _front(measures: _Measures, up: str) -> tuple[str, str]:
    """The front that goes with an up, and why: across the sides that are most alike."""
    habit = FRONTS[up]
    fronts = [sign + axis for axis in "xyz" if axis != up[1] for sign in "+-"]
    weights = []
    for front in fronts:
        axis, side = "xyz".index(front[1]), next(i for i in range(3) if "xyz"[i] not in (front[1], up[1]))
        usual = _HABITUAL_FRONT if front == habit else _OPPOSITE_FRONT if front[1] == habit[1] else 0.0
        weights.append(usual + _SIDES * (measures.unlike[axis] - measures.unlike[side]))
    shares = dict(zip(fronts, _shares(weights), strict=True))
    across = next(front for front in fronts if front[1] != habit[1])
    sides = sum(share for front, share in shares.items() if front[1] == across[1])
    if sides >= SURE:  # which of the two ends is the front, the shape does not say
        return across, f"left and right are most alike with the front along {across[1]}"
    return habit, f"front {habit} by habit"


def _measure(splats: GaussianSplats) -> _Measures:
    sphere = fit_sphere(splats)
    near = (splats.positions - sphere.center).norm(dim=1) <= _REACH * sphere.radius
    seen = select(splats, near & (splats.opacities[:, 0] >= _VISIBLE_OPACITY))
    if len(seen) < _FEWEST:
        return _Measures([0.0] * 3, [0.0] * 3, [0.0] * 3)
    positions, (sizes, order) = seen.positions, seen.scales.sort(1)
    weights = seen.opacities[:, 0] * sizes[:, 1] * sizes[:, 2]
    weights = weights.clamp_max(float(weights.quantile(0.95)))  # no single giant speaks for the object
    if not float(weights.sum()) > 0:
        weights = torch.ones_like(weights)
    weights = weights / weights.sum()
    ends = torch.stack([_quantiles(positions[:, axis], weights) for axis in range(3)])  # (3,2)
    half = (ends[:, 1] - ends[:, 0]).clamp_min(1e-6 * sphere.radius) / 2
    offsets, reach = positions - ends.mean(1), float(half.max())
    normals = rotation_matrices(seen.rotations)[torch.arange(len(seen)), :, order[:, 0]]
    normals = normals * torch.where((normals * offsets).sum(1, keepdim=True) < 0, -1.0, 1.0)  # outwards
    brightness = (0.5 + C0 * seen.sh[:, 0]).clamp(0, 1) @ torch.tensor([0.299, 0.587, 0.114])
    cells = _cells(offsets / reach, weights)
    return _Measures(
        [_unlikeness(cells, axis) for axis in range(3)],
        [_footing(offsets / half, offsets / reach, weights, axis) for axis in range(3)],
        [_correlation(normals[:, axis], brightness, weights) for axis in range(3)],
    )


def _quantiles(values: Tensor, weights: Tensor) -> Tensor:
    """Between which values (2,) all but 0.3 % of the weight at either end lies."""
    ordered, order = values.sort()
    below = weights[order].double().cumsum(0)
    return ordered[torch.searchsorted(below, below[-1] * torch.tensor([0.003, 0.997])).clamp_max(len(ordered) - 1)]


def _cells(
    places: Tensor,  # (n,3), the object within ±1
    weights: Tensor,  # (n,)
) -> Tensor:  # (G,G,G)
    """How much of the object is where, on a grid, blurred and with its contrasts softened."""
    at = ((places + 1) / 2 * _GRID).long().clamp(0, _GRID - 1)
    cells = torch.zeros(_GRID**3).index_add_(0, (at[:, 0] * _GRID + at[:, 1]) * _GRID + at[:, 2], weights)
    return torch.nn.functional.avg_pool3d(cells.reshape(1, _GRID, _GRID, _GRID), 3, 1, 1)[0].sqrt()


def _unlikeness(cells: Tensor, axis: int) -> float:
    """How much a thing differs from its mirror image along an axis, 0 to 1, at the best of three places."""
    images = [cells.flip(axis).roll(shift, axis) for shift in (-1, 0, 1)]
    return min(float((cells - image).abs().sum() / (cells + image).sum()) for image in images)


def _footing(
    heights: Tensor,  # (n,3) from -1 to 1 along each axis
    places: Tensor,  # (n,3)
    weights: Tensor,  # (n,)
    axis: int,
) -> float:
    """How much wider the low end of an axis is spread than the high end."""
    widths = []
    for end in (heights[:, axis] < _END - 1, heights[:, axis] > 1 - _END):
        share = weights[end] / weights[end].sum().clamp_min(1e-12)
        across = places[end][:, [i for i in range(3) if i != axis]]
        middle = (share[:, None] * across).sum(0)
        widths.append(float((share * (across - middle).square().sum(1)).sum().sqrt()))
    return widths[0] - widths[1]


def _correlation(first: Tensor, second: Tensor, weights: Tensor) -> float:
    """The weighted correlation of two columns (n,), 0 where one of them does not vary."""
    first, second = (values - (weights * values).sum() for values in (first, second))
    spread = float(((weights * first.square()).sum() * (weights * second.square()).sum()).sqrt())
    return float((weights * first * second).sum()) / spread if spread > 1e-9 else 0.0


def _shares(weights: list[float]) -> list[float]:
    """Probabilities of logarithmic weights."""
    return torch.tensor(weights, dtype=torch.float64).softmax(0).tolist()
