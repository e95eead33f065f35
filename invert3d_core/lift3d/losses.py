"""What a fit makes small."""

from torch import Tensor

from ..metrics import ssim
from .density import Drawn
from .parameters import Parameters
from .presets import FitConfig


def fit_loss(
    drawn: Drawn,
    target: Tensor,  # (V,H,W,3)
    mask: Tensor,  # (V,H,W)
    certain: Tensor,  # (V,H,W)
    params: Parameters,
    config: FitConfig,
    extent: float,
) -> Tensor:
    """The loss of a step, a scalar: (1 − λ) L1 + λ (1 − SSIM) as in 3D Gaussian splatting (Kerbl et al. 2023), plus
    the L1 error of alpha where the mask is certain, plus the means of opacities and scales of "3D Gaussian Splatting as
    Markov Chain Monte Carlo" (Kheradmand et al. 2024), each with its weight. extent: of the region, what scales are
    measured by.
    """
    loss = (1 - config.ssim_weight) * (drawn.color - target).abs().mean()
    if config.ssim_weight:
        loss = loss + config.ssim_weight * (1 - ssim(drawn.color, target).mean())
    if config.mask_weight:
        loss = loss + config.mask_weight * (certain * (drawn.alpha - mask).abs()).mean()
    if config.opacity_weight:
        loss = loss + config.opacity_weight * params["opacities"].sigmoid().mean()
    if config.scale_weight:
        loss = loss + config.scale_weight * params["scales"].exp().mean() / extent
    return loss
