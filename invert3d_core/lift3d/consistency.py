"""Do views show one object? A splat that must explain all of them at once says how far they agree."""

import torch
from torch import Tensor

from ..cameras import Cameras, near_plane
from ..metrics import foreground_psnr
from ..progress import Progress
from ..rendering import rasterize
from .hull import seen_region
from .presets import FitConfig, preset
from .trainer import fit_splats


def view_consistency(
    images: Tensor,
    cams: Cameras,
    config: FitConfig | None = None,
    *,
    progress: Progress | None = None,
) -> float:
    """How well one object explains generated views, in dB: the higher, the more consistent.

    images: (C,H,W,3) in [0,1] on white, C ≥ 2. cams: C. A splat of degree 0 (no colour depends on the direction) with a
    fixed number of splats is fitted to all views; the result is the PSNR of its pictures over both silhouettes, all
    views pooled. Numbers compare only at the same settings, picture size and number of views.
    config: settings of the fit, of degree 0 and with a fixed number; None is the preset "consistency".

    Raises ValueError for other settings, and as `fit_splats`.
    """
    config = config or preset("consistency")
    if config.sh_degree or config.density != "fixed":
        raise ValueError(
            f"view_consistency: the settings have sh_degree {config.sh_degree} and density {config.density!r}, "
            "expected 0 and 'fixed': otherwise a splat shows each camera what it wants to see"
        )
    result = fit_splats(images, None, cams, config, progress=progress)
    cams = cams.resized(images.shape[2], images.shape[1])
    with torch.no_grad():
        drawn = rasterize(result.splats, cams, near=near_plane(cams, seen_region(cams).center)).color.clamp(0, 1)
    return float(foreground_psnr(drawn[None], images[None].to(drawn)))
