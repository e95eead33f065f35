"""How long a million splats of SH degree 3 take to load, save and convert, against core and public converters.

    python benchmarks/splat_files.py [--splats N] [--rounds 3] [--formats ply sog …] [--out TABLE.md]

Each task is done in turns by every program that knows it, after a first turn that does not count, and the least times
are compared, which other work on the machine troubles least:

- **core**: loading and saving by the parsers and writers of the ComfyUI that tests/host/locate.py finds, in a process
  of its interpreter. From and into all but .ply they drop view-dependent colour, so they do less there.
- **gsply** (the Python registry's): the same, in the interpreter that ``--gsply`` names. To load is `plyread` or
  `read_spz` and its `apply_pre_activations`, to save its `apply_pre_deactivations` and the writer, on warm compiled
  code: everyone starts and ends with activated values. What its reader takes alone is printed as well.
- **splat-transform** (npm's @playcanvas/splat-transform): converting from .ply and to .ply, on the CPU, found on the
  path or by ``--splat-transform``. The time of the same conversion of a hundred splats, which is that of starting, is
  taken off. It stands against the sum of our loading and saving.

Standard error tells each task as it starts and how long it took (a .sog takes minutes), and why it all ended if not by
its end: a program that died, with its exit code or signal, or a signal that reached this one. Only SIGKILL leaves no
word, but then the last line is the task that was under way.

Claims: at least as fast as core for .ply, both ways; ahead of splat-transform in at least half of the formats, and of
whichever converter is the fastest in at least half of all. A binary .ply loads within 4 times what reading its bytes
takes. Files lie in memory where the system has such a place. Seconds are those of the clock and, in brackets, of the
processor in all threads; claims are held by the latter. Exit code 1 when one is missed. No converter is needed: what is
not found is left out, and said.
"""

import argparse
import json
import logging
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from invert3d_core import splats
from tests.host.locate import HostNotFound, find_comfyui, find_python

ROOT = Path(__file__).resolve().parent.parent

# Name → ending, options of our writer.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "ply": (".ply", {}),
    "compressed_ply": (".compressed.ply", {}),
    "splat": (".splat", {}),
    "ksplat": (".ksplat", {"level": 1}),
    "spz": (".spz", {"version": 3}),
    "spz4": (".spz", {"version": 4}),
    "sog": (".sog", {}),
    "gltf": (".glb", {}),
}
READ_LIMIT = 4.0
STARTING_SPLATS = 100
SLOW = 60.0  # what takes longer is timed once


class Seconds(NamedTuple):
    """Time of one task: on the clock, and of the processor in all threads."""

    wall: float
    cpu: float

    def __add__(self, other: "Seconds") -> "Seconds":  # pyright: ignore[reportIncompatibleMethodOverride]
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: "Seconds") -> "Seconds":  # pyright: ignore[reportIncompatibleMethodOverride]
        return Seconds(max(0.0, self.wall - other.wall), max(0.0, self.cpu - other.cpu))


def end_with_a_word(number: int, frame: FrameType | None) -> None:
    """Handles a signal: says its name, and ends as an error does, so that processes and files are cleared away."""
    print(f"\nEnded by {signal.Signals(number).name}, sent from outside.", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Tells what is done now, then how long it took: what ends without a word has still said where."""
    start = time.perf_counter()
    print(what, end=" … ", file=sys.stderr, flush=True)
    yield
    print(f"{time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"with exit code {code}"
    killer = " (the system kills so when memory runs out)" if -code == signal.SIGKILL else ""
    return f"by {signal.Signals(-code).name}{killer}"


class Program(Protocol):
    """One that does some of the tasks "load", "save", "to ply" and "from ply" with a format."""

    name: str

    def tasks(self, form: str) -> list[str]: ...

    def run(self, task: str, form: str, path: Path) -> Seconds | None:
        """Its time; path: what is loaded, or what is to be written. None where it fails, which it says."""
        ...


# What runs in another interpreter: it answers each line of JSON, a task, with one, the times of it.
SERVE = """
import json, sys, time
reading = {}
def serve(load, save, hold):
    for line in sys.stdin:
        task = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        if task["do"] == "hold":
            held = hold(task["path"])
        elif task["do"] == "load":
            load(task["form"], task["path"])
        else:
            save(held, task["form"], task["path"])
        print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, **reading}), flush=True)
"""
OURS = """
import logging
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(int(sys.argv[2]))
from invert3d_core import splats
logging.getLogger("invert3d").setLevel(logging.ERROR)
options = json.loads(sys.argv[3])
serve(lambda form, path: splats.load(path), lambda g, form, path: splats.save(g, path, **options[form]), splats.load)
"""
CORE = """
sys.path.insert(0, sys.argv[1])
threads, sys.argv = int(sys.argv[2]), ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import pathlib
import torch
torch.set_num_threads(threads)
from comfy_extras import nodes_gaussian_splat as core
def load(form, path):
    data = pathlib.Path(path).read_bytes()
    return core._GAUSSIAN_PARSERS[{"ply": "ply", "splat": "splat", "ksplat": "ksplat", "spz": "spz"}[form]](data)
writers = {"ply": core._gaussian_ply_bytes, "ksplat": core._gaussian_ksplat_bytes, "spz": core._gaussian_spz_bytes}
def hold(path):
    return [torch.from_numpy(part) if not torch.is_tensor(part) else part for part in load("ply", path)]
def save(held, form, path):
    pathlib.Path(path).write_bytes(writers[form](*held))
serve(load, save, hold)
"""
GSPLY = """
import gsply
from gsply import apply_pre_activations, apply_pre_deactivations, plyread, plywrite, read_spz, write_spz
readers = {"ply": plyread, "compressed_ply": plyread, "spz": read_spz}
writers = {
    "ply": lambda path, data: plywrite(path, data),
    "compressed_ply": lambda path, data: plywrite(path, data, compressed=True),
    "spz": lambda path, data: write_spz(path, data),
}
def load(form, path):
    start = time.perf_counter()
    data = readers[form](path)
    reading["reading"] = time.perf_counter() - start
    return apply_pre_activations(data, min_scale=1e-30, max_scale=1e30)
def save(held, form, path):
    writer = writers[form]
    data = apply_pre_deactivations(held, min_scale=1e-30, inplace=False)
    writer(path, data)
serve(load, save, lambda path: load("ply", path))
"""


class Interpreter:
    """A program that runs in an interpreter of its own, ready before anything is timed.

    loads, saves: the formats that it knows.
    """

    def __init__(
        self, name: str, loads: tuple[str, ...], saves: tuple[str, ...], command: list[str], folder: Path | None = None
    ) -> None:
        self.name = name
        self.known = {"load": loads, "save": saves}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder)
        self.reading: dict[str, float] = {}

    def tasks(self, form: str) -> list[str]:
        return [task for task, forms in self.known.items() if form in forms]

    def run(self, task: str, form: str, path: Path) -> Seconds:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": task, "form": form, "path": str(path)}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            how = ending(self.process.wait())
            raise SystemExit(f"\n{self.name} ended {how} while it was to {task} '{path.name}'")
        answer = json.loads(line)
        if "reading" in answer and task == "load":
            self.reading[form] = min(answer["reading"], self.reading.get(form, float("inf")))
        return Seconds(answer["wall"], answer["cpu"])

    def close(self) -> None:
        self.process.kill()  # it holds nothing that is wanted, and may be minutes from the end of its task
        self.process.wait()


class SplatTransform:
    """npm's converter, started anew for each task."""

    reads = ("ply", "compressed_ply", "splat", "ksplat", "spz", "spz4", "sog")
    writes = ("compressed_ply", "spz4", "sog", "gltf")

    def __init__(
        self, program: str, scene: Callable[[str], Path], tiny: Callable[[str], Path], patience: float
    ) -> None:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        self.name = f"splat-transform {(said.stdout + said.stderr).split()[1].removeprefix('v')}"
        self.program = program
        self.scene = scene
        self.tiny = tiny
        self.patience = patience
        self.given_up: list[tuple[str, str]] = []  # formats and tasks

    def tasks(self, form: str) -> list[str]:
        return ["to ply"] * (form in self.reads) + ["from ply"] * (form in self.writes)

    def run(self, task: str, form: str, path: Path) -> Seconds | None:
        source = form if task == "to ply" else "ply"
        start = self._convert(self.tiny(source), path)
        whole = self._convert(self.scene(source), path)
        if whole is not None and whole.wall >= self.patience and (form, task) not in self.given_up:
            self.given_up.append((form, task))
        return whole - start if whole and start else whole

    def _convert(self, source: Path, target: Path) -> Seconds | None:
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [self.program, "-q", "-w", "-g", "cpu", str(source), str(target)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=self.patience)
            failed = f"ended {ending(done.returncode)}. {done.stderr.strip()[-300:]}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            failed = ""
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if failed:
            print(f"\n{self.name}: {' '.join(command[1:])}: {failed}", file=sys.stderr, flush=True)
            return None
        return Seconds(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def random_splats(count: int) -> splats.GaussianSplats:
    """Splats of SH degree 3 with values as a training leaves them."""
    g = torch.Generator().manual_seed(0)
    return splats.GaussianSplats(
        positions=torch.randn(count, 3, generator=g),
        scales=torch.exp(torch.randn(count, 3, generator=g) - 4),
        rotations=torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=1),
        opacities=torch.rand(count, 1, generator=g),
        sh=torch.randn(count, 16, 3, generator=g) / 4,
    )


Times = dict[tuple[str, str, str], Seconds]  # program, format, task


def measure(programs: list[Program], forms: list[str], rounds: int, made: Callable[[str], Path], folder: Path) -> Times:
    """The least time of every program for every task it knows, in turns. made: a file of a format."""
    times: dict[tuple[str, str, str], list[Seconds]] = {}
    for form in forms:
        with told(f"{form}: the file that all load"):
            made(form)
        for turn in range(rounds + 1):
            for program in programs:
                for task in program.tasks(form):
                    suffix = ".ply" if task == "to ply" else FORMATS[form][0]
                    path = made(form) if task == "load" else folder / f"out{suffix}"
                    done = times.setdefault((program.name, form, task), [])
                    if done and done[0].wall > SLOW:
                        continue  # one that takes minutes is timed once
                    with told(f"{form}, turn {turn} of {rounds}: {program.name}, {task}"):
                        took = program.run(task, form, path)
                    # The first turn compiles and fills caches.
                    if took is not None and (turn or took.wall > SLOW):
                        done.append(took)
                    if task != "load":
                        path.unlink(missing_ok=True)
    return {key: Seconds(*map(min, zip(*values, strict=True))) for key, values in times.items() if values}


def with_conversions(times: Times, ours: str, forms: list[str]) -> Times:
    """The times, and the sums of our loading and saving that stand against a converter's."""
    made = dict(times)
    for form in forms:
        made[ours, form, "to ply"] = times[ours, form, "load"] + times[ours, "ply", "save"]
        made[ours, form, "from ply"] = times[ours, "ply", "load"] + times[ours, form, "save"]
    return made


def bytes_ratio(load: Callable[[], Seconds], path: Path, rounds: int) -> float:
    """How many times as long as reading its bytes a file takes to load, at the medians of turns."""
    loads, reads = [], []
    for _ in range(max(5, rounds) + 1):
        start = time.perf_counter()
        np.fromfile(path, np.uint8)
        reads.append(time.perf_counter() - start)
        loads.append(load().wall)
    return statistics.median(loads[1:]) / statistics.median(reads[1:])


def table(times: Times, names: list[str], forms: list[str], given_up: set[tuple[str, str, str]]) -> list[str]:
    """Seconds of each program, then how many times as long as ours the others take; ≥ where one was given up."""
    ours, *others = names
    lines = [
        f"| format | task | {' | '.join((*names, *(f'{name}: ours' for name in others)))} |",
        "|---|---|" + "--:|" * (1 + 2 * len(others)),
    ]
    for form in forms:
        for task in ("load", "save", "from ply", "to ply"):
            found = [(times.get((name, form, task)), "≥ " * ((name, form, task) in given_up)) for name in others]
            if not any(took for took, _ in found) and task not in ("load", "save"):
                continue
            mine = times[ours, form, task]
            cells = [f"{mine.wall:.3f} ({mine.cpu:.3f})"]
            cells += [f"{least}{took.wall:.3f} ({took.cpu:.3f})" if took else "–" for took, least in found]
            cells += [
                f"{least}{took.wall / mine.wall:.2f} ({took.cpu / mine.cpu:.2f})" if took else "–"
                for took, least in found
            ]
            lines.append(f"| {form} | {task} | {' | '.join(cells)} |")
    return lines


def ahead_of(times: Times, ours: str, others: list[str], forms: list[str]) -> tuple[list[str], list[str]]:
    """The formats that any of the others knows, and those in which ours takes less time of the processor than each."""
    known, won = [], []
    for form in forms:
        ratios = []
        for other in others:
            tasks = [task for name, its, task in times if name == other and its == form]
            if tasks:
                mine, theirs = (sum(times[who, form, task].cpu for task in tasks) for who in (ours, other))
                ratios.append(theirs / mine)
        if ratios:
            known.append(form)
            if min(ratios) > 1:
                won.append(form)
    return known, won


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splats", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch, in our process and core's")
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--splat-transform", default=shutil.which("splat-transform"), help="npm's converter")
    parser.add_argument("--gsply", help="an interpreter that has gsply")
    parser.add_argument("--patience", type=float, default=600, help="seconds after which a conversion is given up")
    parser.add_argument("--out", type=Path, help="a file for the table, in Markdown")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup wants the hang-up ignored
            signal.signal(number, end_with_a_word)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        return compare(arguments, Path(name))


def compare(arguments: argparse.Namespace, folder: Path) -> int:
    """Measure all programs that are here, print the table, and hold it against the claims."""
    logging.getLogger("invert3d").setLevel(logging.ERROR)
    forms = list(dict.fromkeys(["ply", *arguments.formats]))  # all conversions need it
    sizes = {"scene": arguments.splats, "tiny": STARTING_SPLATS}
    scenes = {kind: random_splats(count) for kind, count in sizes.items()}

    def file_of(kind: str) -> Callable[[str], Path]:
        def made(form: str) -> Path:
            suffix, options = FORMATS[form]
            path = folder / f"{kind}-{form}{suffix}"
            if not path.exists():
                splats.save(scenes[kind], path, **options)
            return path

        return made

    whole, tiny = file_of("scene"), file_of("tiny")
    options = json.dumps({form: options for form, (_, options) in FORMATS.items()})
    command = [sys.executable, "-c", SERVE + OURS, str(ROOT), str(arguments.threads), options]
    ours = Interpreter("Invert3D", tuple(FORMATS), tuple(FORMATS), command)
    programs: list[Program] = [ours]
    said = []
    try:
        comfyui = find_comfyui()
        if comfyui is None:
            raise HostNotFound("no ComfyUI was found")
        command = [str(find_python(comfyui)), "-c", SERVE + CORE, str(comfyui), str(arguments.threads)]
        programs.append(
            Interpreter("core", ("ply", "splat", "ksplat", "spz"), ("ply", "ksplat", "spz"), command, comfyui)
        )
    except HostNotFound as error:
        said.append(f"Without core: {error}.")
    converters = []
    if arguments.gsply:
        asked = [arguments.gsply, "-c", "from importlib.metadata import version; print(version('gsply'))"]
        version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        known = ("ply", "compressed_ply", "spz")
        converters.append(Interpreter(f"gsply {version}", known, known, [arguments.gsply, "-c", SERVE + GSPLY]))
    else:
        said.append("Without gsply: no interpreter that has it was named (--gsply).")
    if arguments.splat_transform:
        converters.append(SplatTransform(arguments.splat_transform, whole, tiny, arguments.patience))
    else:
        said.append("Without splat-transform: it is not on the path (npm i -g @playcanvas/splat-transform).")
    programs += converters
    served = [program for program in programs if isinstance(program, Interpreter)]
    try:
        for program in served:
            with told(f"{program.name} takes up the splats that it is to save"):
                program.run("hold", "ply", whole("ply"))
        times = with_conversions(measure(programs, forms, arguments.rounds, whole, folder), ours.name, forms)
        ratio = bytes_ratio(lambda: ours.run("load", "ply", whole("ply")), whole("ply"), arguments.rounds)
    finally:
        for program in served:
            program.close()
    sizes_said = ", ".join(f"{form} {whole(form).stat().st_size / 1e6:.0f} MB" for form in forms)
    said.insert(0, f"{arguments.splats:,} splats of SH degree 3, {arguments.rounds} rounds; files: {sizes_said}.")
    said.append(f"Loading the .ply takes {ratio:.2f} times as long as reading its bytes (limit {READ_LIMIT:.0f}).")
    missed = [] if ratio <= READ_LIMIT else ["loading a .ply within 4 times its bytes"]
    for task in ("load", "save"):
        if ("core", "ply", task) in times and times["core", "ply", task].cpu < times[ours.name, "ply", task].cpu:
            missed.append(f"core's .ply ({task})")
    groups = [[program.name] for program in programs[1:]]
    groups += [[program.name for program in converters]] * (len(converters) > 1)
    for names in groups:
        known, won = ahead_of(times, ours.name, names, forms)
        said.append(
            f"Ahead of {' and '.join(names)} in {len(won)} of {len(known)} formats: {', '.join(won) or 'none'}."
        )
        if "core" not in names and len(known) > 3 and 2 * len(won) < len(known):
            missed.append(f"half of the formats of {' and '.join(names)}")
    given_up = set()
    for program in converters:
        if isinstance(program, SplatTransform) and program.given_up:
            given_up |= {(program.name, form, task) for form, task in program.given_up}
            tasks = ", ".join(f"{form} {task}" for form, task in program.given_up)
            said.append(
                f"{program.name} was not done after {arguments.patience:.0f} s, which then stand here: {tasks}."
            )
    for program in served:
        for form, reading in program.reading.items():
            said.append(f"{program.name}'s reader alone, {form}: {reading:.3f} s.")
    said.append(f"Missed: {', '.join(missed)}." if missed else "Every claim is met.")
    lines = [
        *table(times, [program.name for program in programs], forms, given_up),
        "",
        *(f"- {line}" for line in said),
    ]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
