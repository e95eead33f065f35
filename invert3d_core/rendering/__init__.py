"""Drawing Gaussian splats: `rasterize` is the call; torch is the reference, gsplat the accelerator."""

from .rasterize import Rendering, rasterize, rasterize_each

__all__ = ["Rendering", "rasterize", "rasterize_each"]
