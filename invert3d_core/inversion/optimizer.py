"""AdamW over a batch of independent tokens, as a pure function of its state."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def adamw(
    vectors: Tensor,  # (A,n,d)
    gradient: Tensor,  # (A,n,d)
    first_moment: Tensor,  # (A,n,d)
    second_moment: Tensor,  # (A,n,d)
    step: int,
    *,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors and moments after one step of AdamW (Loshchilov and Hutter 2019); equal to `torch.optim.AdamW`'s.

    step: 1 for the first. A function rather than an optimiser, so that an interrupted step leaves the state it had.
    """
    scalars = adamw_scalars(step, learning_rate=learning_rate, betas=betas, weight_decay=weight_decay)
    return adamw_update(vectors, gradient, first_moment, second_moment, scalars, betas=betas, epsilon=epsilon)


def adamw_scalars(
    step: int, *, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> tuple[float, float, float]:
    """What of AdamW depends on the step and not on the vectors: what is kept of them, the rate over its bias, and the
    root of the second moment's bias.
    """
    beta1, beta2 = betas
    return 1 - learning_rate * weight_decay, learning_rate / (1 - beta1**step), math.sqrt(1 - beta2**step)


def adamw_update(
    vectors: Tensor,  # (A,n,d)
    gradient: Tensor,  # (A,n,d)
    first_moment: Tensor,  # (A,n,d)
    second_moment: Tensor,  # (A,n,d)
    scalars: Sequence[float] | Sequence[Tensor],  # three, of ()
    *,
    betas: tuple[float, float],
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The part of `adamw` that is the same at every step; scalars: of `adamw_scalars`, as numbers or as tensors ()."""
    beta1, beta2 = betas
    kept, rate, bias = scalars
    first_moment = first_moment.lerp(gradient, 1 - beta1)
    second_moment = second_moment * beta2 + (1 - beta2) * gradient.square()
    spread = (second_moment.sqrt() / bias).add(epsilon)
    vectors = vectors * kept
    vectors = vectors - rate * first_moment / spread
    return vectors, first_moment, second_moment


def learning_rate_at(step: int, steps: int, peak: float, warmup_steps: int, final: float) -> float:
    """Learning rate of a step: linear warm-up, then a half cosine from the peak to final · peak.

    step: 0 for the first, below steps. final: 1 stays at the peak.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return peak * warmup * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def clip_norm(gradient: Tensor, largest: float) -> Tensor:  # (A,n,d) -> (A,n,d)
    """Gradients scaled down, token by token, to a norm of at most `largest`."""
    norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
    return gradient * (largest / norm).clamp(max=1)[:, None, None]


def with_norm(vectors: Tensor, norm: float) -> Tensor:  # (...,d) -> (...,d)
    """Vectors of the given length in their own directions."""
    return vectors * (norm / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min(1e-12))
