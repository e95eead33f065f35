"""Other colours, view-dependent ones included: hue, saturation, value, tint, and the colours of something else.

Every change here is an affine map of RGB. Spherical harmonics are linear in colour, so it is exact from every
direction. Colours are those of the display, as splats blend them; values beyond [0,1] stay as they are.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .gaussians import GaussianSplats
from .selection import Vector, coverage
from .spherical_harmonics import C0

LUMA = (0.2126, 0.7152, 0.0722)  # ITU-R BT.709
CHUNK = 1 << 20  # colours that are looked at at once
LEAST_VARIANCE = (1 / 255) ** 2  # colours that do not differ by a level are not torn apart


def base_colors(splats: GaussianSplats) -> Tensor:  # (N,3)
    """The colours without their view-dependent part, (N,3), 0 and above; differentiable."""
    return (C0 * splats.sh[:, 0] + 0.5).clamp_min(0)


def apply_color_matrix(
    splats: GaussianSplats,
    matrix: Tensor,  # (3,3)
    offset: Vector = (0.0, 0.0, 0.0),  # (3,)
) -> GaussianSplats:
    """The splats with every colour c, from every direction, turned into matrix · c + offset; differentiable."""
    matrix, offset = matrix.to(splats.sh), torch.as_tensor(offset).to(splats.sh)
    sh = splats.sh @ matrix.T
    # The 0.5 that makes a colour of the sum goes through the matrix as well.
    constant = (offset + 0.5 * matrix.sum(1) - 0.5) / C0
    return replace(splats, sh=torch.cat([sh[:, :1] + constant, sh[:, 1:]], 1), check_values=False)


def adjust_colors(
    splats: GaussianSplats, hue_deg: float = 0.0, saturation: float = 1.0, value: float = 1.0
) -> GaussianSplats:
    """The splats with another hue, saturation and value (in that order).

    hue_deg: a turn of RGB about its grey diagonal: 120 makes red green, green blue and blue red; greys stay.
    saturation: distance from the grey of the same luma (BT.709): 0 is grey, 1 unchanged. value: a factor on all.
    """
    angle = math.radians(hue_deg % 360)
    # Rodrigues' formula for the axis (1,1,1)/√3.
    same, other = (1 + 2 * math.cos(angle)) / 3, (1 - math.cos(angle)) / 3
    side = math.sin(angle) / math.sqrt(3)
    row = (same, other - side, other + side)
    hue = torch.tensor([[row[(column - line) % 3] for column in range(3)] for line in range(3)], dtype=torch.float64)
    grey = torch.tensor([LUMA] * 3, dtype=torch.float64)
    saturate = grey + saturation * (torch.eye(3, dtype=torch.float64) - grey)
    return apply_color_matrix(splats, value * saturate @ hue)


def tint(splats: GaussianSplats, color: Sequence[float], strength: float = 1.0) -> GaussianSplats:
    """The splats drawn towards one colour, RGB in [0,1]: at strength 1 each is that colour times its luma (BT.709).

    So white becomes the colour itself, black stays, and shading is kept. Strength 0 changes nothing.
    """
    toward = torch.outer(torch.tensor(color, dtype=torch.float64), torch.tensor(LUMA, dtype=torch.float64))
    return apply_color_matrix(splats, strength * toward + (1 - strength) * torch.eye(3, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class ColorStatistics:
    """The mean (3,) and covariance (3,3) of colours, RGB in [0,1], float64 on the CPU."""

    mean: Tensor  # (3,)
    covariance: Tensor  # (3,3)

    @classmethod
    def of(
        cls,
        colors: Tensor,  # (N,3)
        weights: Tensor | None = None,  # (N,)
    ) -> "ColorStatistics":
        """Those of colours, each counted by its weight ≥ 0. Raises ValueError where none is there, or none counts."""
        counted = torch.ones_like(colors[:, 0]) if weights is None else weights

        def parts() -> Iterator[tuple[Tensor, Tensor]]:  # float64 of all at once takes much more than a film's pictures
            for part, weight in zip(colors.split(CHUNK), counted.split(CHUNK), strict=True):
                yield part.cpu().double(), weight.cpu().double()

        total = sum(weight.sum() for _, weight in parts())
        if not float(total) > 0:
            raise ValueError(f"ColorStatistics: of {len(colors)} colours none counts; give at least one with a weight")
        nothing = torch.zeros(3, 3, dtype=torch.float64)
        mean = sum((weight @ part for part, weight in parts()), nothing[0]) / total
        spread = sum(((part - mean).T @ (weight[:, None] * (part - mean)) for part, weight in parts()), nothing)
        return cls(mean, spread / total)


def splat_statistics(splats: GaussianSplats) -> ColorStatistics:
    """The statistics of base colours as one sees them: each splat counts by what it covers."""
    # A splat as large as all space covers infinitely much, in which all others would drown without a number.
    weights = coverage(splats).clamp_max(torch.finfo(torch.float32).max)
    return ColorStatistics.of(base_colors(splats).clamp_max(1), weights)


def image_statistics(
    images: Tensor,  # (...,H,W,3) in [0,1]
    masks: Tensor | None = None,  # (...,H,W)
) -> ColorStatistics:
    """The statistics of pictures' pixels, each counted by the mask, 1 on the object; None: all alike.

    Raises ValueError when mask and pictures differ in size, or the mask is empty.
    """
    if masks is not None and masks.shape != images.shape[:-1]:
        raise ValueError(
            f"image_statistics: the mask has shape {tuple(masks.shape)}, expected {tuple(images.shape[:-1])} as the "
            "picture has"
        )
    return ColorStatistics.of(images.reshape(-1, 3), None if masks is None else masks.reshape(-1))


def match_colors(splats: GaussianSplats, target: ColorStatistics, strength: float = 1.0) -> GaussianSplats:
    """The splats with the mean and covariance of other colours; strength 0 changes nothing, 1 matches them.

    The linear Monge-Kantorovitch map of Pitié and Kokaram (2007), which among all maps that match moves colours least:
    T = S^-½ (S^½ C S^½)^½ S^-½ with the covariances S of the splats and C of the target.
    """
    source = splat_statistics(splats)
    one = torch.eye(3, dtype=torch.float64)
    own, wanted = source.covariance + LEAST_VARIANCE * one, target.covariance + LEAST_VARIANCE * one
    root = _power(own, 0.5)
    inverse = _power(own, -0.5)
    matrix = inverse @ _power(root @ wanted @ root, 0.5) @ inverse
    matrix = strength * matrix + (1 - strength) * one
    mean = strength * target.mean + (1 - strength) * source.mean
    return apply_color_matrix(splats, matrix, mean - matrix @ source.mean)


def _power(matrix: Tensor, exponent: float) -> Tensor:  # (3,3)
    """A power of a symmetric positive matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp_min(1e-12) ** exponent) @ vectors.T
