"""The kept files and 2,000 new ones of each format: none breaks a reader. `make fuzz` tries a hundred times as many."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from invert3d_core import splats
from tests.fuzz.campaign import Record, check_parents
from tests.fuzz.targets import CORPUS, TARGETS, Target, kept, scene
from tests.fuzz.trials import FREE_BYTES, TIMES, replay, traced

ROOT = Path(__file__).resolve().parents[2]
FILES = 2000


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run over all formats, in processes of its own: their memory tells more than this one's."""
    state = tmp_path_factory.mktemp("fuzz")
    command = [sys.executable, "-m", "tests.fuzz", "--files", str(FILES), "--seed", "1", "--unguided"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--state", str(state)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr[-2000:]
    return state


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_new_files_break_nothing(target: Target, tried: Path) -> None:
    tally = Record(target, tried).tally
    assert tally.files == FILES
    assert not tally.findings, [f"{found.files} files, {kind}: {found.what}" for kind, found in tally.findings.items()]
    assert tally.read > FILES / 100, "some are still whole"
    assert tally.files - tally.read > FILES / 5, "most damage shows"


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_kept_files_break_nothing(target: Target) -> None:
    check_parents(target)
    assert len(kept(target.name)) > 3
    tally = replay(target, list(kept(target.name)))
    assert not tally.findings, [f"{found.files} files, {kind}: {found.what}" for kind, found in tally.findings.items()]
    # Each was kept for an ending of its own; code that changed may have joined some.
    assert len(tally.outcomes) > 0.7 * len(kept(target.name))


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.glob("*.zip")) < 300_000
    assert {path.stem for path in CORPUS.glob("*.zip")} == set(TARGETS)


@pytest.mark.parametrize(
    ("ending", "options"),
    [
        (".ply", {}),
        (".compressed.ply", {}),
        (".splat", {}),
        (".ksplat", {"level": 1}),
        (".ksplat", {"level": 2}),
        (".spz", {"version": 2}),
        (".spz", {"version": 3}),
        (".spz", {"version": 4}),
        (".sog", {"palette": 256, "iterations": 1}),
        (".glb", {}),
    ],
)
def test_whole_files_take_no_more_memory(ending: str, options: dict, tmp_path: Path) -> None:
    """A file of megabytes, so that it is the part that grows with its size that tells.

    Valid SPZ files of more splats than some 200,000 take more: few bytes a splat in the file are 236 in memory.
    """
    path = tmp_path / f"a{ending}"
    splats.save(scene(100_000, 1 if ending == ".sog" else 3), path, **options)
    data = path.read_bytes()
    name = {".glb": "gltf", ".compressed.ply": "compressed_ply"}.get(ending, ending[1:])
    assert traced(TARGETS[name], data) < FREE_BYTES + TIMES * len(data)
