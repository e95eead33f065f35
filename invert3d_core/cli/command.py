"""What every command has: `--json`, a voice, a progress bar, and a clean end at Ctrl-C."""

import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff, arg

from ..errors import Invert3DError, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..mvdream import MVDream

QUIET_INTERVAL_S = 10.0  # between two states of a bar that is written to a file


# Options whose help says in words what is done without them. A switch has no opposite to type.
Switch = FlagCreatePairsOff[bool]
OptionalInt = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
OptionalFloat = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")]
OptionalFloats = Annotated[tuple[float, ...], arg(metavar="FLOAT...", help_behavior_hint="")]
OptionalText = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")]
OptionalPath = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")]


class InputError(Invert3DError):
    """What was asked for on the command line cannot be done."""


@dataclass(kw_only=True)
class Command:
    """Base of the commands."""

    json: Switch = False
    """Print one JSON report on stdout, and nothing else there."""

    def run(self) -> None:
        """Do what the command is for. Raises Invert3DError or OSError for bad input, KeyboardInterrupt at Ctrl-C."""
        raise NotImplementedError

    def say(self, text: str) -> None:
        """Tell the user something now: on stdout, but on stderr where stdout is for the report."""
        print(text, file=sys.stderr if self.json else sys.stdout, flush=True)

    def report(self, values: Mapping[str, Any], text: str) -> None:
        """The result: as JSON, or as text for a person."""
        if self.json:
            print(json.dumps(values, indent=1, default=str), flush=True)
        else:
            self.say(text)


class Bar:
    """A progress bar on stderr that follows the core's progress protocol; it appears with the first step.

    between: called before each step is shown; what it raises stops the job.
    """

    def __init__(self, what: str, between: Callable[[], None] = lambda: None) -> None:
        self.first: int | None = None  # the step it was told first, for a resumed job that of its checkpoint
        self.step = 0
        self.total = 0
        self._what = what
        self._between = between
        self._bar: Any = None
        self._shown: dict[str, float] = {}

    def __call__(
        self,
        step: int,
        total: int,
        *,
        metrics: Mapping[str, float] | None = None,
        preview: "Callable[[], Tensor] | None" = None,
    ) -> None:
        self.first = step if self.first is None else self.first
        self.step, self.total = step, total
        self._between()
        if self._bar is None:
            from tqdm import tqdm

            pause = 0.1 if sys.stderr.isatty() else QUIET_INTERVAL_S
            # A resumed job starts where it was, so that its speed is right.
            self._bar = tqdm(
                total=total, desc=self._what, initial=max(0, step - 1), mininterval=pause, file=sys.stderr, leave=True
            )
        if metrics:
            self._shown.update(metrics)
            text = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in self._shown.items())
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._bar.n)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *reason: object) -> None:
        if self._bar is not None:
            self._bar.close()


@contextmanager
def stopping_between_steps() -> Iterator[Callable[[], None]]:
    """Make Ctrl-C a request: what is given, called between two steps, raises KeyboardInterrupt once it was pressed.

    So a step, and the writing of a checkpoint, are not torn apart. A second Ctrl-C stops at once.
    """
    asked = False

    def note(signum: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    # Only the main thread hears signals; a background job that ignores Ctrl-C goes on ignoring it.
    if threading.current_thread() is not threading.main_thread() or before in (None, signal.SIG_IGN):
        yield check
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def writable_folder(path: Path) -> Path:
    """The folder, made where it is not there. Raises OSError now rather than after the work when it cannot be used."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InputError(f"'{path}' is a file; expected a folder, or a name that is free.") from error
    with tempfile.TemporaryFile(dir=path):
        return path


def load_model(name: str, device: str | None, dtype: str) -> "MVDream":
    """The model of a name or path on a device, in "fp32", "fp16" or "bf16"."""
    import torch

    from .. import mvdream

    return mvdream.load(
        name,
        device=chosen_device(device),
        dtype={"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype],
    )


def chosen_device(name: str | None) -> "torch.device | None":
    """The device of a name. Raises InputError when there is none of that name here."""
    import torch

    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error)
        raise InputError(f"The device '{name}' cannot be used here ({reason}). Leave --device out.") from error
    return device


def peak_memory_mb() -> float | None:
    """The most memory this process has held so far, in 10⁶ bytes; None where the system does not say."""
    if os.name != "posix":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def as_text(values: Mapping[str, Any], indent: str = "") -> str:
    """Names and values, a line each; a mapping inside is indented below its name."""
    width = max(len(name) for name in values)
    lines = []
    for name, value in values.items():
        words = name.replace("_", " ")
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{words}", as_text(value, indent + "  ")]
        else:
            lines.append(f"{indent}{words:<{width}}  {_text(value)}")
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value) or "none"
    return str(value) or "none"
