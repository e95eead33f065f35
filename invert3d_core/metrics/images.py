"""Picture metrics: PSNR, PSNR over the foreground, overlap of silhouettes.

Pictures are channels-last, (B,…,H,W,3) in [0,1]. Each function gives one number per entry of the first axis and pools
everything behind it: (V,H,W,3) is judged view by view, (B,V,H,W,3) asset by asset over all of its V views, the
pictures of a batch never mix. Masks have the same shape without the channels.
"""

import torch
from torch import Tensor

FOREGROUND_THRESHOLD = 0.94  # on white: a pixel with any channel below it belongs to the object


def foreground_mask(images: Tensor, threshold: float = FOREGROUND_THRESHOLD) -> Tensor:
    """The object of pictures on a white background: (…,H,W,3) → (…,H,W) bool, true where any channel < threshold."""
    _check_images("foreground_mask", images, least=3)
    return (images < threshold).any(-1)


def psnr(predicted: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB: −10 log10 of the mean squared error of pictures (B,…,H,W,3) in [0,1].

    mask: (B,…,H,W), bool or weights in [0,1]: only those pixels count. Equal pictures, and an empty mask, give +inf.
    Differentiable. Raises ValueError when shapes do not fit.
    """
    _check_images("psnr", predicted, target)
    error = (predicted.float() - target.float()).square()
    if mask is None:
        mean = error.flatten(1).mean(1)
    else:
        _check_masks("psnr", predicted.shape[:-1], mask)
        weights = mask.to(error.dtype)
        total = (error * weights[..., None]).flatten(1).sum(1)
        mean = total / (weights.flatten(1).sum(1) * error.shape[-1]).clamp_min(1e-12)
    return -10 * torch.log10(mean)


def foreground_psnr(
    predicted: Tensor, target: Tensor, predicted_mask: Tensor | None = None, target_mask: Tensor | None = None
) -> Tensor:
    """PSNR (B,) in dB over the union of the two silhouettes, so that neither empty background flatters nor a missing
    part escapes.

    predicted, target: (B,…,H,W,3) in [0,1]. Masks (B,…,H,W): true, or at least 0.5, on the object; by default
    `foreground_mask` of the pictures, which must then be on white. An empty union gives +inf.
    Raises ValueError when shapes do not fit.
    """
    _check_images("foreground_psnr", predicted, target)
    first = foreground_mask(predicted) if predicted_mask is None else _as_bool(predicted_mask)
    second = foreground_mask(target) if target_mask is None else _as_bool(target_mask)
    _check_masks("foreground_psnr", predicted.shape[:-1], first, second)
    return psnr(predicted, target, first | second)


def silhouette_iou(predicted_mask: Tensor, target_mask: Tensor) -> Tensor:
    """Intersection over union (B,) in [0,1] of silhouettes (B,…,H,W): true, or at least 0.5, on the object.

    Two empty silhouettes overlap fully: 1. Raises ValueError when shapes do not fit.
    """
    _check_masks("silhouette_iou", predicted_mask.shape, target_mask)
    first, second = _as_bool(predicted_mask).flatten(1), _as_bool(target_mask).flatten(1)
    union = (first | second).sum(1)
    return torch.where(union > 0, (first & second).sum(1) / union.clamp_min(1), 1.0)


def _as_bool(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask >= 0.5


def _check_images(name: str, *images: Tensor, least: int = 4) -> None:
    shapes = [tuple(image.shape) for image in images]
    if len(set(shapes)) > 1 or len(shapes[0]) < least or shapes[0][-1] != 3:
        expected = "(B,…,H,W,3)" if least == 4 else "(…,H,W,3)"
        raise ValueError(
            f"{name}: pictures have shapes {shapes}, expected one shape {expected}, channels last; "
            "a single picture needs a batch axis: image[None]"
        )


def _check_masks(name: str, shape: torch.Size, *masks: Tensor) -> None:
    for mask in masks:
        if mask.shape != shape or len(shape) < 2:
            raise ValueError(f"{name}: a mask has shape {tuple(mask.shape)}, expected {tuple(shape)} (B,…,H,W)")
