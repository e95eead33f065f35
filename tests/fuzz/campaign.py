"""Many files over several processes: resumable, guided by the endings that earlier files found.

Each batch runs in a process of its own, which can die or hang without harm and says what it was reading. A file that
ends in a way not seen before becomes a parent of later ones.
"""

import json
import math
import mmap
import multiprocessing
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

from . import containers
from .targets import CORPUS, Target
from .trials import Tally, batch, replay

BATCH = 500
HANG_SECONDS = 120.0
"""A file that takes so long on the clock, however busy the machine, is a hang; its process is ended."""

MAX_PARENT = 1 << 15
_PLACE = struct.Struct("<QI")
_PLACE_BYTES = 1 << 21


class Record:
    """What is known of one format: batches that are done, and what they found. Kept in a folder, to go on later.

    guided: whether what was found has children; else the files depend on the seed alone.
    """

    def __init__(self, target: Target, folder: Path, seed: int = 0, guided: bool = True) -> None:
        self.target = target
        self.folder = folder / target.name
        self.seed = seed
        self.guided = guided
        self.done: set[int] = set()
        self.tally = Tally()
        state = self.folder / "state.json"
        if state.is_file():
            values = json.loads(state.read_text())
            self.done = set(values["done"])
            self.tally = Tally(*values["tally"])
            for name, outcome in values["outcomes"].items():
                self.tally.keep(outcome, (self.folder / name).read_bytes())
            for kind, (name, what, files) in values["findings"].items():
                self.tally.report(kind, (self.folder / name).read_bytes(), what, files)

    @property
    def parents(self) -> list[bytes]:
        """Whole and kept files, and the smallest of each ending found so far."""
        if not self.guided:
            return self.target.parents
        found = (data for outcome, data in self.tally.outcomes.items() if not outcome.startswith("broken"))
        return list(dict.fromkeys([*self.target.parents, *(data for data in found if 0 < len(data) <= MAX_PARENT)]))

    def add(self, number: int, tally: Tally) -> None:
        """Count a batch in, and write it all down."""
        self.done.add(number)
        self.tally.add(tally)
        self.save()

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

        def put(data: bytes) -> str:
            name = f"{zlib.crc32(data):08x}.bin"
            if not (self.folder / name).is_file():
                (self.folder / name).write_bytes(data)
            return name

        t = self.tally
        values = {
            "done": sorted(self.done),
            "tally": [t.files, t.read, t.slowest, t.grown],
            "outcomes": {put(data): outcome for outcome, data in t.outcomes.items()},
            "findings": {kind: (put(found.data), found.what, found.files) for kind, found in t.findings.items()},
        }
        beside = self.folder / "state.json.tmp"
        beside.write_text(json.dumps(values, indent=1))
        os.replace(beside, self.folder / "state.json")


@dataclass
class _Worker:
    """A process at work on a batch, and where it writes what it is reading."""

    process: BaseProcess
    record: Record
    number: int
    place: mmap.mmap
    files: int = 0
    since: float = field(default_factory=time.monotonic)

    @property
    def begun(self) -> int:
        """How many files it has begun to read."""
        return _PLACE.unpack_from(self.place)[0]

    @property
    def reading(self) -> bytes:
        """The file it reads."""
        _, length = _PLACE.unpack_from(self.place)
        return self.place[_PLACE.size : _PLACE.size + length]

    @property
    def hangs(self) -> bool:
        if self.begun != self.files:
            self.files, self.since = self.begun, time.monotonic()
        return time.monotonic() - self.since > HANG_SECONDS


def run(records: list[Record], files: int, workers: int, seconds: float = math.inf) -> None:
    """Try so many files of each format, in turn where least is done, or as many as the time allows.

    workers: processes at a time; 0 does without, on systems that cannot fork.
    """
    batches, end = -(-files // BATCH), time.monotonic() + seconds
    crew = _Crew()
    while True:
        while len(crew.busy) < max(1, workers) and time.monotonic() < end:
            open_ = {record.target.name: record for record in records if len(crew.taken(record)) < batches}
            if not open_:
                break
            record = min(open_.values(), key=lambda record: len(crew.taken(record)))
            taken = crew.taken(record)
            number = next(number for number in range(batches) if number not in taken)
            if workers:
                crew.start(record, number)
            else:
                record.add(number, one_batch(record, number))
        if not crew.busy:
            return
        crew.collect()


class _Crew:
    """Processes, each at work on one batch."""

    def __init__(self) -> None:
        self.busy: dict[Connection, _Worker] = {}

    def taken(self, record: Record) -> set[int]:
        """The batches of a format that are done or at work on."""
        return record.done.union(worker.number for worker in self.busy.values() if worker.record is record)

    def start(self, record: Record, number: int) -> None:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        place = mmap.mmap(-1, _PLACE_BYTES)
        process = context.Process(target=_work, args=(record, number, place, theirs))
        process.start()
        theirs.close()
        self.busy[ours] = _Worker(process, record, number, place)

    def collect(self) -> None:
        """Wait a second for batches that are done, and end those that hang."""
        for connection in wait(list(self.busy), timeout=1):
            assert isinstance(connection, Connection)
            try:
                tally = connection.recv()
            except (EOFError, OSError):
                tally = None
            self._end(connection, tally, "crash", "the process ended with code {code}")
        for connection, worker in list(self.busy.items()):
            if worker.hangs:
                worker.process.kill()
                self._end(connection, None, "hang", f"not done after {HANG_SECONDS:.0f} seconds")

    def _end(self, connection: Connection, tally: Tally | None, kind: str, what: str) -> None:
        worker = self.busy.pop(connection)
        worker.process.join()
        if tally is None:
            tally = Tally(worker.begun)
            tally.report(kind, worker.reading, what.format(code=worker.process.exitcode))
        worker.record.add(worker.number, tally)
        connection.close()
        worker.place.close()


def _work(record: Record, number: int, place: mmap.mmap, connection: Connection) -> None:
    def began(files: int, data: bytes) -> None:
        data = data[: _PLACE_BYTES - _PLACE.size]
        place[_PLACE.size : _PLACE.size + len(data)] = data
        _PLACE.pack_into(place, 0, files, len(data))

    connection.send(one_batch(record, number, began))
    connection.close()


def one_batch(record: Record, number: int, began: Callable[[int, bytes], None] | None = None) -> Tally:
    """The files of a batch; the same for the same seed, number and parents."""
    chance = Random(f"{record.seed} {record.target.name} {number}")
    return batch(record.target, chance, record.parents, BATCH, began)


def check_parents(target: Target) -> None:
    """Raise AssertionError unless every whole file is read."""
    tally = replay(target, target.start())
    assert tally.read == tally.files, f"{target.name}: {tally.outcomes.keys()}"


def write_corpus(records: list[Record], folder: Path = CORPUS, most: int = 1 << 13) -> None:
    """Keep the smallest file of each ending, up to ``most`` bytes each, in a zip a format."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        small = (data for data in record.tally.outcomes.values() if len(data) <= most)
        files = {f"{zlib.crc32(data):08x}.bin": data for data in small}
        (folder / f"{record.target.name}.zip").write_bytes(
            containers.pack_zip(sorted(files.items()), zipfile.ZIP_DEFLATED)
        )


def table(records: list[Record]) -> str:
    """The results in Markdown."""
    lines = [
        "| format | files | read | refused | endings | slowest | memory | broken |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for record in records:
        t = record.tally
        refused = t.files - t.read - t.broken
        lines.append(
            f"| {record.target.name} | {t.files:,} | {t.read:,} | {refused:,} | {len(t.outcomes)} | "
            f"{1000 * t.slowest:.0f} ms | {t.grown / 1e6:.1f} MB | {t.broken} |"
        )
    return "\n".join(lines)
