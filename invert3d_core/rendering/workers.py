"""Drawing on all of a CPU's threads: pieces of work side by side, each of them on one thread."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Run(Protocol):
    """Like `map`: results in the order of the items."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterable[Result]: ...


@contextmanager
def workers(device: torch.device) -> Iterator[Run]:
    """A `map` that works on as many items at once as torch has threads; on a GPU, and with one thread, plain `map`.

    Inside, torch divides no operation among threads. Drawing is thousands of operations of 0.1 ms, each of which would
    wait for its slowest thread: with another process on the same two cores 100,000 splats took 8 s with operations
    divided in two and 0.3 s undivided. The number is the whole process's: a thread that uses torch for the first time
    meanwhile keeps to one. Autocast is off, so that drawing has the precision of the splats.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads > 1:
        torch.set_num_threads(1)
    try:
        with torch.autocast(device.type, enabled=False):
            if threads == 1:
                yield map
                return
            with ThreadPoolExecutor(threads, "invert3d-drawing") as pool:
                yield _Pool(pool, 2 * threads)
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


class _Pool:
    def __init__(self, pool: ThreadPoolExecutor, ahead: int) -> None:
        self.pool, self.ahead = pool, ahead

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        inference = torch.is_inference_mode_enabled()  # threads have modes of their own

        def work(item: Item) -> Result:
            with torch.inference_mode(inference), torch.no_grad():
                return function(item)

        pending: deque[Future[Result]] = deque()
        for item in items:
            if len(pending) == self.ahead:  # results wait for their turn: never for all of them
                yield pending.popleft().result()
            pending.append(self.pool.submit(work, item))
        while pending:
            yield pending.popleft().result()
