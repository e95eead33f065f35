import math

import pytest
import torch

from invert3d_core import splats
from invert3d_core.splats.cleaning import faint, floaters, needles, oversized, prune
from invert3d_core.splats.selection import select
from invert3d_core.toy import samples
from tests.unit.rendering.scenes import built_of, cloud, one, tensors_of, together


def with_scales(*scales):
    g = cloud(len(scales))
    return built_of([g.positions, torch.tensor(scales).float(), *tensors_of(g)[2:]])


def test_faint_oversized_and_needles_by_hand():
    g = with_scales([1, 1, 1], [4, 1, 0.1], [1, 1, 0.001], [0.1, 5, 5])
    assert oversized(g, 4).tolist() == [False, False, False, True]
    assert needles(g, 3.9).tolist() == [False, True, False, False]  # a disc is no needle
    faintest = built_of([*tensors_of(g)[:3], torch.tensor([[0.1], [0.2], [0.3], [0.4]]), g.sh])
    assert faint(faintest, 0.3).tolist() == [True, True, False, False]


def shell(count=2000, seed=0):
    """An object as training makes it: a surface, denser on one side."""
    g = cloud(count, seed=seed, size=(0.01, 0.03))
    surface = torch.nn.functional.normalize(g.positions, dim=1)
    surface = surface + torch.tensor([1.0, 0, 0]) * (surface[:, :1] > 0.6)
    return built_of([surface, *tensors_of(g)[1:]])


def test_floaters_are_found_and_the_object_stays():
    object_ = shell()
    stray = cloud(30, seed=9, size=(0.01, 0.05), spread=6)
    far = stray.positions.norm(dim=1) > 2.5
    stray = select(stray, far)
    afloat = floaters(together(object_, stray), tolerance=6)
    assert afloat[2000:].all()
    assert afloat[:2000].float().mean() < 0.005


@pytest.mark.parametrize("name", [path.name for path in sorted(samples.FOLDER.glob("*.ply"))])
def test_clean_assets_lose_next_to_nothing(name):
    g = splats.load(samples.FOLDER / name)
    assert floaters(g, tolerance=6).float().mean() < 0.01


def test_floaters_do_not_depend_on_place_and_size():
    g = together(shell(500), one((3.0, 0, 0), 0.02))
    moved = built_of([g.positions * 50 + 1000, g.scales * 50, *tensors_of(g)[2:]])
    expected = floaters(g, 5)
    assert expected[-1]
    assert torch.equal(floaters(moved, 5), expected)


def test_few_splats_and_even_grids_have_no_floaters():
    for count in (0, 1, 2):
        assert not floaters(select(cloud(3), torch.arange(3) < count), 1).any()
    axis = torch.arange(8.0)
    grid = torch.cartesian_prod(axis, axis, axis)
    g = cloud(512, size=(0.1, 0.1))
    assert not floaters(built_of([grid, *tensors_of(g)[1:]]), 40).any()
    with pytest.raises(ValueError, match="neighbors is 0, expected at least 1"):
        floaters(g, 1, neighbors=0)


def test_prune_asks_everything_and_floaters_last():
    object_ = shell(600)
    haze = built_of([*tensors_of(object_)[:3], torch.full((600, 1), 0.005), object_.sh])
    giant, lone = one((0.0, 0, 0), 3.0), one((5.0, 0, 0), 0.02)
    needle = built_of([torch.zeros(1, 3), torch.tensor([[0.5, 0.01, 0.01]]), *tensors_of(lone)[2:]])
    # Haze around the lone one: with it, it would have neighbours.
    company = built_of([lone.positions + 0.01 * haze.positions, *tensors_of(haze)[1:]])
    g = together(object_, haze, giant, lone, needle, company)
    cleaned = prune(g, min_opacity=0.01, max_size=1.0, max_ratio=20, floater_tolerance=6)
    assert 590 < len(cleaned) <= 600
    assert cleaned.positions[:, 0].max() < 3
    assert prune(g) is g
    assert len(prune(g, max_size=1.0)) == len(g) - 1
    assert len(prune(g, min_opacity=1.0, max_ratio=math.inf)) == 0
