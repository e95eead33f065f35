"""Covering primitives with splats: on the surface, evenly, outward."""

import math

import pytest
import torch

from invert3d_core.rotations import rotation_matrices
from invert3d_core.toy.primitives import (
    BALL,
    BOX,
    COLUMNS,
    RING,
    TUBE,
    bounding_sphere,
    cover,
    quaternions_facing,
    surface_areas,
)

ONES = torch.ones(1, 3)


def primitive(kind: int, half: tuple[float, float, float], taper: float = 1.0) -> torch.Tensor:
    row = torch.zeros(1, 1, COLUMNS)
    row[..., 0] = kind
    row[..., 4:7] = torch.tensor(half)
    row[..., 7] = taper
    row[..., 8:17] = torch.eye(3).flatten()
    return row


def test_areas_of_solids_with_known_ones():
    assert surface_areas(primitive(BOX, (1, 2, 3))).item() == pytest.approx(88)
    assert surface_areas(primitive(BALL, (2, 2, 2))).item() == pytest.approx(16 * math.pi, rel=1e-5)
    assert surface_areas(primitive(TUBE, (1, 2, 1))).item() == pytest.approx(2 * math.pi * 4 + 2 * math.pi, rel=1e-5)
    assert surface_areas(primitive(RING, (2, 0.5, 2))).item() == pytest.approx(4 * math.pi**2, rel=1e-5)
    assert surface_areas(primitive(-1, (1, 1, 1))).item() == 0


def test_splats_lie_on_the_surface_and_look_outward():
    ball = cover(primitive(BALL, (0.5, 0.5, 0.5)), ONES, 500)
    assert ball["positions"].norm(dim=-1).sub(0.5).abs().max() < 1e-5
    assert (ball["positions"] * ball["normals"]).sum(-1).min() > 0
    ring = cover(primitive(RING, (1, 0.2, 1)), ONES, 500)["positions"][0]
    to_line = torch.stack([ring[:, [0, 2]].norm(dim=-1) - 1, ring[:, 1]], -1).norm(dim=-1)
    assert to_line.sub(0.2).abs().max() < 1e-5
    cone = cover(primitive(TUBE, (1, 1, 1), taper=0.5), ONES, 2000)
    side = cone["normals"][0, :, 1].abs() < 0.9
    radius = cone["positions"][0, side][:, [0, 2]].norm(dim=-1)
    assert (radius - (0.75 - 0.25 * cone["positions"][0, side, 1])).abs().max() < 0.06


@pytest.mark.parametrize("kind", (BOX, BALL, TUBE))
def test_splats_are_spread_evenly(kind):
    """The nearest neighbour of most splats is about as far as an even spread puts it."""
    points = cover(primitive(kind, (0.6, 0.8, 0.6), 0.7), ONES, 1500)["positions"][0]
    apart = torch.cdist(points, points).fill_diagonal_(9).amin(1)
    ideal = math.sqrt(surface_areas(primitive(kind, (0.6, 0.8, 0.6), 0.7)).item() / 1500)
    assert 0.5 < (apart / ideal).median() < 1.3
    assert (apart / ideal > 0.25).float().mean() > 0.9


def test_normals_become_rotations_that_face_them():
    normals = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    normals[0] = torch.tensor([0.0, 0.0, -1.0])
    assert (rotation_matrices(quaternions_facing(normals))[..., 2] - normals).abs().max() < 1e-3


def test_a_batch_is_covered_as_its_members_alone():
    rows = torch.cat([primitive(BOX, (1, 2, 3)), primitive(TUBE, (1, 1, 1), 0.4)])
    stretch = torch.tensor([[1.0, 1.2, 0.9], [1.1, 0.8, 1.0]])
    together = cover(rows, stretch, 300)
    for index in range(2):
        alone = cover(rows[index : index + 1], stretch[index : index + 1], 300)
        assert torch.equal(together["positions"][index], alone["positions"][0])
    center, radius = bounding_sphere(together["positions"], together["scales"].amax(-1))
    assert center.shape == (2, 3) and (radius > 0).all()
