import dataclasses
import math
import os

import pytest
import torch

from invert3d_core.errors import StorageError, TrainingError
from invert3d_core.inversion import checkpoint
from invert3d_core.inversion.checkpoint import TrainingState
from tests.unit.storage_faults import full_disk


def make_state(step=3):
    g = torch.Generator().manual_seed(step)
    rows = torch.randn(4, 2, 3, 5, generator=g)
    return TrainingState(
        step=step,
        vectors=rows[0],
        first_moment=rows[1],
        second_moment=rows[2],
        active=torch.tensor([True, False]),
        losses=torch.tensor([[1.0, 2.0], [0.5, 1.5], [0.25, math.nan]]),
        validation_steps=torch.tensor([0, 2]),
        validation_losses=torch.rand(2, 2, generator=g),
        best_vectors=rows[3],
        best_loss=torch.tensor([0.1, math.inf]),
        best_step=torch.tensor([2, 0]),
        waiting=torch.tensor([0, 4]),
    )


FINGERPRINT = {"config": {"steps": 3, "betas": (0.9, 0.99), "lr": 0.1}, "inputs": ["ab"]}


def load(path):
    found = checkpoint.load(path, FINGERPRINT)
    assert found is not None
    return found


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state = make_state()
    checkpoint.save(tmp_path / "deep" / "run.safetensors", state, FINGERPRINT, finished=True)
    back, finished = load(tmp_path / "deep" / "run.safetensors")
    assert finished is True
    assert back.step == 3
    for field in dataclasses.fields(TrainingState):
        if field.name != "step":
            a, b = getattr(state, field.name), getattr(back, field.name)
            assert a.dtype == b.dtype
            assert a.numpy().tobytes() == b.numpy().tobytes(), field.name


def test_no_file_is_no_state(tmp_path):
    assert checkpoint.load(tmp_path / "run.safetensors", FINGERPRINT) is None


def test_what_differs_is_named(tmp_path):
    path = tmp_path / "run.safetensors"
    checkpoint.save(path, make_state(), FINGERPRINT, finished=False)
    other = {"config": {"steps": 4, "betas": (0.9, 0.99), "lr": 0.1}, "inputs": ["cd"]}
    message = r"another run: config.steps was 3 and is now 4; inputs was \['ab'\] and is now \['cd'\]"
    with pytest.raises(TrainingError, match=message):
        checkpoint.load(path, other)
    with pytest.raises(TrainingError, match="seed was None and is now 5"):
        checkpoint.load(path, {**FINGERPRINT, "seed": 5})


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    path.write_bytes(b"hello")
    with pytest.raises(TrainingError, match="not a training checkpoint"):
        checkpoint.load(path, FINGERPRINT)
    checkpoint.save(path, make_state(), FINGERPRINT, finished=False)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TrainingError, match="not a training checkpoint"):
        checkpoint.load(path, FINGERPRINT)


def test_what_a_killed_writer_left_is_removed(tmp_path):
    path = tmp_path / "run.safetensors"
    checkpoint.save(path, make_state(), FINGERPRINT, finished=False)
    (tmp_path / ".run.safetensors.123.tmp").write_bytes(b"half")
    (tmp_path / ".other.safetensors.123.tmp").write_bytes(b"not ours")
    assert load(path)[0].step == 3
    assert sorted(os.listdir(tmp_path)) == [".other.safetensors.123.tmp", "run.safetensors"]


def test_a_failed_write_keeps_the_state_before(tmp_path, caplog):
    path = tmp_path / "run.safetensors"
    checkpoint.save(path, make_state(3), FINGERPRINT, finished=False)
    with full_disk():
        with pytest.raises(StorageError, match="cannot be written: File too large.*What was there before is unchanged"):
            checkpoint.save(path, make_state(4), FINGERPRINT, finished=False)
        assert checkpoint.keep(path, make_state(4), FINGERPRINT, finished=False) is False
    assert "Step 4 of the training is not on disk, and the training goes on" in caplog.text
    assert load(path)[0].step == 3
    assert os.listdir(tmp_path) == ["run.safetensors"]
    assert checkpoint.keep(path, make_state(4), FINGERPRINT, finished=True) is True
    assert checkpoint.peek(path) == (4, True)


def test_a_look_tells_a_checkpoint_from_other_files(tmp_path):
    path = tmp_path / "run.safetensors"
    checkpoint.save(path, make_state(7), FINGERPRINT, finished=False)
    assert checkpoint.peek(path) == (7, False)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:100], b"", b"hello", whole.replace(b"best_step", b"beat_step")):
        path.write_bytes(damaged)
        assert checkpoint.peek(path) is None
    with pytest.raises(OSError, match="No such file"):
        checkpoint.peek(tmp_path / "nowhere.safetensors")
