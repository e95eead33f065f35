"""Fits kept on disk and found again by their inputs and settings, finished or interrupted."""

import dataclasses
import hashlib
import json
from pathlib import Path

from torch import Tensor

from .. import __version__
from ..cameras import Cameras
from ..inversion.finished import TrainingStore
from . import checkpoint as checkpoints
from .presets import FREE_SETTINGS, FitConfig
from .views import fingerprint

KEPT_BYTES = 2 << 30
"""How much a store of fits holds: an interrupted one of 100,000 splats of degree 3 is 71 MB, a finished one 24 MB."""


def fit_key(config: FitConfig, images: Tensor, masks: Tensor | None, cams: Cameras) -> str:
    """A digest of everything that decides a fit: settings, pictures, masks, cameras, and our version."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE_SETTINGS}
    parts = [__version__, settings, fingerprint(images, masks, cams)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class FitStore(TrainingStore):
    """A folder of fits, as `TrainingStore` is one of trainings; the checkpoint of `training` is for `fit_splats`."""

    def __init__(self, folder: Path, limit_bytes: int = KEPT_BYTES) -> None:
        super().__init__(folder, limit_bytes, checkpoints.peek)
