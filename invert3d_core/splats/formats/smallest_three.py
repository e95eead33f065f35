"""Unit quaternions as their three smallest parts: the largest is left out, and its sign made positive.

Used by compressed PLY (10 bits a part, in steps), by SOG (8 bits) and by SPZ from version 3 on (sign and 9 bits).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
_TIE = 4e-6  # of squares: parts that are equal but for rounding

Array = np.ndarray[Any, np.dtype[Any]]


def split(
    quaternions: Array,  # (n,4) unit
) -> tuple[Array, Array]:  # (n,), (n,3)
    """Which part is the largest (the first of equals), and the other three in order, signs as if it were positive."""
    largest = np.abs(quaternions).argmax(axis=1)
    others = np.take_along_axis(quaternions, _OTHERS[largest], axis=1)
    negative = np.take_along_axis(quaternions, largest[:, None], axis=1) < 0
    return largest, np.where(negative, -others, others)


def join(
    largest: Array,  # (n,)
    others: Array,  # (n,3)
) -> Array:  # (n,4) float32
    """The quaternions again, of unit length as far as the other parts leave room for the largest."""
    quaternions = np.empty((len(others), 4), np.float32)
    np.put_along_axis(quaternions, _OTHERS[largest], others.astype(np.float32), axis=1)
    left = np.sqrt(np.maximum(0, 1 - np.einsum("ij,ij->i", others, others)))
    np.put_along_axis(quaternions, largest[:, None].astype(np.intp), left.astype(np.float32)[:, None], axis=1)
    return quaternions


def settle(
    codes: Array,  # (n,3) integers
    middle: float,
    decode: Callable[[Array], Array],
) -> None:
    """Lower codes, in place, where rounding made one of the parts larger than the one that is left out.

    middle: the code of 0. decode: from codes to values. Without this, writing again what was read would leave out
    another part, and change the others.
    """
    todo = np.arange(len(codes))
    while len(todo):
        squares = np.square(decode(codes[todo]))
        over = squares.max(axis=1) > 1 - squares.sum(axis=1) + _TIE
        todo, column = todo[over], squares[over].argmax(axis=1)
        codes[todo, column] -= np.sign(codes[todo, column] - middle).astype(codes.dtype)
