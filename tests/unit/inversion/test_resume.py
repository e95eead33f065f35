import os
import random
import shutil
import signal
import time

import pytest

from invert3d_core import tokens
from invert3d_core.inversion import checkpoint
from tests.unit.inversion.child import CONFIG, train, train_in_store
from tests.unit.kills import fresh_processes, run

KILLS = int(os.environ.get("INVERT3D_KILLS", "10"))  # 100 take some minutes


@pytest.fixture(scope="module")
def processes():
    return fresh_processes()


def test_killed_training_resumes_to_the_same_file(processes, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(processes, train, whole) == 0
    token = tokens.load(whole / "cup.safetensors")
    assert token.provenance["step"] > 0

    kills = [run(processes, train, broken, "write", 1)]
    assert not (broken / "run.safetensors").exists()
    kills.append(run(processes, train, broken, "replace", 3))
    kills.append(run(processes, train, broken, "replaced", 2))
    kills.append(run(processes, train, broken, "write", 4))
    assert kills == [-signal.SIGKILL] * 4
    assert list(broken.glob(".run.safetensors.*.tmp"))  # half a checkpoint lies there
    moments = random.Random(5)
    for _ in range(3):
        assert run(processes, train, broken, kill_after=moments.uniform(0, 0.04)) == -signal.SIGKILL
    assert not (broken / "cup.safetensors").exists()
    assert run(processes, train, broken) == 0

    assert (broken / "cup.safetensors").read_bytes() == (whole / "cup.safetensors").read_bytes()
    assert (broken / "run.safetensors").read_bytes() == (whole / "run.safetensors").read_bytes()
    assert not list(broken.glob(".*.tmp"))


def test_killed_at_random_moments_loses_nothing_that_was_saved(processes, tmp_path):
    """As many kills as KILLS; a training that gets to its end is compared and followed by a new one."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    began = time.monotonic()
    assert run(processes, train, whole) == 0
    files = [whole / "cup.safetensors", whole / "run.safetensors"]
    reached = processes.Value("i", 0)
    moments = random.Random(11)
    kills = rounds = 0
    steps = []
    while kills < KILLS or (broken / "run.safetensors").exists():
        # The last one may live.
        after = moments.uniform(0, 0.1) if kills < KILLS else None
        code = run(processes, train, broken, kill_after=after, reached=reached)
        saved, finished = checkpoint.peek(broken / "run.safetensors") or (0, False)
        assert saved >= reached.value, "a saved step is lost"
        if code == 0:
            assert finished
            assert [(broken / file.name).read_bytes() for file in files] == [file.read_bytes() for file in files]
            shutil.rmtree(broken)
            reached.value = 0
            rounds += 1
        else:
            assert code == -signal.SIGKILL
            kills += 1
            steps.append(saved)
    print(
        f"{kills} kills in {rounds} trainings of {CONFIG.steps} steps, "
        f"at steps {min(steps)} to {max(steps)}: 0 saved steps lost, {rounds} of {rounds} results equal; "
        f"{time.monotonic() - began:.0f} s"
    )


def test_two_processes_with_one_checkpoint_file_do_not_harm_each_other(processes, tmp_path):
    """Nothing holds the file for a caller of the bare function: both train, and end as one would."""
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert run(processes, train, whole) == 0
    started = processes.Event()
    both = [processes.Process(target=train, args=(str(shared), started)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    for name in ("cup.safetensors", "run.safetensors"):
        assert (shared / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(os.listdir(shared)) == ["cup.safetensors", "run.safetensors"]


def test_two_processes_in_one_store_train_the_same_once(processes, tmp_path):
    together, steps = processes.Barrier(2), processes.Value("i", 0)
    both = [processes.Process(target=train_in_store, args=(str(tmp_path), together, steps)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert steps.value == CONFIG.steps
    assert len(os.listdir(tmp_path)) == 1
