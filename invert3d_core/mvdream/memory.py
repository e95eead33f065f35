"""Running out of a device's memory: give back what is only kept, and do the same work in smaller parts."""

import gc
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import Invert3DError, ModelError, first_line
from .graphs import release_all

logger = logging.getLogger("invert3d")

T = TypeVar("T")


def make_room() -> None:
    """Give back all that is kept for speed alone, by whatever model.

    Call it outside of an ``except``, as errors hold on to tensors.
    """
    release_all()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def fitting(attempt: Callable[[], T], step_down: Callable[[str], bool], too_large: Callable[[str], Invert3DError]) -> T:
    """What an attempt gives, made in a smaller way after each time that memory runs out.

    step_down: takes the reason and goes over to the next smaller way; False where there is none. Then the attempt is
    made once more in the room that was made. too_large: the error when that fails, too.
    """
    last = False
    while True:
        try:
            return attempt()
        except torch.OutOfMemoryError as error:
            reason = first_line(error)
        make_room()
        if last:
            raise too_large(reason)
        last = not step_down(reason)


def in_parts(work: Callable[[Tensor], Any], rows: Tensor, most: int, what: str) -> list[Any]:  # rows: (B,...)
    """Results of the work on parts of some rows, at most so many at once; fewer after each time that memory runs out.

    what: the rows in the log's words, such as "views through the VAE".
    Raises ModelError if a single row is too many.
    """
    size = max(1, min(most, len(rows)))

    def halve(reason: str) -> bool:
        nonlocal size
        if size == 1:
            return False
        size = (size + 1) // 2
        logger.warning("Memory ran out (%s): %s now pass %d at a time, with the same result.", reason, what, size)
        return True

    return fitting(
        lambda: [work(part) for part in rows.split(size)],
        halve,
        lambda reason: ModelError(out_of_memory(what, reason, rows.device)),
    )


def out_of_memory(what: str, reason: str, device: torch.device) -> str:
    """A message for work that does not fit in its smallest parts."""
    text = f"There is too little memory on {device} for {what}, even one at a time ({reason})."
    if device.type == "cuda":
        free, total = (number / 1e9 for number in torch.cuda.mem_get_info(device))
        text += f" Of {total:.1f} GB, {free:.1f} are free beside the model."
    return f"{text} What would fit: close what else uses the device, load the model in half precision, or use the CPU."
