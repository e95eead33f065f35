"""How close pictures are to the truth."""

from .images import (
    FOREGROUND_THRESHOLD,
    foreground_mask,
    foreground_psnr,
    psnr,
    silhouette_iou,
)
from .structure import ssim

__all__ = ["FOREGROUND_THRESHOLD", "foreground_mask", "foreground_psnr", "psnr", "silhouette_iou", "ssim"]
