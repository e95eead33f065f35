import json

import pytest
import safetensors
import safetensors.torch

from invert3d_core import tokens
from invert3d_core.errors import TokenError
from tests.unit.tokens.some_tokens import make

ABSENT = object()


def rewritten(path, **changes):
    """The token file of `path` with entries of its metadata changed, or removed (ABSENT)."""
    with safetensors.safe_open(path, framework="pt") as file:
        entry = json.loads(file.metadata()["invert3d"])
        stored = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a mapping)
    entry = {k: v for k, v in {**entry, **changes}.items() if v is not ABSENT}
    safetensors.torch.save_file(stored, path, metadata={"invert3d": json.dumps(entry)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema 2"),
        ({"base": "clip_l"}, "does not belong"),
        ({"initial": "AAAA"}, "does not belong"),
        ({"initial": "*"}, "damaged"),
        ({"initial": 5}, "damaged"),
        ({"name": ABSENT}, "damaged"),
        ({"provenance": [1]}, "does not belong"),
        ({"name": "my cup"}, "cannot be written"),
        ({"name": 7}, "cannot be written"),
    ],
)
def test_damaged_metadata_is_refused(tmp_path, changes, message):
    path = tmp_path / "cup.safetensors"
    tokens.save(make(), path)
    rewritten(path, **changes)
    with pytest.raises(TokenError, match=message):
        tokens.load(path)


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}])
def test_a_provenance_that_is_not_json_is_refused(tmp_path, value):
    with pytest.raises(TokenError, match="JSON"):
        tokens.save(make(provenance={"x": value}), tmp_path / "cup.safetensors")
