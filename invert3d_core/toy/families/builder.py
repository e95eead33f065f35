"""What the families are written with: a builder that collects primitives and draws the random proportions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..primitives import BALL, BOX, COLUMNS, FIXED, RING, TUBE

Vector = Sequence[float]
WHITE, BLACK, GLASS, METAL = (
    (0.88, 0.88, 0.88),
    (0.08, 0.08, 0.08),
    (0.62, 0.80, 0.88),
    (0.60, 0.62, 0.65),
)
IDENTITY = np.eye(3)


@dataclass(frozen=True)
class Family:
    """A kind of object. ``parts`` are the names of its second and third part; the first is the object itself.

    nearest: for a family without a word, the known one that a person would type instead.
    """

    name: str
    parts: tuple[str, str]
    build: Callable[["Builder"], None]
    nearest: str | None = None

    @property
    def known(self) -> bool:
        return self.nearest is None


def rotation_about(axis: str, degrees: float) -> np.ndarray:
    """Rotation matrix about "x", "y" or "z", counter-clockwise as seen from the axis' tip."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def rotation_from_y(direction: np.ndarray) -> np.ndarray:
    """A rotation that takes +y to ``direction`` (any length)."""
    d = direction / max(float(np.linalg.norm(direction)), 1e-9)
    cross, cosine = np.array([d[2], 0.0, -d[0]]), float(d[1])
    if cosine < -0.9999:
        return np.diag([1.0, -1.0, -1.0])
    k = np.array([[0, -cross[2], cross[1]], [cross[2], 0, -cross[0]], [-cross[1], cross[0], 0]])
    return np.eye(3) + k + k @ k / (1 + cosine)


class Builder:
    """Collects the primitives of one asset; ``u``, ``maybe`` and ``pick`` draw what captions never name."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.rows: list[list[float]] = []

    def u(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def maybe(self, probability: float = 0.5) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, *options):
        return options[int(self.rng.integers(len(options)))]

    def box(self, part: int, center: Vector, size: Vector, turn=IDENTITY, color: Vector | None = None) -> None:
        """A box of full edge lengths ``size``."""
        self._add(BOX, part, center, [s / 2 for s in size], 1.0, turn, color)

    def ball(
        self, part: int, center: Vector, radii: Vector | float, turn=IDENTITY, color: Vector | None = None
    ) -> None:
        """An ellipsoid, or a sphere for one radius."""
        self._add(BALL, part, center, [radii] * 3 if isinstance(radii, (int, float)) else radii, 1.0, turn, color)

    def tube(
        self,
        part: int,
        start: Vector,
        end: Vector,
        radius: float,
        end_radius: float | None = None,
        flat: float = 1.0,
        color: Vector | None = None,
    ) -> None:
        """A cylinder or cone from ``start`` to ``end``; ``flat`` squeezes its cross-section along z."""
        a, b = np.asarray(start, float), np.asarray(end, float)
        length = float(np.linalg.norm(b - a))
        final = radius if end_radius is None else end_radius
        if final > radius:  # the taper is at most 1: build from the wide end
            a, b, radius, final = b, a, final, radius
        half = [radius, length / 2, radius * flat]
        self._add(TUBE, part, (a + b) / 2, half, final / radius, rotation_from_y(b - a), color)

    def ring(
        self, part: int, center: Vector, radius: float, thickness: float, turn=IDENTITY, color: Vector | None = None
    ) -> None:
        """A torus around the y axis of ``turn``."""
        self._add(RING, part, center, [radius, thickness, radius], 1.0, turn, color)

    def wheels(self, part: int, xs: Vector, zs: Vector, radius: float, width: float) -> None:
        """Wheels on axles along x, standing on y = 0, with bright hubs."""
        for x in xs:
            for z in zs:
                side = math.copysign(width / 2, x)
                self.tube(part, (x - side, radius, z), (x + side, radius, z), radius)
                hub = x + side
                self.tube(FIXED, (hub, radius, z), (hub + side * 0.2, radius, z), radius * 0.45, color=WHITE)

    def eyes(self, center: Vector, apart: float, radius: float, color: Vector = BLACK) -> None:
        for side in (-1, 1):
            self.ball(FIXED, (center[0] + side * apart, center[1], center[2]), radius, color=color)

    def table(self) -> np.ndarray:
        """The primitives as rows of `primitives.COLUMNS` numbers, float32 (P,21)."""
        return np.asarray(self.rows, np.float32).reshape(-1, COLUMNS)

    def _add(self, kind, part, center, half, taper, turn, color) -> None:
        self.rows.append(
            [kind, *center, *half, taper, *np.asarray(turn).ravel(), part, *(color if color is not None else (0, 0, 0))]
        )
