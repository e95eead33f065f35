"""What counts as broken is found, whatever way a reader breaks; and damage is what it says it is."""

import json
import logging
import mmap
import multiprocessing
import os
import time
import warnings
import zlib
from pathlib import Path
from random import Random

import numpy as np
import pytest

from invert3d_core.errors import FormatError
from tests.fuzz import campaign, containers, mutations, trials
from tests.fuzz.campaign import Record
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.trials import replay


def reader(data: bytes) -> str:
    """One that breaks in the way that its file names."""
    if data == b"refuse":
        raise FormatError("it is damaged")
    if data.endswith(b"error"):
        raise ZeroDivisionError("a slip")
    if data.endswith(b"log"):
        logging.getLogger("invert3d").warning("%d", "no number")
    if data.endswith(b"warning"):
        warnings.warn("careful", RuntimeWarning, stacklevel=1)
    if data.endswith(b"overflow"):
        np.multiply(np.float32(1e38), np.array([1e38], np.float32))
    if data.endswith(b"memory"):
        np.zeros(100 << 20, np.uint8)
    if data.endswith(b"untouched"):
        np.empty(100 << 20, np.uint8)
    if data.endswith(b"mapped"):  # past numpy and Python, as a library of C may
        mmap.mmap(-1, 100 << 20).close()
    if data.endswith(b"slow"):
        start = time.process_time()
        while time.process_time() - start < 0.2:
            pass
    if data.endswith(b"words"):
        raise FormatError("it is damaged" * 1000)
    if data == b"die":
        os._exit(7)
    if data == b"hang":
        time.sleep(60)
    return "fine"


def target(*files: bytes) -> Target:
    return Target("toy", lambda: list(files), (lambda chance, data: data,), reader, FormatError)


def test_whole_and_refused_files_are_no_findings() -> None:
    tally = replay(target(), [b"a", b"refuse", b"b"])
    assert (tally.files, tally.read, tally.broken) == (3, 2, 0)
    assert sorted(tally.outcomes) == ["read: fine", "refused: "]


@pytest.mark.parametrize(
    ("data", "kind", "what"),
    [
        (b"error", "broken: ZeroDivisionError", "a slip"),
        (b"log", "broken: TypeError", "a real number is required"),
        (b"warning", "broken: RuntimeWarning", "careful"),
        (b"overflow", "broken: RuntimeWarning", "overflow"),
        (b"memory", "memory", "100 MB for 6 bytes"),
        (b"untouched", "memory", "100 MB for 9 bytes"),
        (b"slow", "slow: read", "seconds for 4 bytes"),
        (b"words", "message", "13000 characters"),
    ],
)
def test_each_way_to_break_is_found(data: bytes, kind: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "SECONDS", 0.1)
    # A process that was larger once does not grow: then all are traced, as where the system tells nothing.
    monkeypatch.setattr(trials, "_STATUS", Path("none"))
    tally = replay(target(), [b"a", data, b"longer " + data, data])
    (found,) = [found for name, found in tally.findings.items() if name.startswith(kind)]
    assert (found.data, found.files) == (data, 3)
    assert what in found.what


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.parametrize(
    ("data", "kind", "what"),
    [
        (b"untouched", "memory", "100 MB"),
        (b"mapped", "memory", "100 MB"),
        (b"die", "crash", "code 7"),
        (b"hang", "hang", "not done after 1 seconds"),
    ],
)
def test_processes_show_what_broke_them(
    data: bytes, kind: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "HANG_SECONDS", 1.0)
    monkeypatch.setattr(campaign, "BATCH", 3)
    record = Record(target(data), tmp_path)
    campaign.run([record], files=3, workers=2)
    found = Record(target(), tmp_path).tally.findings[kind]
    assert found.data == data
    assert what in found.what
    assert f"| {found.files} |" in campaign.table([record])


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "BATCH", 2)
    campaign.run([Record(target(b"a"), tmp_path)], files=4, workers=0)
    record = Record(target(b"refuse"), tmp_path)
    assert (record.tally.files, record.tally.read) == (4, 4)
    campaign.run([record], files=4, workers=0)
    assert record.tally.files == 4
    campaign.run([record], files=8, workers=0)
    assert record.tally.files == 8
    assert record.parents == [b"refuse", b"a"]
    assert 4 < record.tally.read < 8  # what was found has children
    campaign.run([record], files=100, workers=0, seconds=0)
    assert record.tally.files == 8
    campaign.write_corpus([record], tmp_path / "corpus")
    assert set(containers.unpack_zip((tmp_path / "corpus" / "toy.zip").read_bytes()).values()) == {b"refuse", b"a"}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_damage_is_repeatable_and_of_many_kinds(target: Target) -> None:
    def some(seed: int) -> list[bytes]:
        chance = Random(seed)
        return [target.mutate(chance, target.parents) for _ in range(60)]

    assert some(3) == some(3)
    assert len(set(some(3)) - set(target.parents)) > 40
    for way in target.ways:  # each can take some whole file apart
        made = []
        for data in target.start():
            try:
                made.append(way(Random(1), data))
            except Exception:
                continue
        assert made


def test_damaged_bytes_text_and_json() -> None:
    chance = Random(0)
    data = bytes(range(200))
    made = [mutations.damaged(chance, data, 20) for _ in range(300)]
    assert sum(changed[:20] != data[:20] for changed in made) > 150
    assert any(len(changed) > 200 for changed in made)
    assert any(len(changed) < 100 for changed in made)
    assert mutations.damaged(chance, b"", 10)
    words = "element vertex 12\nproperty float x\n"
    assert len({mutations.damaged_text(chance, words) for _ in range(100)}) > 50
    value = {"a": [1, 2.5, {"b": "c"}], "d": None}
    texts = {mutations.damaged_json(chance, value) for _ in range(100)}
    assert len(texts) > 50
    assert sum(isinstance(json.loads(text), dict) for text in texts if b"[[[[" not in text) > 40


def test_containers_come_back_whole() -> None:
    files = {"a": b"1", "b/c": b"2" * 50}
    assert containers.unpack_zip(containers.pack_zip(files.items())) == files
    glb = TARGETS["gltf"].start()[0]
    document, binary = containers.unpack_glb(glb)
    assert containers.unpack_glb(containers.pack_glb(json.dumps(document).encode(), binary)) == (document, binary)
    assert zlib.decompress(containers.pack_gzip(b"abc"), 31) == b"abc"
    pytest.importorskip("zstandard")
    spz = next(data for data in TARGETS["spz"].start() if data[:4] == b"NGSP")
    parts = containers.unpack_spz4(spz)
    assert containers.unpack_spz4(containers.pack_spz4(*parts)) == parts
