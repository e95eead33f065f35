"""Splats made of other splats."""

import pytest
import torch

from invert3d_core.splats import GaussianSplats
from invert3d_core.splats.edit import most_visible


def make(opacities: list[float], scales: list[list[float]]) -> GaussianSplats:
    count = len(opacities)
    return GaussianSplats(
        positions=torch.arange(3.0 * count).reshape(count, 3),
        scales=torch.tensor(scales).float(),
        rotations=torch.tensor([[1.0, 0, 0, 0]]).expand(count, 4),
        opacities=torch.tensor(opacities),
        sh=torch.arange(3.0 * count).reshape(count, 1, 3),
        comment="a comment",
    )


def test_keeps_what_covers_most_in_the_order_of_the_file() -> None:
    # Covered: 0.5·2·1 = 1, 1·1·1 = 1 (thin along one axis), 0.9·4·2 = 7.2, 1·0.1·0.1 = 0.01.
    splats = make([0.5, 1.0, 0.9, 1.0], [[1, 2, 0.5], [1, 1e-6, 1], [0.1, 4, 2], [0.1, 0.1, 0.1]])
    kept = most_visible(splats, 2)
    assert kept.positions[:, 0].tolist() == [0, 6]  # the first of two equals, then the largest: file order
    assert kept.sh[:, 0, 0].tolist() == [0, 6]
    assert kept.opacities[:, 0].tolist() == pytest.approx([0.5, 0.9])
    assert kept.comment == "a comment"
    assert most_visible(splats, 1).positions[:, 0].tolist() == [6]


def test_all_is_nothing_changed() -> None:
    splats = make([0.5, 1.0], [[1, 1, 1], [2, 2, 2]])
    assert most_visible(splats, 2) is splats
    assert most_visible(splats, 100) is splats


def test_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="count is 0, expected at least 1"):
        most_visible(make([1.0], [[1, 1, 1]]), 0)
