import multiprocessing
import random
import signal
import time

import pytest

from invert3d_core import tokens
from tests.unit.inversion import child


@pytest.fixture(scope="module")
def processes():
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork a fresh process cheaply")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.unit.inversion.child"])
    return context


def run(context, folder, *args, kill_after=None):
    """Exit code of a training process; kill_after: seconds after its first step."""
    started = context.Event()
    process = context.Process(target=child.train, args=(str(folder), started, *args))
    process.start()
    if kill_after is not None:
        started.wait(60)
        time.sleep(kill_after)
        process.kill()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def test_killed_training_resumes_to_the_same_file(processes, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(processes, whole) == 0
    token = tokens.load(whole / "cup.safetensors")
    assert token.provenance["step"] > 0

    kills = [run(processes, broken, "write", 1)]
    assert not (broken / "run.safetensors").exists()
    kills.append(run(processes, broken, "replace", 3))
    kills.append(run(processes, broken, "replaced", 2))
    kills.append(run(processes, broken, "write", 4))
    assert kills == [-signal.SIGKILL] * 4
    assert list(broken.glob(".run.safetensors.*.tmp"))  # half a checkpoint lies there
    moments = random.Random(5)
    for _ in range(3):
        assert run(processes, broken, kill_after=moments.uniform(0, 0.04)) == -signal.SIGKILL
    assert not (broken / "cup.safetensors").exists()
    assert run(processes, broken) == 0

    assert (broken / "cup.safetensors").read_bytes() == (whole / "cup.safetensors").read_bytes()
    assert (broken / "run.safetensors").read_bytes() == (whole / "run.safetensors").read_bytes()
    assert not list(broken.glob(".*.tmp"))
