"""Tokens for tests, and when two tensors are the same."""

import torch

from invert3d_core.tokens import Token


def make(name="cup", count=5, width=128, base="toy", seed=0, **fields):
    g = torch.Generator().manual_seed(seed)
    vectors, initial = torch.randn(2, count, width, generator=g)
    return Token(name, vectors, initial, base, **fields)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
