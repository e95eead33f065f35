"""Toy assets: reproducible, framed as models expect, named by words that exist, and held out where they must be."""

import numpy as np
import pytest
import torch

from invert3d_core.cameras import fit_sphere
from invert3d_core.toy import assets, colors
from invert3d_core.toy.families import ALL, HELD_OUT, KNOWN
from invert3d_core.toy.primitives import MAIN, PART, surface_areas
from invert3d_core.toy.vocabulary import MAX_LENGTH, words


def test_there_are_enough_families_and_held_out_ones():
    assert len(KNOWN) >= 24
    assert len(HELD_OUT) >= 6


def test_captions_of_new_families_hold_no_word_that_training_never_showed():
    learned = {family.name for family in KNOWN} | {part for family in KNOWN for part in family.parts}
    for family in HELD_OUT:
        assert {family.nearest, *family.parts} <= learned


@pytest.mark.parametrize("family", ALL)
def test_every_family_gives_a_framed_asset_with_all_its_parts(family):
    asset = assets.draw(11, family)
    splats = asset.splats(1024)
    assert len(splats) == 1024
    sphere = fit_sphere(splats)
    assert sphere.center.abs().max() < 0.05
    assert sphere.radius == pytest.approx(1, abs=0.03)
    assert {0, 1, 2} <= set(asset.rows[:, PART].astype(int))
    assert splats.stated_axes == ("+y", "+z")


@pytest.mark.parametrize("family", ALL)
def test_the_main_part_is_the_largest_of_a_typical_member(family):
    """What "a blue <token>" recolours must be what a person takes for the object itself."""
    shares = []
    for seed in range(9):
        asset = assets.draw(seed, family)
        areas = surface_areas(torch.from_numpy(asset.rows)).numpy()
        part = asset.rows[:, PART].astype(int)
        named = [areas[part == index].sum() for index in range(3)]
        shares.append(named[MAIN] / max(named[1:]))
    assert np.median(shares) > 1


def test_the_same_seed_gives_the_same_asset_and_another_seed_another():
    one, same, other = assets.draw(5, "chair"), assets.draw(5, "chair"), assets.draw(6, "chair")
    assert np.array_equal(one.rows, same.rows) and one.colors == same.colors
    assert one.full_caption() == same.full_caption()
    assert one.rows.shape != other.rows.shape or not np.array_equal(one.rows, other.rows)


def test_captions_are_words_of_the_vocabulary_and_fit_beside_a_long_token():
    known = set(words())
    for family in ALL:
        caption = assets.draw(3, family).full_caption() + assets.SUFFIX
        spoken = caption.replace(",", " ,").split()
        assert set(spoken) <= known, family
        assert len(spoken) + 16 + 2 <= MAX_LENGTH


def test_a_family_without_a_word_is_called_by_the_nearest():
    stool = assets.draw(1, "stool", "red")
    assert stool.short_caption() == "a red table"
    assert "stool" not in words()


def test_recolouring_changes_the_named_part_alone():
    chair = assets.draw(2, "chair", "red")
    blue = chair.recolored(MAIN, "blue", np.random.default_rng(0))
    changed = np.any(chair.rows != blue.rows, axis=1)
    assert np.array_equal(changed, chair.rows[:, PART] == MAIN)
    assert blue.colors == ("blue", *chair.colors[1:])


def test_held_out_colours_differ_between_families_and_are_named():
    barred = [assets.held_out_color(family) for family in KNOWN]
    assert set(barred) <= set(colors.NAMES)
    assert len(set(barred)) > 6


@pytest.mark.parametrize("name", colors.NAMES)
def test_any_shade_of_a_colour_is_read_as_that_colour_in_the_light(name):
    rng = np.random.default_rng(1)
    shades = torch.from_numpy(np.stack([colors.draw_shade(rng, name) for _ in range(200)]))
    read = colors.nearest_name(shades * 0.85)
    assert read.count(name) >= 196
