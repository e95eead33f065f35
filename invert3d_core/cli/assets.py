"""The splat that a command is given: a file, or a built-in sample by its name."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .command import InputError

if TYPE_CHECKING:
    from ..cameras import Orientation
    from ..splats import GaussianSplats

Axis = Literal["auto", "+x", "-x", "+y", "-y", "+z", "-z"]


@dataclass(frozen=True)
class Asset:
    """A splat, the file it came from, that file's format, the name of the built-in sample it is, if it is one, and what
    of the file was left out or taken otherwise.
    """

    splat: "GaussianSplats"
    path: Path
    format: str
    sample: str | None
    remarks: list[str]


def find(file: Path) -> Path:
    """The file itself, or that of the built-in sample of this name. Raises InputError when there is neither."""
    from ..toy import samples

    if file.is_file():
        return file
    if str(file) in samples.names():
        return samples.path(str(file))
    if file.is_dir():
        raise InputError(f"'{file}' is a folder; expected a splat file, or a sample: {', '.join(samples.names())}.")
    raise InputError(f"There is no file '{file}'. Expected a splat file, or a sample: {', '.join(samples.names())}.")


def load(file: Path) -> Asset:
    """The asset of a file or sample name. Raises InputError when there is none, and FormatError as `splats.load`."""
    from .. import splats
    from ..toy import samples

    path = find(file)
    splat, remarks, form = splats.read(path)
    return Asset(splat, path, form, samples.name_of(path), remarks)


def orientation(splat: "GaussianSplats", up: Axis = "auto", front: Axis = "auto") -> "Orientation":
    """How a splat stands: what was asked for, else what its file states, else the default of `Orientation`."""
    from ..cameras import Orientation

    return Orientation.stated_or_usual(splat.comment).with_axes(up, front)
