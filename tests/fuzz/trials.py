"""Trying damaged files: what a reader may do with one, and what counts as broken.

A file is read whole and valid, or refused with the reader's own error and a message; without any warning of Python or
numpy, within `SECONDS` of processor time, and within `FREE_BYTES` and `TIMES` its size of memory.
"""

import logging
import os
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from .targets import Target

SECONDS = 1.0
FREE_BYTES = 64 << 20
TIMES = 4
MAX_MESSAGE = 2000

_STATUS = Path("/proc/self/status")


@dataclass
class Finding:
    """A way to break a promise: the smallest file that does, what happened to it, and how many files did."""

    data: bytes
    what: str
    files: int = 1


@dataclass
class Tally:
    """What became of some files.

    slowest: seconds of processor time of a file. grown: bytes of address space that a batch took beyond its files.
    outcomes: each way to end (where a file was refused, or what was read) → the smallest file that took it.
    findings: each way to break a promise.
    """

    files: int = 0
    read: int = 0
    slowest: float = 0.0
    grown: int = 0
    outcomes: dict[str, bytes] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)

    @property
    def broken(self) -> int:
        """How many files broke a promise."""
        return sum(finding.files for finding in self.findings.values())

    def add(self, other: "Tally") -> None:
        """Count others' files in."""
        self.files += other.files
        self.read += other.read
        self.slowest = max(self.slowest, other.slowest)
        self.grown = max(self.grown, other.grown)
        for kind, found in other.findings.items():
            self.report(kind, found.data, found.what, found.files)
        for outcome, data in other.outcomes.items():
            self.keep(outcome, data)

    def keep(self, outcome: str, data: bytes) -> None:
        """Note that a file ended like this."""
        if outcome not in self.outcomes or len(data) < len(self.outcomes[outcome]):
            self.outcomes[outcome] = data

    def report(self, kind: str, data: bytes, what: str, files: int = 1) -> None:
        """Note that files broke a promise in this way, this one for example."""
        found = self.findings.setdefault(kind, Finding(data, what, 0))
        if len(data) < len(found.data):
            found.data, found.what = data, what
        found.files += files


def batch(
    target: Target, chance: Random, parents: list[bytes], count: int, began: Callable[[int, bytes], None] | None = None
) -> Tally:
    """Try ``count`` files made from the parents. began: told, before a file is read, the how-manieth it is."""
    files = []

    def made() -> Iterator[bytes]:
        for number in range(1, count + 1):
            data = target.mutate(chance, parents)
            if began:
                began(number, data)
            files.append(data)
            yield data

    return _tried(target, made(), files)


def replay(target: Target, files: list[bytes]) -> Tally:
    """Try these files."""
    return _tried(target, iter(files), files)


def _tried(target: Target, made: Iterator[bytes], files: list[bytes]) -> Tally:
    """Try files one after another; ``files`` holds those that were made so far.

    The address space of the process is looked at once, at the end: it holds whatever any library took, touched or not.
    Where it grew by more than a file may take, each is read again and measured alone. Without a system that tells, all
    are.
    """
    tally = Tally()
    before = _address_space("VmSize")
    with _strict():
        for data in made:
            try_one(target, data, tally)
        peak = _address_space("VmPeak")
        if before is not None and peak is not None:
            tally.grown = max(0, peak - before - sum(map(len, files)))
        if before is None or tally.grown > FREE_BYTES + TIMES * min(map(len, files), default=0):
            for data in files:
                took = max(traced(target, data), _grown_alone(target, data) or 0)
                if took > FREE_BYTES + TIMES * len(data):
                    tally.report("memory", data, f"{took >> 20} MB for {len(data)} bytes")
    return tally


def try_one(target: Target, data: bytes, tally: Tally) -> None:
    """Read one file and note how it ended."""
    start = time.process_time()
    try:
        outcome = f"read: {target.load(data)}"
        tally.read += 1
    except target.error as error:
        outcome = f"refused: {_where(error)}"
        if not 0 < len(str(error)) <= MAX_MESSAGE:
            tally.report(f"message {_where(error)}", data, f"{len(str(error))} characters: {str(error)[:80]!r}")
    except Exception as error:
        outcome = f"broken: {type(error).__name__} {_where(error)}"
        tally.report(outcome, data, "".join(traceback.format_exception(error)[-3:]))
    spent = time.process_time() - start
    tally.files += 1
    tally.slowest = max(tally.slowest, spent)
    if spent > SECONDS and (again := _seconds(target, data)) > SECONDS:
        tally.report(f"slow: {outcome}", data, f"{again:.2f} seconds for {len(data)} bytes")
    tally.keep(outcome, data)


def _seconds(target: Target, data: bytes) -> float:
    """How long a file takes when it is read again: the first time may have paid for something else."""
    start = time.process_time()
    with suppress(Exception):
        target.load(data)
    return time.process_time() - start


def _where(error: BaseException) -> str:
    """The functions and line of the package in which an error was raised: what tells one refusal from another."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "invert3d_core" in frame.filename]
    cause = f" after {type(error.__cause__).__name__}" if error.__cause__ else ""
    return " > ".join(f"{Path(f.filename).stem}.{f.name}:{f.lineno}" for f in frames[-2:]) + cause


def _grown_alone(target: Target, data: bytes) -> int | None:
    """Bytes of address space that a file takes in a process of its own, which knows no peak before it.

    None where the system cannot fork or does not tell.
    """
    if not hasattr(os, "fork") or _address_space("VmPeak") is None:
        return None
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        before, peak = _address_space("VmSize"), None
        try:
            with suppress(Exception):
                target.load(data)
            peak = _address_space("VmPeak")
        finally:
            os.write(writing, str((peak or 0) - (before or 0)).encode())
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(process, 0)
    return int(said) if said else None


def traced(target: Target, data: bytes) -> int:
    """The most bytes that Python and numpy hold at once while a file is read."""
    outside = tracemalloc.is_tracing()
    if not outside:
        tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        with suppress(Exception):
            target.load(data)
    finally:
        peak = tracemalloc.get_traced_memory()[1] - start
        if not outside:
            tracemalloc.stop()
    return peak


def _address_space(field: str) -> int | None:
    """Bytes of address space of this process, now (VmSize) or at most (VmPeak); None where the system does not tell."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(field)), None)


@contextmanager
def _strict() -> Iterator[None]:
    """Warnings are errors, and every log message is formatted, as a log file would."""
    logger = logging.getLogger("invert3d")
    handler = logging.Handler()
    handler.emit = lambda record: _formatted(record)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)


def _formatted(record: logging.LogRecord) -> Any:
    return record.getMessage()
