"""Toy assets: a family, three named colours, and everything about it that words do not say.

The same seed makes the same asset everywhere. Captions name the family and the colours of its parts; proportions,
exact shades and small extras are never named, so that a token has something to learn.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..splats import GaussianSplats
from ..splats.spherical_harmonics import C0
from .colors import NAMES, draw_shade
from .families import ALL, KNOWN, Family
from .families.builder import Builder
from .primitives import (
    COLOR,
    FIXED,
    OPACITY,
    PART,
    SPLATS_PER_ASSET,
    bounding_sphere,
    cover,
    quaternions_facing,
)

COMMENT = 'Invert3D toy asset, up="+y", front="+z"'
SUFFIX = ", 3d asset"
STRETCH_UP, STRETCH_SIDE = 0.18, 0.09  # standard deviations of the logarithms


@dataclass(frozen=True)
class ToyAsset:
    """One toy asset.

    colors: names of the main, second and third part's colours. shades: (3,3) their exact RGB.
    rows: (P,21) primitives (see `primitives.COLUMNS`) with colours filled in. stretch: (3,) factors along x, y, z.
    """

    family: Family
    colors: tuple[str, str, str]
    shades: np.ndarray
    rows: np.ndarray
    stretch: np.ndarray

    def splats(self, count: int = SPLATS_PER_ASSET) -> GaussianSplats:
        """The asset as ``count`` degree-0 Gaussians, y up, front +z, framed by a sphere of radius 1 around 0."""
        rows, stretch = torch.from_numpy(self.rows)[None], torch.from_numpy(self.stretch)[None]
        covered = cover(rows, stretch, count)
        center, radius = bounding_sphere(covered["positions"], covered["scales"].amax(-1))
        rgb = covered["albedo"][0] * covered["shade"][0, :, None]
        return GaussianSplats(
            positions=(covered["positions"][0] - center) / radius,
            scales=covered["scales"][0] / radius,
            rotations=quaternions_facing(covered["normals"][0]),
            opacities=torch.full((count, 1), OPACITY),
            sh=((rgb - 0.5) / C0)[:, None],
            comment=COMMENT,
        )

    def recolored(self, part: int, color: str, rng: np.random.Generator) -> "ToyAsset":
        """The same asset with another colour on one part (0 main, 1 second, 2 third)."""
        shades = self.shades.copy()
        shades[part] = draw_shade(rng, color)
        names = tuple(color if i == part else name for i, name in enumerate(self.colors))
        return replace(self, colors=names, shades=shades, rows=colored(self.rows, shades))

    @property
    def word(self) -> str:
        """The family's word, or for a family without one the nearest that the model knows."""
        return self.family.nearest or self.family.name

    def short_caption(self) -> str:
        """ "a red chair": main colour and family, as one would type it without thinking."""
        return f"{article(self.colors[0])} {self.colors[0]} {self.word}"

    def full_caption(self) -> str:
        """Everything that words of the toy's vocabulary can say about the asset."""
        (_, second, third), (part2, part3) = self.colors, self.family.parts
        return f"{self.short_caption()} with {second} {part2} and {third} {part3}"


def article(word: str) -> str:
    """ "a" or "an"."""
    return "an" if word[0] in "aeiou" else "a"


def held_out_color(family: Family) -> str:
    """The main colour that this known family never has in training."""
    return NAMES[(5 * KNOWN.index(family) + 3) % len(NAMES)]


def colored(rows: np.ndarray, shades: np.ndarray) -> np.ndarray:
    """A copy of the primitives with the shades (3,3) on their parts; fixed details keep their own colour."""
    result = rows.copy()
    part = rows[:, PART].astype(int)
    named = part != FIXED
    result[named, COLOR] = shades[part[named]]
    return result


def draw_shape(rng: np.random.Generator, family: Family) -> tuple[np.ndarray, np.ndarray]:
    """Primitives (P,21) without colours and the stretch (3,) of one random member of a family."""
    builder = Builder(rng)
    family.build(builder)
    deviations = np.array([STRETCH_SIDE, STRETCH_UP, STRETCH_SIDE])
    stretch = np.exp(rng.normal(size=3).clip(-2, 2) * deviations).astype(np.float32)
    return builder.table(), stretch


def draw_colors(rng: np.random.Generator, main: str | None = None, never: str | None = None) -> tuple[str, str, str]:
    """Names for the three parts; the other two differ from the main one. ``never`` bars a main colour."""
    if main is None:
        main = str(rng.choice([name for name in NAMES if name != never]))
    second, third = rng.choice([name for name in NAMES if name != main], 2)
    return main, str(second), str(third)


def draw(seed: int, family: str, main: str | None = None) -> ToyAsset:
    """The toy asset of this seed and family name; ``main`` fixes its main colour, else it is drawn.

    Raises KeyError for an unknown family.
    """
    rng = np.random.default_rng([seed, sum(family.encode())])
    kind = ALL[family]
    shape, stretch = draw_shape(rng, kind)
    colors = draw_colors(rng, main)
    shades = np.stack([draw_shade(rng, name) for name in colors])
    return ToyAsset(kind, colors, shades, colored(shape, shades), stretch)
