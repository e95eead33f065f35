"""`invert3d`: which command was asked for, and what its end means to the caller.

Exit codes: 0 done; 2 bad input, with one line of reason on stderr; 130 stopped by Ctrl-C; 141 nobody reads the output.
"""

import contextlib
import importlib.util
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, get_args

from .. import __version__
from ..errors import Invert3DError

if TYPE_CHECKING:
    from .command import Command
    from .model import Model
    from .token import Token

DONE, FAILED, BAD_INPUT, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141
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
        given = sys.argv[1:] if arguments is None else list(arguments)
        code = _run(given)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as interrupt:
        return _refuse(str(interrupt) or "interrupted", INTERRUPTED)
    except BrokenPipeError:  # who reads our output has seen enough
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # Python flushes them at its end
        return PIPE_CLOSED
    except (Invert3DError, OSError) as error:
        return _refuse(_reason(error), BAD_INPUT)
    except ModuleNotFoundError as error:
        package = {"PIL": "Pillow"}.get(str(error.name), error.name)
        return _refuse(f"the package {package} is not installed: pip install {package}", FAILED)


def _run(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        print(f"invert3d {__version__}")
        return DONE
    command = _parse(arguments)
    if isinstance(command, int):
        return command
    with _log_on_stderr(), warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")  # libraries warn their developers; users see our log
        command.run()
    return DONE


def _parse(arguments: list[str]) -> "Command | Model | Token | int":
    """The command asked for, or the exit code when that was only help, or a mistake."""
    import tyro

    from .convert import Convert
    from .demo import Demo
    from .info import Info
    from .invert import Invert
    from .lift import Lift
    from .model import Model
    from .render import Render
    from .sample import Sample
    from .token import Token

    subcommand = tyro.conf.subcommand
    commands = (
        Annotated[Demo, subcommand("demo")]
        | Annotated[Info, subcommand("info")]
        | Annotated[Convert, subcommand("convert")]
        | Annotated[Render, subcommand("render")]
        | Annotated[Invert, subcommand("invert")]
        | Annotated[Lift, subcommand("lift")]
        | Annotated[Sample, subcommand("sample")]
        | Annotated[Model, subcommand("model")]
        | Annotated[Token, subcommand("token")]
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
        known = [part.__metadata__[0].name for part in get_args(commands)]
        program = " ".join(["invert3d", *(name for name in arguments[:1] if name in known)])
        return _refuse(f"{_one_line(mistakes.getvalue())} ({program} --help says more)", BAD_INPUT)


def _one_line(box: str) -> str:
    """The reason in tyro's framed message: a title, a section per mistake, then where to find help.

    What it takes for likely options is left out: of all commands, with their texts.
    """
    sections: list[list[str]] = [[]]
    for line in box.splitlines()[1:]:
        text = line.strip("│╰╯ ")
        if re.fullmatch("[─-]{3,}", text):
            sections.append([])
        elif text:
            sections[-1].append(text)
    beside = "For full", "Argument help", "Perhaps you meant", "Arguments similar to"
    told = [" ".join(words) for words in sections if words and not words[0].startswith(beside)]
    # An option that may be left out is "None or a number" to tyro, which then says why the text is not None.
    return re.sub(r"no type matching .* Got errors: .*- <class '\w+'>: ", "", "; ".join(told))


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


@contextlib.contextmanager
def _log_on_stderr() -> Iterator[None]:
    logger, handler = logging.getLogger("invert3d"), _Log(logging.WARNING)
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
