"""Small objects, their pictures from all around, and settings that fit them in seconds."""

import torch
from torch import Tensor

from invert3d_core import cameras, lift3d
from invert3d_core.cameras import Cameras
from invert3d_core.rendering import rasterize
from invert3d_core.splats import GaussianSplats

C0 = 0.28209479177387814

TINY = {
    "splats": 60,
    "max_splats": 90,
    "steps": 12,
    "views_per_step": 2,
    "refine_from": 2,
    "refine_until": 10,
    "refine_every": 4,
    "grow_gradient": 1e-6,
    "preview_every": 0,
    "checkpoint_every": 0,
}
"""Changes to "recommended": a fit that goes through everything in a second."""


def balls(per_ball: int = 150, colors: tuple[tuple[float, float, float], ...] = ((0.9, 0.1, 0.1), (0.1, 0.3, 0.9))):
    """Two balls on the x axis, the first at +x, in an asset's own frame."""
    generator = torch.Generator().manual_seed(3)
    parts, shades = [], []
    for side, color in zip((0.45, -0.45), colors, strict=True):
        directions = torch.nn.functional.normalize(torch.randn(per_ball, 3, generator=generator), dim=-1)
        parts.append(torch.tensor([side, 0.0, 0.0]) + 0.35 * directions)
        shades.append(torch.tensor(color).expand(per_ball, 3))
    count = 2 * per_ball
    return GaussianSplats(
        torch.cat(parts),
        torch.full((count, 3), 0.06),
        torch.tensor([[1.0, 0, 0, 0]]).expand(count, 4),
        torch.full((count, 1), 0.95),
        ((torch.cat(shades) - 0.5) / C0)[:, None],
    )


def rig(count: int = 6, size: int = 24, elevation: float = 15.0, start: float = 0.0, fov: float = 40.0) -> Cameras:
    """Cameras around a sphere of radius 1."""
    distance = cameras.fit_radius(1.0, fov, size, size)
    return cameras.orbit(cameras.azimuths(count, start), elevation, distance, fov, size, size)


def views(g: GaussianSplats, cams: Cameras, background=(1.0, 1.0, 1.0)) -> tuple[Tensor, Tensor]:
    """Pictures (C,H,W,3) and masks (C,H,W)."""
    with torch.no_grad():
        drawn = rasterize(g, cams, background)
    return drawn.color.clamp(0, 1), drawn.alpha.clamp(0, 1)


def tiny(**changes) -> lift3d.FitConfig:
    return lift3d.preset("recommended", **{**TINY, **changes})
