import itertools

import pytest
import torch

from invert3d_core.inversion.optimizer import adamw, clip_norm, learning_rate_at, with_norm


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_adamw_is_torchs(weight_decay):
    g = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(2, 3, 4, generator=g), torch.randn(20, 2, 3, 4, generator=g)
    parameter = torch.nn.Parameter(start.clone())
    oracle = torch.optim.AdamW([parameter], lr=0.05, betas=(0.9, 0.99), weight_decay=weight_decay)
    mine, first, second = start, torch.zeros_like(start), torch.zeros_like(start)
    for k, gradient in enumerate(gradients):
        parameter.grad = gradient
        oracle.step()
        mine, first, second = adamw(
            mine, gradient, first, second, k + 1, learning_rate=0.05, betas=(0.9, 0.99), weight_decay=weight_decay
        )
        torch.testing.assert_close(mine, parameter.detach(), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(mine, start)


def test_learning_rate_warms_up_and_falls_to_its_fraction():
    rates = [learning_rate_at(i, 100, 2.0, 10, 0.1) for i in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(2.0, rel=0.03)
    assert rates.index(max(rates)) == 9
    assert rates[-1] == pytest.approx(0.2, rel=0.01)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
    assert {learning_rate_at(i, 100, 5e-3, 0, 1.0) for i in range(100)} == {5e-3}


def test_clipping_and_norms_are_per_token():
    gradient = torch.stack([torch.full((2, 8), 3.0), torch.full((2, 8), 0.01)])
    clipped = clip_norm(gradient, 1.0)
    torch.testing.assert_close(clipped[0].norm(), torch.tensor(1.0))
    assert torch.equal(clipped[1], gradient[1])
    assert torch.isfinite(clip_norm(torch.zeros(1, 2, 2), 1.0)).all()
    rows = with_norm(torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]), 10.0)
    torch.testing.assert_close(rows, torch.tensor([[[6.0, 8.0], [0.0, 10.0]]]))
