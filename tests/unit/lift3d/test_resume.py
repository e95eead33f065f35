import random
import signal

import pytest

from invert3d_core import splats
from invert3d_core.lift3d import checkpoint
from tests.unit.kills import fresh_processes, run
from tests.unit.lift3d.child import CONFIG, fit


@pytest.fixture(scope="module")
def processes():
    return fresh_processes()


def test_killed_fit_resumes_to_the_same_file(processes, tmp_path):
    """Killed while it saves, before splats are added, and at random moments after that."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(processes, fit, whole) == 0
    assert len(splats.load(whole / "balls.ply")) > CONFIG.splats, "splats were added on the way"

    kills = [run(processes, fit, broken, "write", 1)]
    assert not (broken / "run.safetensors").exists()
    kills.append(run(processes, fit, broken, "replace", 2))
    kills.append(run(processes, fit, broken, "replaced", 2))
    assert kills == [-signal.SIGKILL] * 3
    assert checkpoint.peek(broken / "run.safetensors") == (3, False)
    reached, moments = processes.Value("i", 0), random.Random(5)
    for _ in range(3):
        code = run(processes, fit, broken, reached=reached, kill_after=moments.uniform(0, 0.03))
        assert code == -signal.SIGKILL
        saved, finished = checkpoint.peek(broken / "run.safetensors") or (0, False)
        assert saved >= reached.value and not finished, "a saved step is lost"
    assert not (broken / "balls.ply").exists()
    assert run(processes, fit, broken) == 0

    for name in ("balls.ply", "run.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert not list(broken.glob(".*.tmp"))
