"""How views of toy assets are scored: the cameras, the numbers, and the guidance that each kind of prompt gets."""

import torch
from torch import Tensor

from ..cameras import Cameras
from ..inversion.views import model_orbit
from ..metrics import foreground_mask, foreground_psnr, silhouette_iou
from ..mvdream import ModelInfo

AZIMUTHS_DEG = (30.0, 120.0, 210.0, 300.0)
ELEVATION_DEG = 20.0  # neither these azimuths nor this elevation are in the bank that tokens learn from
SAMPLING_STEPS = 25

# The best of each, chosen by benchmarks/toy_inversion.py on other assets than those it scores.
TOKEN_GUIDANCE = 2.0
CAPTION_GUIDANCE = 4.0


def scoring_cameras(info: ModelInfo) -> Cameras:
    """The four cameras of every score, framed as the model expects an asset in a sphere of radius 1 around 0."""
    return model_orbit(info, list(AZIMUTHS_DEG), ELEVATION_DEG)


def scores(
    drawn: Tensor,  # (S,P,V,H,W,3)
    truth: Tensor,  # (P,V,H,W,3)
) -> tuple[Tensor, Tensor]:
    """Foreground PSNR in dB and silhouette IoU, (P,) each: over all V views of an asset, then the mean over S noises.

    Pictures in [0,1] on white. Raises ValueError when shapes do not fit.
    """
    psnr = torch.stack([foreground_psnr(views, truth) for views in drawn]).mean(0)
    iou = torch.stack([silhouette_iou(foreground_mask(views), foreground_mask(truth)) for views in drawn]).mean(0)
    return psnr, iou
