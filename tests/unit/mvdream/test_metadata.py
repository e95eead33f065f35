import json
from dataclasses import fields, replace
from typing import Any

import pytest

from invert3d_core.errors import ModelError
from invert3d_core.mvdream.metadata import METADATA_KEY, PUBLISHED, ModelInfo, override, read_metadata

from .conftest import INFO


def test_what_is_written_is_read_back() -> None:
    metadata = INFO.to_metadata()
    assert list(metadata) == [METADATA_KEY]
    assert read_metadata({"format": "pt", **metadata}, ModelInfo(), "a file") == INFO
    assert replace(INFO).to_metadata() == metadata
    # A file cannot hold its own hash.
    assert "model_hash" not in json.loads(metadata[METADATA_KEY])


def test_what_is_left_out_takes_the_published_value() -> None:
    for published in PUBLISHED.values():
        assert read_metadata(None, published, "a file") == published
        partial = {METADATA_KEY: json.dumps({"prediction_type": "v_prediction", "unet_heads": [5, 10]})}
        info = read_metadata(partial, published, "a file")
        assert info == replace(published, prediction_type="v_prediction", unet_heads=(5, 10))


def test_published_values() -> None:
    """facts of the two files: heads by rule, epsilon, 0.18215, the schedule; padding differs."""
    for info in PUBLISHED.values():
        assert (info.prediction_type, info.scaling_factor, info.beta_start, info.beta_end) == (
            "epsilon",
            0.18215,
            0.00085,
            0.012,
        )
        assert (info.image_size, info.latent_size, info.front_azimuth_deg) == (256, 32, 90)
        assert (info.bos_id, info.eos_id, info.unet_heads, info.text_heads) == (49406, 49407, None, None)
        assert info.caption_suffix == ", 3d asset"
    assert (PUBLISHED["clip_l"].pad_id, PUBLISHED["clip_l"].text_activation) == (49407, "quick_gelu")
    assert (PUBLISHED["clip_h"].pad_id, PUBLISHED["clip_h"].text_activation) == (0, "gelu")
    assert all(info.base == key for key, info in PUBLISHED.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "JSON list; expected an object"),
        ('{"shape": 1}', "names shape, which this version does not know"),
        ('{"steps": 0}', "steps is 0; expected a whole number, more than 0"),
        ('{"steps": 2.5}', "steps is 2.5; expected a whole number"),
        ('{"steps": true}', "steps is True"),
        ('{"prediction_type": "x0"}', "prediction_type is 'x0'; expected one of epsilon, v_prediction"),
        ('{"scaling_factor": "big"}', "scaling_factor is 'big'; expected a number, more than 0"),
        ('{"scaling_factor": NaN}', "scaling_factor is nan"),
        ('{"guidance_scale": Infinity}', "guidance_scale is inf"),
        ('{"title": 3}', "title is 3; expected text"),
        ('{"unet_heads": [4, 0]}', "positive number of attention heads"),
        ('{"elevation_range_deg": [30, 0]}', "lowest and the highest elevation"),
        ('{"elevation_range_deg": ["a", "b"]}', "lowest and the highest elevation"),
        ('{"pad_id": -1}', "pad_id is -1; expected a whole number, at least 0"),
    ],
)
def test_damaged_metadata_is_named(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        read_metadata({METADATA_KEY: text}, ModelInfo(), "'cup.safetensors'")
    assert "cup.safetensors" in str(raised.value)


@pytest.mark.parametrize("field", [field.name for field in fields(ModelInfo)])
def test_every_field_is_checked(field: str) -> None:
    wrong: Any = object()
    if field == "model_hash":
        return  # set by the loader alone
    with pytest.raises(ModelError, match=field):
        override(ModelInfo(), {field: wrong})
