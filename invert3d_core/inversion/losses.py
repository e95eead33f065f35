"""The loss of textual inversion over a set of views, its weights, and the vectors it starts from.

Gal et al. 2022 ("An Image is Worth One Word") on the multi-view ε-prediction of MVDream (arXiv 2308.16512).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import TrainingError
from ..mvdream.sampling import add_noise
from ..mvdream.sampling import alphas_cumprod as published_alphas_cumprod


def initial_vectors(
    token_rows: Tensor,  # (k,d) or (d,)
    count: int,
    position_row: Tensor | None = None,  # (d,)
) -> Tensor:  # (count,d)
    """The vectors training starts from: the rows of the initial words, repeated in order until there are count.

    token_rows: (k,d) rows of the text encoder's token embeddings, or (d,) for a single word.
    position_row: (d,) added to every vector; the published code adds position row 0, as it looks words up in the
        encoder's embeddings module and not in its table.

    Raises TrainingError if there are more words than vectors.
    """
    rows = token_rows.reshape(-1, token_rows.shape[-1])
    if not 1 <= rows.shape[0] <= count:
        raise TrainingError(
            f"The initial words are {rows.shape[0]} pieces, but the token has {count} vectors: expected 1 to {count} "
            "pieces. Write fewer initial words, or give the token more vectors."
        )
    vectors = rows[torch.arange(count) % rows.shape[0]]
    return vectors if position_row is None else vectors + position_row


def denoising_losses(
    predict: Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,  # (B,C,h,w)
    noise: Tensor,  # (B,C,h,w)
    timesteps: Tensor,  # (B,)
    weights: Tensor | None = None,  # broadcasts to (B,C,h,w)
    alphas_cumprod: Tensor | None = None,  # (T,)
) -> Tensor:  # (B,)
    """Mean squared error of the predicted noise, one number per view; the arguments of `denoising_loss`."""
    if latents.shape != noise.shape or timesteps.shape != latents.shape[:1]:
        raise TrainingError(
            f"Latents {tuple(latents.shape)}, noise {tuple(noise.shape)} and timesteps {tuple(timesteps.shape)} do not "
            "fit; expected (B,C,h,w), the same, and (B,)."
        )
    if alphas_cumprod is None:
        alphas_cumprod = published_alphas_cumprod(0.00085, 0.012).to(latents.device)
    noisy = add_noise(latents, noise, timesteps, alphas_cumprod)
    error = (predict(noisy, timesteps) - noise).square()
    if weights is not None:
        error = error * weights
    return error.flatten(1).mean(dim=1)


def denoising_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,  # (B,C,h,w)
    noise: Tensor,  # (B,C,h,w)
    timesteps: Tensor,  # (B,)
    weights: Tensor | None = None,  # broadcasts to (B,C,h,w)
    alphas_cumprod: Tensor | None = None,  # (T,)
) -> Tensor:  # ()
    """Mean over views of the mean of weights · (ε̂ − ε)², with ε̂ = predict(√ᾱ z + √(1−ᾱ) ε, t).

    predict: noisy latents (B,C,h,w) and timesteps (B,) → predicted noise (B,C,h,w).
    latents: z, scaled as the network expects. noise: ε. timesteps: int, 0 … T−1, one per view.
    weights: factors that broadcast to (B,C,h,w); see `foreground_weights` and `snr_weights`. None is all one.
    alphas_cumprod: ᾱ of the model's schedule, (T,); None is the published one (scaled linear, 0.00085 to 0.012, 1000).

    Raises TrainingError if shapes disagree.
    """
    return denoising_losses(predict, latents, noise, timesteps, weights, alphas_cumprod).mean()


def foreground_weights(masks: Tensor, factor: float) -> Tensor:  # (…,V,h,w) -> (…,V,1,h,w)
    """Loss weights that count the object's places `factor` times as much as the background's, with mean 1 over a set.

    masks: (…,V,h,w) in [0,1], 1 on the object, at latent resolution. In a white-background view more than nine tenths
    of the places say nothing about the object. A factor of 1 gives ones everywhere.
    """
    weights = 1 + (factor - 1) * masks
    return (weights / weights.mean(dim=(-3, -2, -1), keepdim=True)).unsqueeze(-3)


def snr_weights(timesteps: Tensor, alphas_cumprod: Tensor, gamma: float) -> Tensor:  # (B,) -> (B,)
    """Weights on the ε-error that make it an x₀-error capped at a signal-to-noise ratio of gamma: clamp(SNR,1,γ)/SNR.

    Min-SNR (Hang et al. 2023) with a floor of 1. On a v-error the same objective reads clamp(SNR,1,γ)/(SNR+1).
    """
    alphas = alphas_cumprod.to(torch.float64)[timesteps.to(alphas_cumprod.device)]
    snr = alphas / (1 - alphas)
    return (snr.clamp(1, gamma) / snr).to(torch.float32)


def masks_at_latent_size(masks: Tensor, height: int, width: int) -> Tensor:  # (V,H,W) -> (V,h,w)
    """Masks at the size of the latents; a cell that the object touches counts as far as its most covered pixel.

    The maximum, not the mean, because silhouette edges are the object's business and not the background's.
    """
    return F.adaptive_max_pool2d(masks.unsqueeze(1), (height, width)).squeeze(1)
