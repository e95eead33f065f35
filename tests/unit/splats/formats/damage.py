"""Damage to the bytes of a file, and what a reader may answer: whole splats or a FormatError, within bounded memory.

The promises are those of `tests.fuzz`, which tries many more files.
"""

import tracemalloc
from collections.abc import Iterator
from random import Random

from invert3d_core import splats
from invert3d_core.errors import FormatError
from tests.fuzz import mutations
from tests.fuzz.targets import promised
from tests.fuzz.trials import FREE_BYTES, TIMES


def damaged(data: bytes, count: int, seed: int, headers: int) -> Iterator[bytes]:
    """Copies with some bytes changed, put in, taken out or cut off; half of the damage in the first ``headers``."""
    chance = Random(seed)
    for _ in range(count):
        yield mutations.damaged(chance, data, headers)


def load_or_refuse(data: bytes, format: str) -> splats.GaussianSplats | None:
    """What comes of loading: valid splats, or None for a FormatError; within the memory that a file may take."""
    tracemalloc.start()
    try:
        g = splats.load(data, format=format)
        promised(g)
        return g
    except FormatError as error:
        assert str(error)
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < TIMES * len(data) + FREE_BYTES


def assert_refused_when_cut(data: bytes, format: str) -> None:
    """A file that ends anywhere before its end is refused."""
    assert load_or_refuse(data, format) is not None
    for size in sorted({*range(1, len(data), max(1, len(data) // 60)), len(data) - 1}):
        assert load_or_refuse(data[:size], format) is None, size
