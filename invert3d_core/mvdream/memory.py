"""Running out of a device's memory: give back what is only kept, and do the same work in smaller parts."""

import gc
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from .graphs import release_all

logger = logging.getLogger("invert3d")


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def make_room() -> None:
    """Give back all that is kept for speed alone, by whatever model.

    Call it outside of an ``except``, as errors hold on to tensors.
    """
    release_all()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_parts(work: Callable[[Tensor], Any], rows: Tensor, most: int, what: str) -> list[Any]:  # rows: (B,...)
    """Results of the work on parts of some rows, at most so many at once; fewer after each time that memory runs out.

    what: the rows in the log's words, such as "views through the VAE".
    Raises ModelError if a single row is too many.
    """
    size, roomy = most, False
    while True:
        try:
            return [work(part) for part in rows.split(size)]
        except torch.OutOfMemoryError as error:
            reason = first_line(error)
        make_room()
        if min(size, len(rows)) == 1:
            if roomy:
                raise ModelError(out_of_memory(what, reason, rows.device))
            roomy = True
            continue
        size = (min(size, len(rows)) + 1) // 2
        logger.warning("Memory ran out (%s): %s now pass %d at a time, with the same result.", reason, what, size)


def out_of_memory(what: str, reason: str, device: torch.device) -> str:
    """A message for work that does not fit in its smallest parts."""
    text = f"There is too little memory on {device} for {what}, even one at a time ({reason})."
    if device.type == "cuda":
        free, total = (number / 1e9 for number in torch.cuda.mem_get_info(device))
        text += f" Of {total:.1f} GB, {free:.1f} are free beside the model."
    return f"{text} What would fit: close what else uses the device, load the model in half precision, or use the CPU."
