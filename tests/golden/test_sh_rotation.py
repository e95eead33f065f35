"""Spherical harmonics after a rotation, against coefficients computed elsewhere."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from invert3d_core.splats import spherical_harmonics

DATA = safetensors.torch.load_file(Path(__file__).parent / "invert3d" / "sh_rotation.safetensors")


@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-6)])
def test_rotated_coefficients(degree: int, dtype: torch.dtype, tolerance: float) -> None:
    count = (degree + 1) ** 2
    for rotation, expected in zip(DATA["rotations"], DATA["sh_rotated"], strict=True):
        rotated = spherical_harmonics.rotate(DATA["sh"][:, :count].to(dtype), rotation.to(dtype))
        assert rotated.dtype == dtype
        torch.testing.assert_close(rotated.double(), expected[:, :count], rtol=0, atol=tolerance)


def test_a_rotation_for_each_splat() -> None:
    rotations, sh = DATA["rotations"][:5], DATA["sh"]
    expected = torch.stack([DATA["sh_rotated"][i, i] for i in range(5)])
    torch.testing.assert_close(spherical_harmonics.rotate(sh, rotations), expected, rtol=0, atol=1e-10)
