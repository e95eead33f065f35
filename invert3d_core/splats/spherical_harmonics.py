"""Real spherical harmonics, degree 0 to 4, in the order and with the signs of every Gaussian-splat format.

Condon-Shortley phase, m = -l..l, as in 3DGS (Kerbl et al. 2023) and glTF's KHR_gaussian_splatting; equal to
sqrt(2)·Re and sqrt(2)·Im of the complex harmonics for m > 0 and m < 0.
"""

from math import pi, sqrt

import numpy as np
import torch
from torch import Tensor

from ..errors import FormatError

MAX_DEGREE = 4
C0 = 0.28209479177387814
"""Y_0 = 1 / (2 sqrt(pi)): base colour = C0 · DC + 0.5."""

_C1 = sqrt(3 / (4 * pi))
_C2_PAIR, _C2_ZERO, _C2_TWO = sqrt(15 / (4 * pi)), sqrt(5 / (16 * pi)), sqrt(15 / (16 * pi))
_C3_XYZ, _C3_ZERO, _C3_ONE, _C3_TWO, _C3_THREE = (
    sqrt(105 / (4 * pi)),
    sqrt(7 / (16 * pi)),
    sqrt(21 / (32 * pi)),
    sqrt(105 / (16 * pi)),
    sqrt(35 / (32 * pi)),
)
_C4_ZERO, _C4_ONE, _C4_TWO, _C4_THREE, _C4_FOUR = (
    3 / 16 * sqrt(1 / pi),
    3 / 4 * sqrt(5 / (2 * pi)),
    3 / 8 * sqrt(5 / pi),
    3 / 4 * sqrt(35 / (2 * pi)),
    3 / 16 * sqrt(35 / pi),
)


def coefficients(degree: int) -> int:
    """How many coefficients a channel has up to and with a degree: (degree + 1)².

    Raises FormatError for a degree outside 0..4.
    """
    if degree not in range(MAX_DEGREE + 1):
        raise FormatError(f"Spherical harmonics of degree {degree} are not supported: expected 0 to {MAX_DEGREE}.")
    return (degree + 1) ** 2


def basis(
    directions: Tensor,  # (...,3)
    degree: int,
) -> Tensor:  # (...,K)
    """The K = (degree + 1)² basis functions at unit directions, in the directions' own precision; differentiable.

    Raises FormatError for a degree outside 0..4.
    """
    coefficients(degree)  # refuses a wrong one
    x, y, z = directions.unbind(-1)
    values = [torch.full_like(x, C0)]
    if degree > 0:
        values += [-_C1 * y, _C1 * z, -_C1 * x]
    if degree > 1:
        xx, yy, zz, xy, yz, xz = x * x, y * y, z * z, x * y, y * z, x * z
        values += [
            _C2_PAIR * xy,
            -_C2_PAIR * yz,
            _C2_ZERO * (2 * zz - xx - yy),
            -_C2_PAIR * xz,
            _C2_TWO * (xx - yy),
        ]
        if degree > 2:
            values += [
                -_C3_THREE * y * (3 * xx - yy),
                _C3_XYZ * xy * z,
                -_C3_ONE * y * (4 * zz - xx - yy),
                _C3_ZERO * z * (2 * zz - 3 * xx - 3 * yy),
                -_C3_ONE * x * (4 * zz - xx - yy),
                _C3_TWO * z * (xx - yy),
                -_C3_THREE * x * (xx - 3 * yy),
            ]
        if degree > 3:
            values += [
                4 * _C4_FOUR * xy * (xx - yy),
                -_C4_THREE * yz * (3 * xx - yy),
                2 * _C4_TWO * xy * (7 * zz - 1),
                -_C4_ONE * yz * (7 * zz - 3),
                _C4_ZERO * (zz * (35 * zz - 30) + 3),
                -_C4_ONE * xz * (7 * zz - 3),
                _C4_TWO * (xx - yy) * (7 * zz - 1),
                -_C4_THREE * xz * (xx - 3 * yy),
                _C4_FOUR * (xx * (xx - 3 * yy) - yy * (3 * xx - yy)),
            ]
    return torch.stack(values, dim=-1)


def evaluate(
    sh: Tensor,  # (N,K,3), or anything (...,K,3) that broadcasts with the directions
    directions: Tensor,  # (N,3), from the camera to the splat, unit length
    degree: int,
) -> Tensor:  # (N,3)
    """The view-dependent colour Σ_k sh_k Y_k(direction), **without** the offset 0.5 that makes it a colour.

    sh: DC first; rows beyond the degree are left out. directions: unit vectors, pointing from the camera to the splat.
    colour = max(0, value + 0.5). Computed in the inputs' precision; differentiable in both.

    Raises FormatError for a degree outside 0..4, for fewer coefficients than the degree needs, and for other shapes.
    """
    count = coefficients(degree)
    if sh.ndim < 2 or sh.shape[-1] != 3 or directions.shape[-1:] != (3,):
        raise FormatError(
            f"Spherical harmonics have shape {tuple(sh.shape)} and directions {tuple(directions.shape)}; expected "
            "(N,K,3) and (N,3)."
        )
    if sh.shape[-2] < count:
        raise FormatError(
            f"Degree {degree} needs {count} coefficients a channel and the splats have {sh.shape[-2]}. Ask for a "
            "lower degree."
        )
    return (basis(directions, degree)[..., None] * sh[..., :count, :]).sum(-2)


def rotate(
    sh: Tensor,  # (N,K,3), or anything (...,K,3)
    rotation: Tensor,  # (3,3), or (...,3,3) that broadcasts with the splats
) -> Tensor:  # (N,K,3)
    """The coefficients after the splats are turned by R: f_rotated(R d) = f(d) for every direction d.

    K = 1, 4, 9, 16 or 25. Each band is multiplied by its matrix of `wigner`; the first is unchanged. The result has the
    precision of sh; differentiable in both.
    Raises FormatError for another number of coefficients or other shapes.
    """
    degrees = {coefficients(degree): degree for degree in range(MAX_DEGREE + 1)}
    if sh.ndim < 2 or sh.shape[-1] != 3 or sh.shape[-2] not in degrees or rotation.shape[-2:] != (3, 3):
        raise FormatError(
            f"Spherical harmonics have shape {tuple(sh.shape)} and the rotation {tuple(rotation.shape)}; expected "
            f"(N,K,3) with K = {', '.join(map(str, degrees))}, and (3,3)."
        )
    matrix = wigner(rotation.cpu(), degrees[sh.shape[-2]]).to(sh)
    bands = [slice(degree**2, (degree + 1) ** 2) for degree in range(degrees[sh.shape[-2]] + 1)]
    return torch.cat([sh[..., :1, :], *(matrix[..., band, band] @ sh[..., band, :] for band in bands[1:])], dim=-2)


def wigner(
    rotation: Tensor,  # (...,3,3)
    degree: int,
) -> Tensor:  # (...,K,K)
    """The real Wigner matrices of rotations R up to a degree, one matrix (...,K,K) with a block for each band; float64.

    D_ij = ∫ Y_i(d) Y_j(R⁻¹ d) over the sphere, by a quadrature that is exact for polynomials of twice the degree:
    Gauss-Legendre in height, even steps around. Orthogonal; D(R) D(S) = D(R S). Differentiable.
    Raises FormatError for a degree outside 0..4.
    """
    directions, weights = _quadrature(degree, rotation.device)
    turned = directions @ rotation.double()  # rows: R⁻¹ d
    return (basis(directions, degree) * weights[:, None]).T @ basis(turned, degree)


def _quadrature(degree: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Unit directions (P,3) and their weights (P,), float64, exact for polynomials of degree 2 · degree."""
    heights, weights = np.polynomial.legendre.leggauss(degree + 1)
    steps = 2 * degree + 1
    angles = np.arange(steps) * (2 * pi / steps)
    rings = np.sqrt(1 - heights**2)[:, None]
    directions = np.stack(np.broadcast_arrays(rings * np.cos(angles), rings * np.sin(angles), heights[:, None]), -1)
    shares = np.repeat(weights * (2 * pi / steps), steps)
    return torch.from_numpy(directions.reshape(-1, 3)).to(device), torch.from_numpy(shares).to(device)
