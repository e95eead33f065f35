import math

import pytest
import torch

from invert3d_core.rotations import (
    conjugate,
    from_angles,
    from_rotation_vectors,
    multiply,
    quaternions,
    rotation_matrices,
    rotation_vectors,
    slerp,
)

HALF = math.sqrt(0.5)


def some_quaternions(count=200):
    values = torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    halves = torch.eye(4, dtype=torch.float64)  # half turns, where w is 0
    small = torch.tensor([[1.0, 1e-9, 0, 0], [1e-9, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.float64)
    values = torch.nn.functional.normalize(torch.cat([values, halves, small]), dim=1)
    return torch.where(values[:, :1] < 0, -values, values)


@pytest.mark.parametrize(
    ("quaternion", "rotation"),
    [
        ((1, 0, 0, 0), [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ((HALF, HALF, 0, 0), [[1, 0, 0], [0, 0, -1], [0, 1, 0]]),  # 90° about x: y → z
        ((HALF, 0, 0, HALF), [[0, -1, 0], [1, 0, 0], [0, 0, 1]]),  # 90° about z: x → y
        ((0, 0, 1, 0), [[-1, 0, 0], [0, 1, 0], [0, 0, -1]]),  # 180° about y
    ],
)
def test_by_hand(quaternion, rotation):
    q, r = torch.tensor(quaternion, dtype=torch.float64), torch.tensor(rotation, dtype=torch.float64)
    torch.testing.assert_close(rotation_matrices(3 * q), r)
    assert abs(float(quaternions(r) @ q)) == pytest.approx(1, abs=1e-12)


def test_rotation_laws():
    q = some_quaternions()
    r = rotation_matrices(q)
    torch.testing.assert_close(r @ r.mT, torch.eye(3, dtype=torch.float64).expand_as(r), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.linalg.det(r), torch.ones(len(q), dtype=torch.float64))
    torch.testing.assert_close(rotation_matrices(-3 * q), r)
    torch.testing.assert_close(rotation_matrices(conjugate(q)), r.mT)
    assert torch.equal(rotation_matrices(torch.zeros(1, 4)), torch.eye(3)[None])


def test_matrices_and_quaternions_are_the_same_rotations():
    given = some_quaternions()
    found = quaternions(rotation_matrices(given))
    sign = (given * found).sum(1, keepdim=True).sign()
    torch.testing.assert_close(found, given * sign, rtol=0, atol=1e-9)
    assert (found[:, 0] >= 0).all()
    batch = given.reshape(4, -1, 4)
    assert torch.equal(quaternions(rotation_matrices(batch)), found.reshape(4, -1, 4))


def test_a_rounded_matrix_gives_a_rotation_near_it():
    """Files round their matrices, some of them to four digits."""
    given = rotation_matrices(some_quaternions())
    found = rotation_matrices(quaternions(given.mul(1e4).round() / 1e4))
    torch.testing.assert_close(found, given, rtol=0, atol=2e-4)


def test_product_turns_by_the_second_first():
    first, second = some_quaternions().flip(0), some_quaternions()
    product = rotation_matrices(multiply(first, second))
    expected = rotation_matrices(first) @ rotation_matrices(second)
    torch.testing.assert_close(product, expected, rtol=0, atol=1e-12)


def test_quaternions_have_gradients_near_half_turns():
    given = some_quaternions(3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda q: quaternions(rotation_matrices(q)), (given[[0, 1, 2]].detach().requires_grad_(),)
    )
    quaternions(rotation_matrices(given)).square().sum().backward()
    assert given.grad.isfinite().all()


def test_rotation_vectors_there_and_back():
    q = some_quaternions()[:200]
    vector = rotation_vectors(q)
    assert vector.norm(dim=-1).max() <= math.pi
    torch.testing.assert_close(from_rotation_vectors(vector), q)
    torch.testing.assert_close(rotation_vectors(-q), vector)  # the same rotations
    torch.testing.assert_close(rotation_matrices(q), torch.linalg.matrix_exp(skew(vector)))
    assert rotation_vectors(from_rotation_vectors(torch.zeros(3))).tolist() == [0, 0, 0]


def skew(v):
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    rows = ([zero, -z, y], [z, zero, -x], [-y, x, zero])
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def test_slerp_turns_evenly_the_short_way():
    angles = torch.linspace(0, 1, 11, dtype=torch.float64)

    def about_y(degrees):
        half = math.radians(degrees) / 2
        return torch.tensor([math.cos(half), 0, math.sin(half), 0], dtype=torch.float64)

    for degrees, expected in ((120, 120), (350, -10)):
        turned = slerp(about_y(0).expand(11, 4), about_y(degrees).expand(11, 4), angles)
        for share, q in zip(angles.tolist(), turned, strict=True):
            assert abs(float(q @ about_y(expected * share))) == pytest.approx(1, abs=1e-12)


def test_slerp_of_equal_and_of_nearly_equal_ones():
    q = some_quaternions()[:5]
    share = torch.full((5,), 0.3, dtype=torch.float64)
    torch.testing.assert_close(slerp(q, q, share), q)
    torch.testing.assert_close(slerp(q, -q, share), q)
    near = torch.nn.functional.normalize(q + 1e-9, dim=-1)
    assert slerp(q, near, share).isfinite().all()


def test_angles_turn_about_x_then_y_then_z():
    x, y, z = torch.eye(3, dtype=torch.float64)
    for turned, expected in (
        (from_angles(90, 0, 0) @ y, z),
        (from_angles(0, 90, 0) @ z, x),
        (from_angles(0, 0, 90) @ x, y),
        (from_angles(90, 0, 90) @ y, z),
        (from_angles(90, 90, 0) @ y, x),
    ):
        torch.testing.assert_close(turned, expected, rtol=0, atol=1e-12)
