"""The twelve colours that toy captions can name, and how an asset's exact shade strays from them."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.random import Generator

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.84, 0.12, 0.12),
    "orange": (0.95, 0.50, 0.08),
    "yellow": (0.95, 0.85, 0.16),
    "green": (0.15, 0.60, 0.20),
    "cyan": (0.20, 0.80, 0.84),
    "blue": (0.14, 0.26, 0.84),
    "purple": (0.54, 0.18, 0.70),
    "pink": (0.95, 0.56, 0.76),
    "brown": (0.45, 0.27, 0.13),
    "white": (0.88, 0.88, 0.88),
    "gray": (0.40, 0.40, 0.40),
    "black": (0.08, 0.08, 0.08),
}
NAMES = tuple(COLORS)
CHROMATIC = NAMES[:8]
"""Colours that a recoloured part can be told by under any light."""

BRIGHTNESS = (0.84, 1.08)
TINT = 0.05
SHADED = (0.5, 1.1)


def draw_shade(rng: "Generator", name: str) -> np.ndarray:
    """An exact shade of a named colour, RGB float32 (3,) in [0.03,0.97]: what no caption says."""
    shade = np.asarray(COLORS[name]) * rng.uniform(*BRIGHTNESS) + rng.uniform(-TINT, TINT, 3)
    return shade.clip(0.03, 0.97 if name != "white" else 0.9).astype(np.float32)


def nearest_name(rgb: Tensor) -> list[str]:  # (M, 3)
    """The named colour each RGB value is a lit or shaded version of: the nearest of the rays s·c, s in [0.5,1.1]."""
    centers = torch.tensor(list(COLORS.values()), dtype=rgb.dtype, device=rgb.device)  # (12,3)
    along = (rgb @ centers.T) / (centers**2).sum(-1)  # the best s for each
    closest = along.clamp(*SHADED)[..., None] * centers  # (M,12,3)
    return [NAMES[i] for i in (rgb[:, None] - closest).norm(dim=-1).argmin(-1).tolist()]
