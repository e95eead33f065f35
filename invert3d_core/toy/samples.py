"""The built-in sample assets: small splats of combinations that the toy model was never trained on, and their words.

The files are made by ``tools/make_samples.py``. The first sample is the one of `invert3d demo`.
"""

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import FormatError

FOLDER = Path(__file__).parent / "samples"
TABLE = FOLDER / "samples.json"


@dataclass(frozen=True)
class Captions:
    """What words of the toy's vocabulary say about a sample.

    short: main colour and family, "a red chair". full: every named part and its colour as well.
    """

    short: str
    full: str

    @property
    def initial_words(self) -> str:
        """Words to start a token from: the full caption without its article."""
        return self.full.split(" ", 1)[1]


@cache
def _table() -> dict[str, dict[str, str]]:
    return json.loads(TABLE.read_text(encoding="utf-8"))


def names() -> list[str]:
    """The samples' names; the first is the one that `invert3d demo` takes."""
    return list(_table())


def path(name: str) -> Path:
    """The sample's .ply: degree 0, up +y, front +z as its comment says, in a sphere of radius 1 around 0.

    Raises FormatError for an unknown name, listing the known ones.
    """
    return FOLDER / _entry(name)["file"]


def captions(name: str) -> Captions:
    """The sample's captions. Raises FormatError for an unknown name, listing the known ones."""
    entry = _entry(name)
    return Captions(entry["short"], entry["full"])


def name_of(file: str | os.PathLike[str]) -> str | None:
    """The name of the sample that a path leads to; None when it leads elsewhere."""
    where = Path(file).resolve()
    return next((name for name in names() if path(name).resolve() == where), None)


def _entry(name: str) -> dict[str, str]:
    if name not in _table():
        raise FormatError(f"There is no built-in sample {name!r}. Expected one of {', '.join(names())}.")
    return _table()[name]
