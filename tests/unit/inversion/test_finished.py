import logging
import os
import threading
import time
from dataclasses import replace

import pytest
import torch

from invert3d_core import inversion
from invert3d_core.errors import StorageError
from invert3d_core.files import FileLock
from invert3d_core.inversion import checkpoint as checkpoints
from invert3d_core.inversion.finished import TrainingStore, training_key
from tests.unit.inversion.tiny_model import make_model, make_views

CONFIG = inversion.preset(
    "recommended", steps=4, vectors=2, initial_words="red cup", validation_every=2, validation_sets=1
)


def key_of(config=CONFIG, name="cup", seed=0, digest="ab", dtype="torch.float32"):
    return training_key(config, name, make_views(seed), digest, dtype)


def train(store, config=CONFIG, name="cup", seed=0, anew=False, progress=None):
    """The result, the steps it took, and what was kept before."""
    steps = []

    def count(step, total, *, metrics=None, preview=None):
        if metrics is not None:
            steps.append(step)
        if progress is not None:
            progress(step, total)

    with store.training(name, key_of(config, name, seed), anew=anew) as kept:
        result = inversion.train_token(
            make_model(),
            make_views(seed),
            config,
            name=name,
            progress=count,
            checkpoint=kept.checkpoint,
            resume=not anew,
        )
    return result, steps, kept


def fill(store, name, size, age):
    """A training of so many bytes that was last used so many seconds ago."""
    store.folder.mkdir(exist_ok=True)
    file = store.folder / f"{name}.safetensors"
    file.write_bytes(b"x" * size)
    then = time.time() - age
    os.utime(file, (then, then))
    return file


def test_a_b_a_trains_a_once_and_to_the_same_bits(tmp_path):
    store = TrainingStore(tmp_path / "runs")
    first, steps, kept = train(store)
    assert (steps, kept.step, kept.finished) == ([1, 2, 3, 4], 0, False)
    other, steps, _ = train(store, seed=1)
    assert steps == [1, 2, 3, 4]
    again, steps, kept = train(store)
    assert (steps, kept.step, kept.finished) == ([], 4, True)
    assert again.token.vectors.numpy().tobytes() == first.token.vectors.numpy().tobytes()
    assert (again.losses, again.validation_losses) == (first.losses, first.validation_losses)
    assert again.token.provenance == first.token.provenance
    assert not torch.equal(other.token.vectors, first.token.vectors)
    names = sorted(os.listdir(store.folder))
    assert len(names) == 2 and all(name.startswith("cup-") and name.endswith(".safetensors") for name in names)


def test_the_key_is_of_everything_that_is_learned_from_and_of_nothing_else():
    base = key_of()
    free = {"checkpoint_every": 7, "preview_every": 0, "gradient_checkpointing": True}
    assert key_of(replace(CONFIG, **free)) == base
    others = [
        key_of(replace(CONFIG, seed=1)),
        key_of(replace(CONFIG, steps=5)),
        key_of(name="mug"),
        key_of(seed=1),
        key_of(digest="cd"),
        key_of(dtype="torch.bfloat16"),
    ]
    assert len({base, *others}) == 7


def test_settings_outside_the_key_do_not_keep_a_training_from_being_found(tmp_path):
    store = TrainingStore(tmp_path)
    train(store)
    free = replace(CONFIG, checkpoint_every=1, preview_every=0, gradient_checkpointing=True)
    assert train(store, free)[1] == []


def test_an_interrupted_training_goes_on(tmp_path):
    store = TrainingStore(tmp_path)
    whole = train(TrainingStore(tmp_path / "whole"))[0]

    def stop(step, total):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(store, progress=stop)
    result, steps, kept = train(store)
    assert (steps, kept.step, kept.finished) == ([4], 3, False)
    assert torch.equal(result.token.vectors, whole.token.vectors)


def test_training_anew_leaves_the_finished_one_until_it_is_finished_itself(tmp_path):
    store = TrainingStore(tmp_path)
    _, _, kept = train(store)
    kept.picture.write_bytes(b"old")
    before = kept.checkpoint.read_bytes()

    def stop(step, total):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(store, anew=True, progress=stop)
    assert kept.checkpoint.read_bytes() == before
    assert train(store)[1] == [], "found again, after a new one was cancelled"

    with store.training("cup", key_of(), anew=True) as new:
        assert (new.step, new.finished) == (4, True)
        inversion.train_token(make_model(), make_views(), CONFIG, name="cup", checkpoint=new.checkpoint, resume=False)
        new.picture.write_bytes(b"new")
    assert sorted(os.listdir(tmp_path)) == sorted([kept.checkpoint.name, kept.picture.name])
    assert kept.checkpoint.read_bytes() == before, "the same bits"
    assert kept.picture.read_bytes() == b"new"


def test_training_anew_counts_when_only_its_picture_failed(tmp_path):
    store = TrainingStore(tmp_path)
    _, _, kept = train(store)
    kept.picture.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), store.training("cup", key_of(), anew=True) as new:
        inversion.train_token(make_model(), make_views(), CONFIG, name="cup", checkpoint=new.checkpoint, resume=False)
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == [kept.checkpoint.name], "the new one in the old one's place, whose picture is gone"


def test_training_anew_over_an_unfinished_one(tmp_path):
    store = TrainingStore(tmp_path)

    def stop(step, total):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(store, progress=stop)
    _, steps, kept = train(store, anew=True)
    assert (steps, kept.step) == ([1, 2, 3, 4], 2)
    assert train(store)[1] == []
    assert len(os.listdir(tmp_path)) == 1


def test_the_longest_unused_go_when_there_is_too_much(tmp_path):
    store = TrainingStore(tmp_path / "runs", limit_bytes=100_000)
    old, middle, young = (fill(store, name, 40_000, age) for name, age in (("a", 300), ("b", 200), ("c", 100)))
    picture = old.with_suffix(".png")
    picture.write_bytes(b"x" * 1000)
    os.utime(picture, (0, 0))
    _, _, kept = train(store)
    assert 0 < kept.checkpoint.stat().st_size < 20_000
    assert [file.exists() for file in (old, picture, middle, young, kept.checkpoint)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert sum(file.stat().st_size for file in store.folder.iterdir()) <= 100_000


def test_what_is_used_again_is_young_again(tmp_path):
    store = TrainingStore(tmp_path)
    _, _, kept = train(store)
    os.utime(kept.checkpoint, (0, 0))
    rival = fill(store, "rival", 40_000, age=1000)
    train(TrainingStore(tmp_path, limit_bytes=50_000))
    assert kept.checkpoint.stat().st_mtime > rival.stat().st_mtime
    train(TrainingStore(tmp_path, limit_bytes=30_000), seed=1)
    assert kept.checkpoint.exists() and not rival.exists()


def test_one_that_is_being_trained_elsewhere_is_never_removed(tmp_path):
    store = TrainingStore(tmp_path, limit_bytes=0)
    busy, idle = fill(store, "busy", 1000, age=900), fill(store, "idle", 1000, age=800)
    lock = FileLock(busy)
    assert lock.acquire()
    _, _, kept = train(store)
    assert (busy.exists(), idle.exists(), kept.checkpoint.exists()) == (True, False, True)
    lock.release()


@pytest.mark.parametrize("damage", [b"", b"hello", None])
def test_a_damaged_one_is_done_again(tmp_path, caplog, damage):
    store = TrainingStore(tmp_path)
    first, _, kept = train(store)
    kept.checkpoint.write_bytes(kept.checkpoint.read_bytes()[:-20] if damage is None else damage)
    with caplog.at_level(logging.WARNING, logger="invert3d"):
        again, steps, kept = train(store)
    assert "is damaged" in caplog.text
    assert (steps, kept.step) == ([1, 2, 3, 4], 0)
    assert torch.equal(again.token.vectors, first.token.vectors)
    assert checkpoints.peek(kept.checkpoint) == (4, True)


def test_two_that_train_the_same_train_it_once(tmp_path):
    store = TrainingStore(tmp_path)
    started, waiting = threading.Event(), threading.Event()
    taken = {}

    def first():
        def hold(step, total):
            started.set()
            assert waiting.wait(60), "nobody waited"

        taken["first"] = train(store, progress=hold)[1]

    thread = threading.Thread(target=first)
    thread.start()
    assert started.wait(60)
    with store.training("cup", key_of(), lambda seconds: waiting.set()) as kept:
        assert (kept.step, kept.finished) == (4, True)
    thread.join()
    assert taken["first"] == [1, 2, 3, 4]

    used = pytest.raises(StorageError, match="in use by another process")
    with store.training("cup", key_of()), used, store.training("cup", key_of()):
        pass


@pytest.mark.parametrize("name", ["物" * 66, "a" * 100, "über.cup-1"])
def test_every_name_of_a_token_has_a_file(tmp_path, name):
    with TrainingStore(tmp_path).training(name, "k" * 32) as kept:
        assert kept.checkpoint.parent == tmp_path
        assert len(os.fsencode(kept.checkpoint.name)) < 100
        assert kept.checkpoint.name.isascii()


def test_a_folder_that_cannot_be_is_an_error_before_the_work(tmp_path):
    (tmp_path / "runs").write_bytes(b"")
    with pytest.raises(StorageError, match="there is a file where its folder should be"):
        train(TrainingStore(tmp_path / "runs"))
