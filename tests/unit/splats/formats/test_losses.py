import numpy as np
import pytest
import torch

from invert3d_core.splats import GaussianSplats
from invert3d_core.splats.formats.buffer import Block
from invert3d_core.splats.formats.losses import Losses, blocks, rows


def some_splats(count=4, degree=1, comment=""):
    g = torch.Generator().manual_seed(0)
    sh = torch.randn(count, (degree + 1) ** 2, 3, generator=g)
    positions, scales = torch.randn(count, 3, generator=g), torch.rand(count, 3, generator=g) + 0.1
    return GaussianSplats(positions, scales, torch.eye(4)[:count], torch.full((count, 1), 0.5), sh, comment)


def copied(block):
    return Block(*(array.copy() for array in block))


def test_what_stays_is_no_loss():
    losses, arrays = Losses(), blocks(some_splats())
    arrays.scales[1, 2] = 0
    back = copied(arrays)
    back.rotations[:] *= -1
    for array in (back.positions, back.scales):
        np.nextafter(array, np.float32(9), out=array, where=array != 0)
    losses.compare(arrays, back)
    assert losses.words() == []


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("positions", 0.25, "position precision (moves by up to 0.25)"),
        ("opacities", -0.125, "opacity precision (changes by up to 0.12)"),
        ("sh", 0.5, "view-dependent colour precision (coefficients change by up to 0.5)"),
    ],
)
def test_the_largest_change_of_each_kind(name, change, words):
    losses, arrays = Losses(), blocks(some_splats())
    for part in (change / 2, change, change / 4):
        back = copied(arrays)
        getattr(back, name)[2, -1] += part
        losses.compare(arrays, back)
    assert losses.words() == [words]


def test_a_far_splat_does_not_hide_how_others_move():
    losses, arrays = Losses(), blocks(some_splats())
    arrays.positions[0] = 1e7
    back = copied(arrays)
    back.positions[2, 1] += 1e-4
    np.nextafter(back.positions[:1], np.float32(9), out=back.positions[:1])
    losses.compare(arrays, back)
    assert losses.words() == ["position precision (moves by up to 0.0001)"]


def test_changes_that_are_relative():
    losses, arrays = Losses(), blocks(some_splats())
    back = copied(arrays)
    back.scales[0, 0] *= 1.02
    back.sh[1, 0, 2] -= 0.1
    back.rotations[0] = [np.cos(np.radians(0.05)), np.sin(np.radians(0.05)), 0, 0]
    losses.compare(arrays, back)
    assert losses.words() == [
        "scale precision (changes by up to 2.00%)",
        "rotation precision (turns by up to 0.1 degrees)",
        "colour precision (changes by up to 0.028)",
    ]


def test_values_outside_a_range_are_counted_once_a_splat():
    losses = Losses()
    values = np.array([[0, 1, 2.5], [3, 3, 3], [-1, 0, 0], [0, 2, 1e-7]], np.float32)
    assert losses.clip(values, 0, 2, "lengths").tolist() == [[0, 1, 2], [2, 2, 2], [0, 0, 0], [0, 2, np.float32(1e-7)]]
    inside = values.clip(0, 2)
    assert losses.clip(inside, 0, 2, "lengths") is inside
    losses.clip(values[:1], 0, 2, "lengths")
    # float32's rounding of a bound is no loss
    losses.clip(np.array([[2.000001]], np.float32), 0, 2, "others")
    assert losses.words() == ["lengths of 4 splats, clipped"]


@pytest.mark.parametrize(("degree", "kept", "words"), [(3, 2, "3"), (4, 2, "3 to 4"), (2, 0, "1 to 2")])
def test_cut_degrees(degree, kept, words):
    losses = Losses()
    losses.truncate(some_splats(degree=degree), kept)
    assert losses.words() == [f"view-dependent colour (SH degree {words})"]


def test_cutting_zeros_or_nothing_is_no_loss():
    losses, g = Losses(), some_splats(degree=3)
    losses.truncate(g, 3)
    losses.truncate(g, 4)
    g.sh[:, 4:] = 0
    losses.truncate(g, 1)
    losses.comment(g)
    assert losses.words() == []
    losses.comment(some_splats(comment="from a scanner"))
    losses.note("more")
    assert losses.words() == ["the comment, and what it states about the axes", "more"]


def test_rows_have_unit_quaternions():
    g = some_splats()
    g.rotations[1] = torch.tensor([0.0, 0, 3, 4])
    block = rows(blocks(g), slice(1, 2))
    assert block.rotations.tolist() == [[0, 0, np.float32(0.6), np.float32(0.8)]]
    assert g.rotations[1].tolist() == [0, 0, 3, 4]
