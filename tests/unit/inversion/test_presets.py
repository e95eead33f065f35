import dataclasses

import pytest

from invert3d_core import inversion
from invert3d_core.errors import TrainingError
from invert3d_core.inversion.captions import captions


def test_reference_has_every_published_setting():
    published = {
        "views": "fresh",
        "fresh_elevation_deg": (-29, 30),  # -30..29 counted downwards
        "fresh_azimuth_deg": (-180, 179),
        "radius": 2.5,
        "fov_y_deg": 49.1,
        "align_front": False,
        "background": 1.0,
        "vectors": 32,
        "initial_words": "object",
        "add_position_row": True,
        "captions": ("{}",),
        "suffix_use": "never",
        "shared_timestep": False,
        "min_timestep": 0,
        "max_timestep": 999,
        "foreground_weight": 1.0,
        "snr_gamma": None,
        "steps": 6100,
        "sets_per_step": 1,
        "learning_rate": 5e-3,
        "learning_rate_unit": "absolute",
        "betas": (0.9, 0.999),
        "epsilon": 1e-8,
        "weight_decay": 0.01,
        "warmup_steps": 0,
        "final_learning_rate": 1.0,
        "clip_gradient": None,
        "norm_control": False,
        "validation_every": 0,
        "seed": 23,
        "precision": "fp32",
        "gradient_checkpointing": False,
    }
    config = dataclasses.asdict(inversion.preset("reference"))
    assert {name: config[name] for name in published} == published


def test_a_preset_can_be_changed():
    config = inversion.preset("recommended", steps=5, captions=("{}", "a {}"))
    assert (config.preset, config.steps, config.captions) == ("recommended", 5, ("{}", "a {}"))
    assert inversion.preset("recommended") == inversion.InversionConfig()


@pytest.mark.parametrize("name", list(inversion.PRESETS))
def test_every_preset_names_itself(name):
    assert inversion.preset(name).preset == name


def test_unknown_names_are_refused():
    with pytest.raises(TrainingError, match=r"no preset 'best'\. Expected one of recommended, reference"):
        inversion.preset("best")
    with pytest.raises(TrainingError, match="no setting speed"):
        inversion.preset("recommended", speed=3)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"vectors": 0},
        {"azimuths_per_ring": 6},
        {"ring_elevations_deg": ()},
        {"ring_elevations_deg": (90.0,)},
        {"fresh_elevation_deg": (30, -30)},
        {"radius": 2.5},
        {"radius": -1.0, "fov_y_deg": 40.0},
        {"background": 2.0},
        {"min_timestep": 500, "max_timestep": 400},
        {"foreground_weight": 0.0},
        {"snr_gamma": 0.5},
        {"learning_rate": -1.0},
        {"betas": (0.9, 1.0)},
        {"final_learning_rate": 1.5},
        {"clip_gradient": 0.0},
        {"patience": -1},
        {"precision": "fp64"},
        {"views": "none"},
    ],
)
def test_values_out_of_range_are_refused(changes):
    with pytest.raises(TrainingError, match=f"setting ({'|'.join(changes)}) is"):
        inversion.preset("recommended", **changes)


def test_captions_come_with_and_without_the_models_suffix():
    assert captions(["a {}", "{}"], "both", ", 3d asset") == ["a {}", "a {}, 3d asset", "{}", "{}, 3d asset"]
    assert captions(["a {}"], "never", ", 3d asset") == ["a {}"]
    assert captions(["a {}"], "always", ", 3d asset") == ["a {}, 3d asset"]
    assert captions(["a {}"], "both", "") == ["a {}"]


@pytest.mark.parametrize(
    ("templates", "use", "message"),
    [
        ([], "never", "no caption"),
        (["a cup"], "never", "0 places"),
        (["{} {}"], "never", "2 places"),
        (["{}"], "x", "suffix_use"),
    ],
)
def test_captions_without_one_place_for_the_token_are_refused(templates, use, message):
    with pytest.raises(TrainingError, match=message):
        captions(templates, use, "")
