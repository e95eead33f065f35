import math

import numpy as np
import pytest
import torch

from invert3d_core import metrics


def by_loops(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of one channel, window by window, from the paper."""
    offsets = np.arange(11) - 5
    row = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(row, row) / row.sum() ** 2
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
            var_p, var_q = (weights * (p - mean_p) ** 2).sum(), (weights * (q - mean_q) ** 2).sum()
            cov = (weights * (p - mean_p) * (q - mean_q)).sum()
            values.append(
                (2 * mean_p * mean_q + 1e-4)
                * (2 * cov + 9e-4)
                / ((mean_p**2 + mean_q**2 + 1e-4) * (var_p + var_q + 9e-4))
            )
    return float(np.mean(values))


def pictures(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(*shape, 3, generator=generator)
    return first, (first + 0.2 * torch.randn(*shape, 3, generator=generator)).clamp(0, 1)


def test_ssim_is_that_of_the_paper():
    a, b = pictures(2, 14, 13)
    expected = [
        np.mean([by_loops(a[i, ..., c].double().numpy(), b[i, ..., c].double().numpy()) for c in range(3)])
        for i in range(2)
    ]
    assert metrics.ssim(a, b).tolist() == pytest.approx(expected, abs=1e-5)
    assert 0 < expected[0] < 0.99


def test_ssim_of_flat_pictures_by_hand():
    """Without variance only the means count."""
    a, b = torch.full((1, 11, 11, 3), 0.5), torch.full((1, 11, 11, 3), 0.25)
    expected = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
    assert metrics.ssim(a, b).tolist() == pytest.approx([expected], abs=1e-5)


def test_ssim_of_equal_pictures_is_one_and_it_is_symmetric_and_pools_views():
    a, b = pictures(2, 3, 12, 16)
    assert metrics.ssim(a, a).tolist() == pytest.approx([1, 1], abs=1e-6)
    torch.testing.assert_close(metrics.ssim(a, b), metrics.ssim(b, a))
    each = metrics.ssim(a.flatten(0, 1), b.flatten(0, 1)).view(2, 3)
    torch.testing.assert_close(metrics.ssim(a, b), each.mean(1))


def test_ssim_is_differentiable_with_the_right_slope():
    a, b = pictures(1, 12, 12)
    direction = torch.randn(a.shape, generator=torch.Generator().manual_seed(2))
    moved = a.clone().requires_grad_()
    (slope,) = torch.autograd.grad(metrics.ssim(moved, b).sum(), moved)
    step = 1e-2
    found = (metrics.ssim(a + step * direction, b) - metrics.ssim(a - step * direction, b)) / (2 * step)
    assert float((slope * direction).sum()) == pytest.approx(float(found), rel=0.02)
    assert not math.isclose(float(found), 0, abs_tol=1e-3)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((12, 12, 3), (12, 12, 3)), r"image\[None\]"),
        (((1, 3, 12, 12), (1, 3, 12, 12)), "channels last"),
        (((1, 12, 12, 3), (1, 12, 13, 3)), "one shape"),
        (((1, 12, 10, 3), (1, 12, 10, 3)), "11×11"),
    ],
)
def test_errors(shapes, message):
    with pytest.raises(ValueError, match=message):
        metrics.ssim(*(torch.zeros(*shape) for shape in shapes))
