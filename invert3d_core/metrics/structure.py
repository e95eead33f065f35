"""Structural similarity of pictures (SSIM)."""

import torch
from torch import Tensor

WINDOW = 11  # pixels per side
SIGMA = 1.5  # of the Gaussian over the window, pixels
_K1, _K2 = 0.01, 0.03


def ssim(predicted: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (B,) of pictures (B,…,H,W,3) in [0,1], at least 11×11: 1 for equal ones, at most 1.

    Wang, Bovik, Sheikh and Simoncelli (2004): a Gaussian window of 11×11 pixels with σ = 1.5, K1 = 0.01, K2 = 0.03,
    each channel for itself, the mean over all windows that lie whole in the picture. Differentiable; in float32, and
    without matrix products or convolutions, which a GPU may do in TF32.

    Raises ValueError when shapes do not fit or a picture is smaller than the window.
    """
    shapes = [tuple(images.shape) for images in (predicted, target)]
    if shapes[0] != shapes[1] or len(shapes[0]) < 4 or shapes[0][-1] != 3:
        raise ValueError(
            f"ssim: pictures have shapes {shapes}, expected one shape (B,…,H,W,3), channels last; a single picture "
            "needs a batch axis: image[None]"
        )
    if min(shapes[0][-3:-1]) < WINDOW:
        raise ValueError(f"ssim: pictures of shape {shapes[0]} are smaller than the window of {WINDOW}×{WINDOW} pixels")
    height, width = shapes[0][-3:-1]
    first, second = (
        images.float().reshape(len(images), -1, height, width, 3).movedim(-1, 1).flatten(1, 2)
        for images in (predicted, target)
    )
    moments = torch.stack([first, second, first * first, second * second, first * second])  # (5,B,M,H,W)
    mean_a, mean_b, square_a, square_b, product = _blurred(moments)
    variance_a, variance_b = square_a - mean_a * mean_a, square_b - mean_b * mean_b
    covariance = product - mean_a * mean_b
    numerator = (2 * mean_a * mean_b + _K1**2) * (2 * covariance + _K2**2)
    denominator = (mean_a * mean_a + mean_b * mean_b + _K1**2) * (variance_a + variance_b + _K2**2)
    return (numerator / denominator).flatten(1).mean(1)


def _blurred(maps: Tensor) -> Tensor:  # (…,H,W) -> (…,H-10,W-10)
    """Weighted means over the windows, one direction after the other."""
    offsets = torch.arange(WINDOW) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    weights = (weights / weights.sum()).tolist()
    for axis in (-1, -2):
        size = maps.shape[axis] - WINDOW + 1
        total = weights[0] * maps.narrow(axis, 0, size)
        for i, weight in enumerate(weights[1:], start=1):
            total = total + weight * maps.narrow(axis, i, size)
        maps = total
    return maps
