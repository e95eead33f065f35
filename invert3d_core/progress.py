"""The one callback protocol of every long job.

A long job calls ``progress(step, total, metrics=..., preview=...)`` after each step. The callback may raise
`Cancelled` (or any BaseException, as a host does) to stop the job; the job then keeps what it has and lets it pass.
Where a job can end early with a result, as a training can, `StopAndKeep` makes it do so.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor


class Cancelled(Exception):
    """Raised by a progress callback to stop a long job."""


class StopAndKeep(Exception):
    """Raised by a progress callback, after a step, to end a training early and normally with what it has learned."""


class Progress(Protocol):
    """Called as ``progress(step, total, *, metrics=None, preview=None)``.

    step: steps done, 0 ≤ step ≤ total; a job that prepares first (renders, encodes) calls with the step it is about to
    start from, without metrics, so that preparation can be stopped too. metrics: name → number, for a log or a bar.
    preview: a function without arguments that makes a picture (H,W,3) float in [0,1], so that it costs
    nothing when nobody looks.
    """

    def __call__(
        self,
        step: int,
        total: int,
        *,
        metrics: Mapping[str, float] | None = None,
        preview: Callable[[], Tensor] | None = None,
    ) -> None: ...


def no_progress(
    step: int,
    total: int,
    *,
    metrics: Mapping[str, float] | None = None,
    preview: Callable[[], Tensor] | None = None,
) -> None:
    """A callback that does nothing; the default everywhere."""
