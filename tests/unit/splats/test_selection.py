import math

import pytest
import torch

from invert3d_core import cameras
from invert3d_core.rendering import rasterize
from invert3d_core.rotations import rotation_matrices
from invert3d_core.splats.selection import coverage, inside_box, inside_ellipsoid, inside_view, select
from tests.unit.rendering.scenes import built_of, cloud, tensors_of


def at(*positions):
    count = len(positions)
    return built_of(
        [
            torch.tensor(positions).float(),
            torch.full((count, 3), 0.01),
            torch.tensor([[1.0, 0, 0, 0]]).expand(count, 4),
            torch.full((count, 1), 0.9),
            torch.arange(3.0 * count).reshape(count, 1, 3),
        ]
    )


def test_select_takes_every_field_along():
    g = cloud(50, degree=2)
    mask = torch.rand(50, generator=torch.Generator().manual_seed(1)) > 0.5
    for chosen in (mask, mask.nonzero()[:, 0]):
        kept = select(g, chosen)
        for found, given in zip(tensors_of(kept), tensors_of(g), strict=True):
            assert torch.equal(found, given[mask])
    assert len(select(g, torch.zeros(50, dtype=torch.bool))) == 0
    with pytest.raises(ValueError, match=r"the mask has shape \(49,\), expected one value per splat: 50"):
        select(g, mask[:49])


def test_coverage_by_hand():
    g = at((0, 0, 0), (1, 0, 0))
    scales = torch.tensor([[1.0, 2, 0.5], [0.1, 4, 3]])
    g = built_of([g.positions, scales, g.rotations, g.opacities, g.sh])
    torch.testing.assert_close(coverage(g), torch.tensor([1.8, 10.8]))


def test_box_by_hand():
    g = at((0, 0, 0), (1, 0, 0), (1.001, 0, 0), (0, 2, 3), (0, -2, -3), (0, 2.001, 0), (-1, 2, 3))
    assert inside_box(g, (0, 0, 0), (2, 4, 6)).tolist() == [True, True, False, True, True, False, True]
    assert inside_box(g, (1, 0, 0), (0, 0, 0)).tolist() == [False, True, *[False] * 5]  # a box without volume
    assert inside_box(g, (0, 0, 0), (math.inf, math.inf, 0)).tolist() == [True, True, True, False, False, True, False]


def test_sphere_and_ellipsoid_by_hand():
    g = at((0, 0, 0), (1, 0, 0), (0.8, 0.8, 0), (0, 0, 1.9), (0, 0, 2.1))
    assert inside_ellipsoid(g, (0, 0, 0), (2, 2, 2)).tolist() == [True, True, False, False, False]
    assert inside_ellipsoid(g, (0, 0, 0), (2, 2, 4)).tolist() == [True, True, False, True, False]


@pytest.mark.parametrize("inside", [inside_box, inside_ellipsoid])
def test_a_turned_body_holds_what_the_body_holds_turned(inside):
    g = cloud(500)
    rotation = rotation_matrices(torch.tensor([0.3, -0.5, 0.7, 0.2]))
    center, size = torch.tensor([0.1, -0.2, 0.3]), (0.5, 1.0, 1.5)
    turned = built_of([g.positions @ rotation.T, *tensors_of(g)[1:]])
    held = inside(turned, rotation @ center, size, rotation)
    assert 20 < int(held.sum()) < 480
    assert torch.equal(held, inside(g, center, size))


@pytest.mark.parametrize(
    ("center", "size"), [((0, 0), (1, 1, 1)), ((0, 0, 0), (1, -1, 1)), ((0, 0, 0), (1, math.nan, 1))]
)
def test_impossible_bodies(center, size):
    for inside in (inside_box, inside_ellipsoid):
        with pytest.raises(ValueError, match=f"{inside.__name__}: center .* expected three numbers each"):
            inside(at((0, 0, 0)), center, size)


def test_view_by_hand():
    # From z = 4 towards the origin, 90° high and twice as wide: at depth 4 it sees |y| ≤ 4 and |x| ≤ 8.
    cams = cameras.orbit(0, 0, 4, 90, 64, 32)
    g = at((0, 0, 0), (7.9, 3.9, 0), (8.1, 0, 0), (0, 4.1, 0), (0, 0, 4), (0, 0, 5), (0, 0, 3.5), (0, 0, -100))
    assert inside_view(g, cams).tolist() == [True, True, False, False, False, False, True, True]
    assert inside_view(g, cams, near=1, far=50).tolist() == [True, True, *[False] * 6]
    with pytest.raises(ValueError, match="near is 2 and far is 1"):
        inside_view(g, cams, near=2, far=1)


def test_what_is_outside_of_every_view_changes_no_picture():
    g = cloud(800, size=(0.003, 0.006), spread=3)  # small, so that none reaches in from outside by much
    cams = cameras.orbit([10, 140], 20, 4, 25, 48, 32)
    seen = inside_view(g, cams, near=0.2)
    assert 20 < int(seen.sum()) < 500
    whole, part, rest = (rasterize(select(g, mask), cams) for mask in (seen | True, seen, ~seen))
    inner = (slice(None), slice(2, -2), slice(2, -2))  # the rim shows halves of splats that are centred beyond it
    torch.testing.assert_close(part.color[inner], whole.color[inner])
    assert rest.alpha[inner].max() == 0
