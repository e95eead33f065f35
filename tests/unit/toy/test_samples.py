"""The built-in samples: what their files promise, and that they are what the tool makes."""

import json

import pytest

from invert3d_core import splats
from invert3d_core.cameras import Orientation, fit_sphere
from invert3d_core.errors import FormatError
from invert3d_core.toy import samples
from invert3d_core.toy.assets import draw, held_out_color
from invert3d_core.toy.families import ALL
from invert3d_core.toy.vocabulary import words
from tools.make_samples import LIMIT_BYTES, SAMPLES


def test_there_are_three_and_they_are_small():
    assert len(samples.names()) == 3
    files = list(samples.FOLDER.iterdir())
    assert sorted(file.name for file in files) == sorted(
        [samples.TABLE.name, *(samples.path(name).name for name in samples.names())]
    )
    assert sum(file.stat().st_size for file in files) <= LIMIT_BYTES == 500_000


@pytest.mark.parametrize(("name", "family", "seed", "count"), SAMPLES)
def test_a_sample_is_the_asset_the_tool_draws(name, family, seed, count):
    asset = draw(seed, family, held_out_color(ALL[family]))
    stored, expected = splats.load(samples.path(name)), asset.splats(count)
    assert stored.degree == 0
    assert Orientation.from_comment(stored.comment) == Orientation("+y", "+z")
    for field in ("positions", "scales", "opacities", "sh"):
        assert (getattr(stored, field) - getattr(expected, field)).abs().max() < 1e-4, field
    sphere = fit_sphere(stored)
    assert sphere.radius == pytest.approx(1, abs=0.02)
    assert float(sphere.center.norm()) < 0.03
    captions = samples.captions(name)
    assert (captions.short, captions.full) == (asset.short_caption(), asset.full_caption())


def test_captions_are_words_of_the_model():
    known = set(words())
    for name in samples.names():
        captions = samples.captions(name)
        assert {*captions.short.split(), *captions.full.split()} <= known
        assert captions.full.startswith(captions.short)
        assert captions.full.split(" ", 1) == [captions.full[: captions.full.index(" ")], captions.initial_words]


def test_a_path_knows_its_sample(tmp_path, monkeypatch):
    name = samples.names()[1]
    assert samples.name_of(samples.path(name)) == name
    monkeypatch.chdir(samples.FOLDER)
    assert samples.name_of(samples.path(name).name) == name
    assert samples.name_of(tmp_path / samples.path(name).name) is None


def test_unknown_names_list_the_known_ones():
    for ask in (samples.path, samples.captions):
        with pytest.raises(FormatError, match="no built-in sample 'teapot'.*" + ", ".join(samples.names())):
            ask("teapot")


def test_the_table_is_ordered_with_the_demo_first():
    assert list(json.loads(samples.TABLE.read_text(encoding="utf-8"))) == [name for name, *_ in SAMPLES]
