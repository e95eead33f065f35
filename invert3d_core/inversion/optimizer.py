"""AdamW over a batch of independent tokens, as a pure function of its state."""

import math

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
    beta1, beta2 = betas
    first_moment = first_moment.lerp(gradient, 1 - beta1)
    second_moment = second_moment * beta2 + (1 - beta2) * gradient.square()
    spread = (second_moment.sqrt() / math.sqrt(1 - beta2**step)).add(epsilon)
    vectors = vectors * (1 - learning_rate * weight_decay)
    vectors = vectors - learning_rate / (1 - beta1**step) * first_moment / spread
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
