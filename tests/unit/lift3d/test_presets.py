import dataclasses

import pytest

from invert3d_core import lift3d
from invert3d_core.errors import TrainingError


def test_presets_are_what_they_say():
    reference = lift3d.preset("reference")
    assert (reference.steps, reference.sh_degree, reference.ssim_weight) == (30_000, 3, 0.2)
    assert (reference.refine_from, reference.refine_until, reference.refine_every) == (500, 15_000, 100)
    assert (reference.grow_gradient, reference.reset_every) == (2e-4, 3000)
    assert lift3d.preset("mcmc").density == "mcmc"
    consistency = lift3d.preset("consistency")
    assert (consistency.sh_degree, consistency.density) == (0, "fixed")
    assert lift3d.preset("recommended") == lift3d.FitConfig()


def test_a_preset_keeps_its_name_and_takes_changes():
    changed = lift3d.preset("reference", steps=7)
    assert (changed.preset, changed.steps) == ("reference", 7)


def test_a_lower_limit_is_one_of_the_start_too():
    assert lift3d.preset("recommended", max_splats=10).splats == 10
    assert lift3d.preset("mcmc", max_splats=10).splats == 10
    assert lift3d.preset("recommended", max_splats=9999).splats == 2500


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("fast", {}, "no preset 'fast'"),
        ("recommended", {"stepz": 1}, "no setting stepz"),
        ("recommended", {"steps": 0}, "steps is 0; expected at least 1"),
        ("recommended", {"max_splats": 10, "splats": 2500}, "at least the 2500 splats"),
        ("recommended", {"max_splats": 0}, "setting max_splats is 0; expected at least 1"),
        ("recommended", {"density": "none"}, "expected one of fixed, adaptive, mcmc"),
        ("recommended", {"start": "ball"}, "expected one of hull, random"),
        ("recommended", {"sh_degree": 5}, "0 to 4"),
        ("recommended", {"ssim_weight": 1.5}, "between 0 and 1"),
        ("recommended", {"position_rate": 0}, "above 0"),
        ("recommended", {"mask_weight": -1}, "0 or more"),
        ("recommended", {"start_opacity": 1}, "between 0 and 1, both excluded"),
    ],
)
def test_errors(name, changes, message):
    with pytest.raises(TrainingError, match=message):
        lift3d.preset(name, **changes)


def test_every_setting_is_described():
    text = lift3d.FitConfig.__doc__ or ""
    assert [f.name for f in dataclasses.fields(lift3d.FitConfig) if f.name not in text and f.name != "preset"] == []
