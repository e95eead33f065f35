"""A disk that fills up, or a folder that is closed, while a token is trained."""

import contextlib
import logging
import os

import pytest

from invert3d_core import inversion, tokens
from invert3d_core.errors import StorageError
from invert3d_core.inversion import checkpoint
from tests.unit.inversion.tiny_model import make_model, make_views
from tests.unit.storage_faults import full_disk, read_only

CONFIG = inversion.preset(
    "recommended",
    steps=6,
    vectors=2,
    initial_words="red cup",
    validation_every=3,
    validation_sets=1,
    checkpoint_every=1,
)


def train(path, progress=None, **options):
    return inversion.train_token(
        make_model(), make_views(), CONFIG, name="cup", checkpoint=path, progress=progress, **options
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a training that nothing happened to, and its token."""
    folder = tmp_path_factory.mktemp("whole")
    result = train(folder / "run.safetensors")
    tokens.save(result.token, folder / "cup.safetensors")
    return folder


def test_a_disk_that_fills_up_ends_no_training_and_the_last_state_stays(whole, tmp_path, caplog):
    path = tmp_path / "run.safetensors"
    with contextlib.ExitStack() as disk:

        def fill_up(step, total, *, metrics=None, preview=None):
            if step == 3:
                disk.enter_context(full_disk())

        with caplog.at_level(logging.WARNING, logger="invert3d"):
            result = train(path, fill_up)
    assert len(result.losses) == 6
    assert checkpoint.peek(path) == (3, False)
    warnings = [record.getMessage() for record in caplog.records]
    assert [warning.split(" of ")[0] for warning in warnings] == ["Step 4", "Step 5", "Step 6", "Step 6"]
    assert all("Make room on that disk" in warning for warning in warnings)
    assert os.listdir(tmp_path) == ["run.safetensors"]
    tokens.save(result.token, tmp_path / "cup.safetensors")
    assert (tmp_path / "cup.safetensors").read_bytes() == (whole / "cup.safetensors").read_bytes()

    train(path)
    assert path.read_bytes() == (whole / "run.safetensors").read_bytes()


def test_a_cancel_on_a_full_disk_is_still_a_cancel(tmp_path, caplog):
    path = tmp_path / "run.safetensors"
    with contextlib.ExitStack() as disk:

        def fill_up_and_stop(step, total, *, metrics=None, preview=None):
            if step == 2:
                disk.enter_context(full_disk())
            if step == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(path, fill_up_and_stop)
    assert checkpoint.peek(path) == (2, False)
    assert "Step 4 of the training is not on disk" in caplog.text


def test_a_disk_that_is_full_before_is_an_error_before_the_first_step(tmp_path):
    steps = []
    with full_disk(0), pytest.raises(StorageError, match="run.safetensors' cannot be written: File too large"):
        train(tmp_path / "run.safetensors", lambda step, total, **_: steps.append(step))
    assert steps == []


def test_a_closed_folder_is_an_error_before_the_first_step(whole, tmp_path):
    steps = []
    folder = tmp_path / "closed"
    folder.mkdir()
    with read_only(folder), pytest.raises(StorageError, match="run.safetensors' cannot be written: Permission denied"):
        train(folder / "run.safetensors", lambda step, total, **_: steps.append(step))
    assert steps == []
    assert os.listdir(folder) == []


def test_a_finished_training_is_returned_from_a_closed_folder(whole, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir()
    (folder / "run.safetensors").write_bytes((whole / "run.safetensors").read_bytes())
    with read_only(folder):
        result = train(folder / "run.safetensors")
    assert result.token.vectors.equal(tokens.load(whole / "cup.safetensors").vectors)


def test_a_token_that_cannot_be_saved_leaves_the_one_before(whole, tmp_path):
    path = tmp_path / "cup.safetensors"
    before = (whole / "cup.safetensors").read_bytes()
    path.write_bytes(before)
    token = tokens.load(path)
    other = tokens.Token("cup", -token.vectors, token.initial, token.base)
    with full_disk(), pytest.raises(StorageError, match="cup.safetensors' cannot be written.*before is unchanged"):
        tokens.save(other, path, overwrite=True)
    with read_only(tmp_path), pytest.raises(StorageError, match="cup.safetensors' cannot be written: Permission"):
        tokens.save(other, path, overwrite=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["cup.safetensors"]
