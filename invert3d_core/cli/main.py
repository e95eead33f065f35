"""`invert3d`: which command was asked for, and what its end means to the caller.

Exit codes: 0 done; 2 bad input, with one line of reason on stderr; 130 stopped by Ctrl-C.
"""

import contextlib
import importlib.util
import io
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from ..errors import Invert3DError

if TYPE_CHECKING:
    from .command import Command

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
NEEDED = ("tyro", "tqdm")  # dependencies of the wheel, which a folder pack in a ComfyUI does without

DESCRIPTION = "Turn a Gaussian splat into a word of a multi-view diffusion model, and draw views with it."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    arguments: without the program's name; None takes those of the process.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        return _refuse(f"the command line needs packages that are not installed: pip install {names}", FAILED)
    try:
        command = _parse(sys.argv[1:] if arguments is None else list(arguments))
        if isinstance(command, int):
            return command
        if not sys.warnoptions:
            warnings.simplefilter("ignore")  # libraries warn their developers; users see our log
        _log_to_stderr()
        command.run()
        return DONE
    except KeyboardInterrupt as interrupt:
        return _refuse(str(interrupt) or "interrupted", INTERRUPTED)
    except (Invert3DError, OSError) as error:
        return _refuse(_reason(error), BAD_INPUT)
    except ModuleNotFoundError as error:
        return _refuse(f"the package {error.name} is not installed: pip install {error.name}", FAILED)


def _parse(arguments: list[str]) -> "Command | int":
    """The command asked for, or the exit code when that was only help, or a mistake."""
    import tyro

    from .demo import Demo
    from .info import Info
    from .invert import Invert
    from .render import Render
    from .sample import Sample

    subcommand = tyro.conf.subcommand
    commands = (
        Annotated[Demo, subcommand("demo")]
        | Annotated[Info, subcommand("info")]
        | Annotated[Render, subcommand("render")]
        | Annotated[Invert, subcommand("invert")]
        | Annotated[Sample, subcommand("sample")]
    )
    mistakes = io.StringIO()
    try:
        with contextlib.redirect_stderr(mistakes):
            return tyro.cli(
                commands,  # pyright: ignore[reportArgumentType]
                prog="invert3d",
                description=DESCRIPTION,
                args=arguments,
            )
    except SystemExit as end:
        if not end.code:
            return DONE
        return _refuse(_one_line(mistakes.getvalue()), BAD_INPUT)


def _one_line(box: str) -> str:
    """The reason in tyro's framed message, which has a section per mistake and then help."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│╭╮╰╯|+ ")
        if re.fullmatch(r"[─-]{3,}", text):
            sections.append([])
        elif text and not line.startswith(("╭", "╰")):
            sections[-1].append(text)
    told = [" ".join(words) for words in sections if words and not words[0].startswith(("For full", "Argument help"))]
    return f"{'; '.join(told)} (invert3d --help says more)"


def _reason(error: Invert3DError | OSError) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.strerror}: '{error.filename}'"
    return str(error)


def _refuse(reason: str, code: int) -> int:
    print(f"invert3d: {' '.join(reason.split())}", file=sys.stderr)
    return code


class _Log(logging.Handler):
    """What the core logs, a line each, above the progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(f"invert3d: {self.format(record)}", file=sys.stderr)


def _log_to_stderr() -> None:
    logger = logging.getLogger("invert3d")
    if not any(isinstance(handler, _Log) for handler in logger.handlers):
        logger.addHandler(_Log(logging.WARNING))
        logger.propagate = False
