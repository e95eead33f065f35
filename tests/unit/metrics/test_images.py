import math

import pytest
import torch

from invert3d_core import metrics


def white(*shape):
    return torch.ones(*shape, 3)


def test_psnr_by_hand():
    target = torch.zeros(2, 4, 4, 3)
    predicted = target.clone()
    predicted[0] += 0.1
    predicted[1, 0, 0, 0] = 1.0  # one of 48 values
    found = metrics.psnr(predicted, target)
    assert found.tolist() == pytest.approx([20.0, 10 * math.log10(48)], abs=1e-5)


def test_psnr_of_equal_pictures_is_infinite_and_symmetric():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 5, 5, 3, generator=generator)
    assert metrics.psnr(a, a).isinf().all()
    torch.testing.assert_close(metrics.psnr(a, b), metrics.psnr(b, a))


def test_views_of_an_asset_are_pooled():
    """Pooling is the mean of the squared errors, not of the decibels."""
    target = torch.zeros(1, 2, 4, 4, 3)
    predicted = target.clone()
    predicted[0, 0] += 0.1
    assert metrics.psnr(predicted, target).tolist() == pytest.approx([-10 * math.log10(0.005)], abs=1e-5)
    assert metrics.psnr(predicted[0], target[0]).tolist() == [pytest.approx(20, abs=1e-4), math.inf]


def test_a_full_mask_is_no_mask_and_an_empty_one_judges_nothing():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 3, 5, 5, 3, generator=generator)
    torch.testing.assert_close(metrics.psnr(a, b, torch.ones(3, 5, 5)), metrics.psnr(a, b))
    assert metrics.psnr(a, b, torch.zeros(3, 5, 5, dtype=torch.bool)).isinf().all()


def test_foreground_is_any_channel_below_the_threshold():
    picture = white(1, 2, 2)
    picture[0, 0, 0, 2] = 0.93
    picture[0, 1, 1] = 0.95
    assert metrics.foreground_mask(picture).tolist() == [[[True, False], [False, False]]]


def test_foreground_psnr_is_over_the_union():
    target, predicted = white(1, 4, 4), white(1, 4, 4)
    target[0, 0, :2] = 0  # two pixels
    predicted[0, 0, 1:3] = 0  # two pixels, one of them shared: union 3, wrong 2
    expected = -10 * math.log10(2 / 3)
    assert metrics.foreground_psnr(predicted, target).tolist() == pytest.approx([expected], abs=1e-5)
    larger = (
        torch.nn.functional.pad(predicted, (0, 0, 9, 9), value=1),
        torch.nn.functional.pad(target, (0, 0, 9, 9), value=1),
    )
    assert metrics.foreground_psnr(*larger).tolist() == pytest.approx([expected], abs=1e-5), (
        "empty margins do not count"
    )
    assert metrics.foreground_psnr(white(1, 2, 2), white(1, 2, 2)).isinf().all()


def test_given_masks_replace_the_threshold():
    target, predicted = white(1, 2, 2), white(1, 2, 2) * 0.5
    alpha = torch.tensor([[[0.9, 0.2], [0.0, 0.0]]])
    found = metrics.foreground_psnr(predicted, target, alpha, torch.zeros(1, 2, 2))
    assert found.tolist() == pytest.approx([-10 * math.log10(0.25)], abs=1e-5)


def test_silhouette_iou():
    a = torch.tensor([[[True, True], [False, False]], [[False, False], [False, False]], [[True, True], [True, True]]])
    b = torch.tensor([[[1.0, 0.0], [0.6, 0.4]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    assert metrics.silhouette_iou(a, b).tolist() == pytest.approx([1 / 3, 1, 1])
    assert metrics.silhouette_iou(a[None], b[None]).tolist() == pytest.approx([5 / 7])


def test_psnr_is_differentiable():
    predicted = torch.full((2, 3, 3, 3), 0.5, requires_grad=True)
    metrics.psnr(predicted, torch.zeros(2, 3, 3, 3)).sum().backward()
    assert predicted.grad is not None and (predicted.grad < 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.psnr(torch.zeros(4, 4, 3), torch.zeros(4, 4, 3)), r"image\[None\]"),
        (lambda: metrics.psnr(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)), "channels last"),
        (lambda: metrics.psnr(torch.zeros(1, 4, 4, 3), torch.zeros(1, 5, 4, 3)), "one shape"),
        (
            lambda: metrics.psnr(torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 5)),
            r"expected \(1, 4, 4\)",
        ),
        (lambda: metrics.silhouette_iou(torch.zeros(1, 4, 4), torch.zeros(1, 5, 4)), r"\(1, 5, 4\)"),
        (lambda: metrics.foreground_mask(torch.zeros(3, 4, 4)), "channels last"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
