import numpy as np
import pytest
import torch

from invert3d_core.errors import FormatError
from invert3d_core.rotations import rotation_matrices
from invert3d_core.splats import spherical_harmonics
from invert3d_core.splats.spherical_harmonics import basis, coefficients, evaluate, rotate, wigner


def unit(*rows):
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=1)


def test_the_basis_is_orthonormal_on_the_sphere():
    """∫ Y_i Y_j = δ_ij, by a quadrature that is exact for these polynomials."""
    z, weights = np.polynomial.legendre.leggauss(8)
    turn = np.arange(16) * 2 * np.pi / 16
    radius = np.sqrt(1 - z**2)[:, None]
    directions = np.stack(np.broadcast_arrays(radius * np.cos(turn), radius * np.sin(turn), z[:, None]), -1)
    values = basis(torch.from_numpy(directions).reshape(-1, 3), 4)
    weight = torch.from_numpy(np.repeat(weights * 2 * np.pi / 16, 16))
    gram = values.T @ (values * weight[:, None])
    torch.testing.assert_close(gram, torch.eye(25, dtype=torch.float64), rtol=0, atol=1e-12)


def test_each_band_has_its_parity():
    directions = unit((1, 2, 3), (-2, 1, 0.5), (0.1, -3, 1))
    sign = torch.cat([torch.full((2 * band + 1,), (-1.0) ** band) for band in range(5)])
    torch.testing.assert_close(basis(-directions, 4), basis(directions, 4) * sign)


def test_the_constant_is_the_first_function():
    assert abs(spherical_harmonics.C0 - 0.5 / np.sqrt(np.pi)) < 1e-16
    assert (basis(unit((1, 2, 3)), 4)[:, 0] == spherical_harmonics.C0).all()


def test_numbers_of_the_reference():
    sh = torch.sin(0.1 * torch.arange(1, 97, dtype=torch.float64)).reshape(2, 3, 16).transpose(1, 2)
    directions = unit((1, 2, 3), (-2, 1, 0.5))
    expected = {
        0: [[0.028162487, 0.279743478, -0.044499239], [-0.277144765, 0.060684228, 0.273600864]],
        1: [[0.041195294, 0.277380888, -0.057394072], [-0.548154455, 0.24814889, 0.533662797]],
        2: [[-0.219335151, 0.023738569, 0.217948841], [-0.233886344, 0.172605181, 0.223806366]],
        3: [[-0.738103618, -0.04474691, 0.740716795], [0.144860237, -0.639270994, -0.107527422]],
    }
    for degree, values in expected.items():
        torch.testing.assert_close(
            evaluate(sh, directions, degree), torch.tensor(values, dtype=torch.float64), rtol=0, atol=2e-9
        )


def test_evaluate_broadcasts_and_has_gradients():
    sh = torch.randn(5, 1, 16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    directions = unit((1, 2, 3), (-2, 1, 0.5)).requires_grad_()
    assert evaluate(sh, directions, 3).shape == (5, 2, 3)
    assert torch.autograd.gradcheck(lambda s, d: evaluate(s, d, 3), (sh, directions))


@pytest.mark.parametrize(("degree", "count"), [(0, 1), (1, 4), (2, 9), (3, 16), (4, 25)])
def test_coefficients(degree, count):
    assert coefficients(degree) == count
    assert basis(unit((0, 0, 1)), degree).shape == (1, count)


@pytest.mark.parametrize(
    ("shape", "directions", "degree", "message"),
    [
        ((2, 4, 3), (2, 3), 5, "Spherical harmonics of degree 5 are not supported: expected 0 to 4"),
        ((2, 4, 3), (2, 3), -1, "Spherical harmonics of degree -1"),
        ((2, 4, 3), (2, 3), 2, "Degree 2 needs 9 coefficients a channel and the splats have 4. Ask for a lower"),
        ((2, 3, 4), (2, 3), 0, r"have shape \(2, 3, 4\) and directions \(2, 3\); expected \(N,K,3\)"),
        ((2, 4, 3), (2, 4), 0, r"directions \(2, 4\)"),
    ],
)
def test_errors(shape, directions, degree, message):
    with pytest.raises(FormatError, match=message):
        evaluate(torch.zeros(shape), torch.zeros(directions), degree)


# ---------------------------------------------------------------------------------------------------------- rotation


def some_rotations(count):
    return rotation_matrices(torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("degree", range(5))
def test_a_turned_function_has_its_values_at_turned_directions(degree):
    """f_rotated(R d) = f(d), to degree 4 and for every direction."""
    sh = torch.randn(6, coefficients(degree), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    directions = unit((1, 2, 3), (-2, 1, 0.5), (0, 0, 1), (0, -1, 0), (1, 0, 0), (0.3, -0.2, -0.9))
    for rotation in some_rotations(4):
        turned = evaluate(rotate(sh, rotation), directions @ rotation.T, degree)
        torch.testing.assert_close(turned, evaluate(sh, directions, degree), rtol=0, atol=1e-12)


def test_wigner_matrices_are_a_group():
    first, second = some_rotations(2)
    eye = torch.eye(25, dtype=torch.float64)
    torch.testing.assert_close(wigner(torch.eye(3), 4), eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(wigner(first, 4) @ wigner(second, 4), wigner(first @ second, 4), rtol=0, atol=1e-12)
    torch.testing.assert_close(wigner(first, 4) @ wigner(first, 4).T, eye, rtol=0, atol=1e-12)


def test_wigner_matrices_stay_within_their_bands():
    matrix = wigner(some_rotations(1)[0], 4)
    band = torch.arange(25).sqrt().floor()
    assert matrix[band[:, None] != band].abs().max() < 1e-12
    assert matrix[band[:, None] == band].abs().max() > 0.1


def test_a_quarter_turn_about_z_by_hand():
    # x → y: what grew with x grows with y. Band 1 is (−y, z, −x) up to a factor.
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    sh = torch.tensor([[5.0], [1], [2], [3]]).expand(4, 3)[None]
    torch.testing.assert_close(rotate(sh, quarter)[0, :, 0], torch.tensor([5.0, 3, 2, -1]), rtol=0, atol=1e-6)


def test_rotation_has_gradients():
    sh = torch.randn(2, 9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    rotation = some_rotations(1)[0].requires_grad_()
    assert torch.autograd.gradcheck(rotate, (sh, rotation))


@pytest.mark.parametrize(("sh", "rotation"), [((2, 5, 3), (3, 3)), ((2, 4, 4), (3, 3)), ((2, 4, 3), (4, 4))])
def test_rotation_of_something_else(sh, rotation):
    with pytest.raises(FormatError, match=r"and the rotation .* expected \(N,K,3\) with K = 1, 4, 9, 16, 25"):
        rotate(torch.zeros(sh), torch.zeros(rotation))
