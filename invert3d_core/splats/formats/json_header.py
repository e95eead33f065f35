"""JSON headers of splat files: parsed within bounds, and taken apart by type.

Format page: RFC 8259, without its leave to accept more (NaN, Infinity).
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import FormatError
from .source import Source

MAX_JSON_BYTES = 1 << 20
"""Longer ones are refused: parsed, three bytes of JSON may take a hundred of memory."""

_LARGEST = float(np.finfo(np.float32).max)


class Fields:
    """A JSON object of a file, whose members are taken by type.

    where: how the object is called in messages, such as "the glTF's accessor 3". Every method raises FormatError,
    naming file, object and member, where the member lacks or is of another kind; a default stands for a missing one.
    """

    def __init__(self, source: Source, where: str, values: Any) -> None:
        self.source = source
        self.where = where
        if not isinstance(values, dict):
            raise FormatError(f"{source.name}: {where} is {_short(values)}; expected a JSON object. {_REMEDY}")
        self.values: dict[str, Any] = values

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def fields(self, name: str) -> "Fields":
        """The object of this name."""
        return Fields(self.source, f"'{name}' of {self.where}", self._get(name))

    def items(self, name: str, what: str) -> "Items":
        """The objects in the list of this name, none where it lacks; called what 0, what 1 and so on."""
        return Items(self.source, what, self.values_of(name))

    def values_of(self, name: str) -> list[Any]:
        """The list of this name, empty where it lacks."""
        value = self.values.get(name, [])
        if not isinstance(value, list):
            raise self.wrong(name, "a list")
        return value

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """The whole number of this name, within low to high."""
        value = self._get(name, default)
        if not _is_index(value) or not low <= value <= high:
            raise self.wrong(name, f"a whole number from {low} to {high}")
        return value

    def indices(self, name: str, length: int) -> list[int]:
        """The whole numbers in the list of this name, each below a length; empty where it lacks."""
        values = self.values_of(name)
        if not all(_is_index(value) and 0 <= value < length for value in values):
            raise self.wrong(name, f"whole numbers from 0 to {length - 1}")
        return values

    def numbers(self, name: str, count: int, default: list[float] | None = None) -> list[float]:
        """The ``count`` numbers in the list of this name, each within float32's range."""
        values = self._get(name, default)
        if not isinstance(values, list) or len(values) != count or not all(map(_is_number, values)):
            raise self.wrong(name, f"{count} numbers")
        return values

    def number(self, name: str) -> float:
        """The number of this name, within float32's range."""
        value = self._get(name)
        if not _is_number(value):
            raise self.wrong(name, "a number")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """The text of this name."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "text")
        return value

    def wrong(self, name: str, expected: str) -> FormatError:
        """The error of a member that lacks or is something else."""
        found = f"is {_short(self.values[name])}" if name in self.values else "is missing"
        return FormatError(f"{self.source.name}: '{name}' of {self.where} {found}; expected {expected}. {_REMEDY}")

    def _get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)


class Items(Sequence[Fields]):
    """A list of JSON objects, each checked when it is asked for."""

    def __init__(self, source: Source, what: str, values: list[Any]) -> None:
        self._source = source
        self._what = what
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: int) -> Fields:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Fields(self._source, f"{self._what} {index}", self._values[index])


_REMEDY = "The file is damaged or its writer is wrong: export it again."


def parse(source: Source, data: bytes, where: str) -> Fields:
    """The object that JSON text holds. Raises FormatError for anything else, and for more than `MAX_JSON_BYTES`."""
    check_length(source, len(data), where)
    try:
        return Fields(source, where, json.loads(data.decode("utf-8"), parse_constant=_refuse_constant))
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise FormatError(f"{source.name}: {where} is no valid JSON ({reason}). Copy or download it again.") from error


def check_length(source: Source, length: int, where: str) -> None:
    """Raise FormatError for JSON that is longer than `MAX_JSON_BYTES`."""
    if length > MAX_JSON_BYTES:
        raise FormatError(
            f"{source.name}: {where} has {length} bytes of JSON; expected at most {MAX_JSON_BYTES}. Export the splats "
            "alone."
        )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"{value:.6g}" if abs(value) < _LARGEST else "a number beyond float32"
