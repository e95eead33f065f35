import pytest
import torch

from invert3d_core.checkpoints import CheckpointFormat
from invert3d_core.errors import TrainingError

WALK = CheckpointFormat(job="walk", key="a_walk", schema=1, tensors=frozenset({"place"}))
TENSORS = {"place": torch.arange(3.0), "more": torch.ones(2, dtype=torch.int64)}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "walk.safetensors"
    WALK.save(path, 4, TENSORS, {"to": (1, 2)}, finished=False)
    return path


def test_all_tensors_come_back(path):
    found = WALK.load(path, {"to": [1, 2]})
    assert found is not None
    step, tensors, finished = found
    assert (step, finished) == WALK.peek(path) == (4, False)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"key": "a_ride", "job": "ride"}, "is not a ride checkpoint of this package"),
        ({"tensors": frozenset({"place", "time"})}, "is not a walk checkpoint of this package.*time"),
        ({"schema": 2}, "has checkpoint schema 1, this version reads 2"),
    ],
)
def test_files_of_another_kind_are_refused(path, other, message):
    kind = CheckpointFormat(**vars(WALK) | other)
    with pytest.raises(TrainingError, match=message):
        kind.load(path, {"to": [1, 2]})
    assert kind.peek(path) is None


def test_another_walk_is_refused_by_what_differs(path):
    with pytest.raises(TrainingError, match=r"another run: to was \[1, 2\] and is now \[3\]"):
        WALK.load(path, {"to": [3]})
