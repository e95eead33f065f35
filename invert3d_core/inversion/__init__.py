"""Textual inversion: from views of an asset to a token of a multi-view diffusion model.

`train_token` learns one token, `train_tokens` many independent ones in one batch; `preset` gives the settings.
"""

from .losses import denoising_loss, denoising_losses, initial_vectors
from .presets import PRESETS, InversionConfig, preset
from .trainer import InversionResult, preview_strip, train_token, train_tokens
from .views import LatentBank, SplatViews, ViewSet, encode_views, orthogonal_sets, render_bank

__all__ = [
    "PRESETS",
    "InversionConfig",
    "InversionResult",
    "LatentBank",
    "SplatViews",
    "ViewSet",
    "denoising_loss",
    "denoising_losses",
    "encode_views",
    "initial_vectors",
    "orthogonal_sets",
    "preset",
    "preview_strip",
    "render_bank",
    "train_token",
    "train_tokens",
]
