import numpy as np
import pytest

from invert3d_core.splats.formats.smallest_three import join, settle, split


def unit_quaternions(count, seed=0):
    q = np.random.default_rng(seed).normal(size=(count, 4))
    return (q / np.linalg.norm(q, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("place", range(4))
def test_the_largest_part_is_left_out(place):
    parts = [0.1, -0.2, 0.3]
    largest = -np.sqrt(1 - 0.14)
    q = np.array([[*parts[:place], largest, *parts[place:]]])
    index, others = split(q)
    assert index.tolist() == [place]
    np.testing.assert_allclose(others, [[-0.1, 0.2, -0.3]])
    np.testing.assert_allclose(join(index, others), -q, rtol=1e-6)


def test_joining_what_was_split():
    q = unit_quaternions(1000)
    back = join(*split(q))
    np.testing.assert_allclose(back * np.sign((back * q).sum(1))[:, None], q, atol=1e-6)
    assert (back.max(axis=1) >= np.abs(back).max(axis=1) - 1e-6).all()


def test_parts_that_leave_no_room_for_the_largest():
    assert join(np.array([1]), np.array([[0.7, 0.7, 0.7]])).tolist() == [[np.float32(0.7), 0, *[np.float32(0.7)] * 2]]


@pytest.mark.parametrize("levels", [5, 31, 511])
def test_settled_codes_come_back(levels):
    """Splitting and rounding what was joined gives the same codes, up to which of two equal parts is left out."""

    def decode(codes):
        return codes / (levels * np.sqrt(2))

    q = unit_quaternions(3000, seed=levels)
    q[:1000, 1] = q[:1000, 0] + np.random.default_rng(1).normal(0, 0.3 / levels, 1000)
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    index, others = split(q)
    codes = np.rint(others * levels * np.sqrt(2)).clip(-levels, levels).astype(np.int32)
    rounded = codes.copy()
    settle(codes, 0, decode)
    assert (np.abs(codes - rounded) <= 2).all()
    first = join(index, decode(codes))
    again, others = split(first)
    codes = np.rint(others * levels * np.sqrt(2)).clip(-levels, levels).astype(np.int32)
    settle(codes, 0, decode)
    second = join(again, decode(codes))
    np.testing.assert_allclose(second * np.sign((second * first).sum(1))[:, None], first, atol=2e-6)
    if levels == 5:
        assert (codes != rounded).any()


def test_two_equal_parts_stay_equal():
    half = np.sqrt(0.5)
    codes = np.rint(np.array([[half, 0, 0]]) * 511 * np.sqrt(2)).astype(np.int32)
    settle(codes, 0, lambda c: c / (511 * np.sqrt(2)))
    assert codes.tolist() == [[511, 0, 0]]
