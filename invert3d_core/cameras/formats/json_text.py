"""JSON files of cameras: reading them safely, and numbers in them."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import CameraError
from .container import Container, read_whole, where
from .lenses import Floats

MAX_JSON_BYTES = 64 << 20  # a hundred thousand poses with room to breathe


def read_json(container: Container, name: str) -> Any:
    """The value of a JSON file. Raises CameraError when it is none, too large or nested without end."""
    try:
        return json.loads(read_whole(container, name, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise CameraError(
            f"{where(container, name)} is no JSON ({error}); expected transforms.json or a training's cameras.json"
        ) from error


def number_of(values: Mapping[str, Any], key: str, file: str) -> float | None:
    """A number of a JSON object, None when it is missing or null. Raises CameraError for anything else."""
    value = values.get(key)
    if value is None:
        return None
    try:
        if isinstance(value, bool | str):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise CameraError(f"{file}: {key} is {_short(value)}, expected a number") from error


def matrix_of(value: Any, shapes: tuple[tuple[int, ...], ...], what: str, file: str) -> Floats:
    """Nested lists of numbers as an array of one of the shapes. Raises CameraError for anything else."""
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = None
    if matrix is None or matrix.shape not in shapes:
        expected = " or ".join("×".join(map(str, shape)) for shape in shapes)
        raise CameraError(f"{file}: {what} is {_short(value)}, expected {expected} numbers")
    return matrix


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
