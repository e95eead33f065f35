"""From pictures with cameras to Gaussian splats: `fit_splats`; and how far pictures agree: `view_consistency`."""

from .consistency import view_consistency
from .gsplat_density import check_device
from .presets import PRESETS, FitConfig, preset
from .trainer import FitResult, fit_splats

__all__ = ["PRESETS", "FitConfig", "FitResult", "check_device", "fit_splats", "preset", "view_consistency"]
