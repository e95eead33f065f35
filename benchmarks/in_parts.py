"""A benchmark in parts that do not depend on each other: each has its time, and one that fails stops no other.

The parts run one after the other in a process of their own. After one that fails, whatever way, the rest get a new
process: what a failure leaves on a GPU is not to be trusted.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

LONGEST_PART = 60.0  # seconds
LEAST = 5.0  # seconds, with fewer of which left no part begins

Row = dict[str, float]
"""Numbers by name; those of all parts have the part's name and a full stop before their own."""


def say(text: str) -> None:
    print(text, flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `run_all` tells the process that it starts."""
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)


class Child:
    """The process that runs parts. results: file with a line for each part that began and for each that ended."""

    def __init__(self, results: Path, until: float) -> None:
        self.results = results
        self.until = until

    def run(self, run_part: Callable[[str], Row], parts: Sequence[str], longest: Mapping[str, float]) -> int:
        """Run parts until one fails; longest: seconds of those that may take more than others."""
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, _too_long)
        for part in parts:
            left = min(longest.get(part, LONGEST_PART), self.until - time.time())
            if left < LEAST:
                self._note(part=part)
                say(f"{part}: no time left")
                continue
            self._note(part=part, began=True)
            began = time.perf_counter()
            try:
                _alarm(int(left))
                row = run_part(part)
            except Exception:
                say(f"{part}: FAILED after {time.perf_counter() - began:.1f} s\n{traceback.format_exc()}")
                self._note(part=part)
                return 1
            finally:
                _alarm(0)
            self._note(part=part, row=row)
            numbers = ", ".join(f"{key} {value:.4g}" for key, value in row.items())
            say(f"{part} ({time.perf_counter() - began:.1f} s): {numbers}")
        return 0

    def _note(self, **entry: Any) -> None:
        with self.results.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def run_all(script: str, parts: Sequence[str], options: Sequence[str], seconds: float) -> Row:
    """Run a script's parts in children (``--parts``, and the arguments of `add_arguments`), and collect the numbers."""
    until = time.time() + seconds
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.jsonl"
        results.touch()
        left = list(parts)
        while left and time.time() < until - LEAST:
            child = [sys.executable, script, *options, "--child", str(results), "--until", str(until), "--parts", *left]
            try:
                subprocess.run(child, timeout=until + LEAST - time.time(), check=False)
            except subprocess.TimeoutExpired:
                say("no time left")
            _, done, running = _collect(results)
            if running is not None:
                say(f"{running}: the process ended in it")
                done.add(running)
            after = [part for part in left if part not in done]
            if len(after) == len(left):  # it died before its first part: another would, too
                break
            left = after
        return _collect(results)[0]


def _collect(results: Path) -> tuple[Row, set[str], str | None]:
    """All numbers so far, the parts that are done with, and the one that was running."""
    row: Row = {}
    done: set[str] = set()
    running = None
    for line in results.read_text().splitlines():
        entry = json.loads(line)
        part = entry["part"]
        running = part if entry.get("began") else None
        if running is None:
            done.add(part)
        row.update({f"{part}.{key}": value for key, value in entry.get("row", {}).items()})
    return row, done, running


def _alarm(seconds: int) -> None:
    if hasattr(signal, "SIGALRM"):
        signal.alarm(seconds)


def _too_long(*_: object) -> None:
    raise TimeoutError("the part took too long")
