"""Jobs in processes of their own that are killed, at a chosen step of a write or at any moment."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from invert3d_core.progress import Progress

CHILDREN = ["tests.unit.inversion.child", "tests.unit.lift3d.child"]


def fresh_processes() -> ForkServerContext:
    """What starts them, with `CHILDREN` imported once for all; skips the test where that cannot be had."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork a fresh process cheaply")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(CHILDREN)
    return context


def run(context: ForkServerContext, job: Callable[..., None], folder: Path, *args, kill_after=None, **named) -> int:
    """Exit code of a process that does ``job(folder, started, *args)``; kill_after: seconds after it sets `started`."""
    started = context.Event()
    process = context.Process(target=job, args=(str(folder), started, *args), kwargs=named)
    process.start()
    if kill_after is not None:
        started.wait(60)
        time.sleep(kill_after)
        process.kill()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def steps_told(started, reached) -> Progress:
    """A progress callback: it sets the event `started` after the first step; `reached`, a shared number, follows."""

    def progress(step, total, *, metrics=None, preview=None):
        if metrics is not None:
            started.set()
            if reached is not None:
                reached.value = step

    return progress


def die_while_saving(die_in: str | None, save: int) -> None:
    """Let this process kill itself in the save-th of its writes, for good.

    die_in: "write" is with half of the bytes on disk, "replace" after the bytes and before they count, "replaced" right
    after; None never.
    """
    count = 0
    fsync, replace = os.fsync, os.replace

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dying_fsync(descriptor: int) -> None:
        nonlocal count
        count += 1
        if die_in == "write" and count == save:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            die()
        fsync(descriptor)

    def dying_replace(source, target) -> None:
        if die_in == "replace" and count == save:
            die()
        replace(source, target)
        if die_in == "replaced" and count == save:
            die()

    os.fsync, os.replace = dying_fsync, dying_replace
