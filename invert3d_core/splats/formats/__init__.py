"""Splat file formats: one module each, with how it is recognised, read and written and what it cannot hold.

A new format is a module with ``NAME``, ``EXTENSIONS``, ``LIMITS``, ``detect``, ``read`` and, if it is written,
``write``, and a line in `FORMATS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...errors import FormatError
from ..gaussians import GaussianSplats
from . import ply, splat, spz
from .source import Source

_TEXT = bytes(range(32, 127)) + b"\t\r\n\f"

# How a file starts → what it is, for files that are often taken for splats.
_OTHERS = (
    (b"PK\x03\x04", "a zip file (a .sog bundle or an archive)"),
    (b"glTF", "a binary glTF"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run 'git lfs pull'"),
    (b"<!DOCTYPE", "a web page, often what a failed download leaves"),
    (b"<html", "a web page, often what a failed download leaves"),
    (b"\x89PNG", "a PNG picture"),
    (b"\x1f\x8b\x08", "a gzip file with something else than an SPZ inside"),
)


@dataclass(frozen=True)
class Format:
    """A file format of splats.

    extensions: lower case, with the dot. limits: what it holds, in words for a person.
    detect: whether a file's first `source.HEAD_BYTES` bytes are this format's. write: None where it is only read;
    ``write(splats, file, **options)`` returns what was lost, in words.
    """

    name: str
    extensions: tuple[str, ...]
    limits: str
    detect: Callable[[bytes], bool]
    read: Callable[[Source], GaussianSplats]
    write: Callable[..., list[str]] | None


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format(ply.NAME, ply.EXTENSIONS, ply.LIMITS, ply.detect, ply.read, ply.write),
        Format(splat.NAME, splat.EXTENSIONS, splat.LIMITS, splat.detect, splat.read, splat.write),
        Format(spz.NAME, spz.EXTENSIONS, spz.LIMITS, spz.detect, spz.read, None),
    )
}


def for_reading(source: Source, name: str) -> Format:
    """The format to read a file in, by its contents; by its extension only where nothing inside can say (.splat).

    name: "auto", or the name of a format, which the contents must not contradict.
    Raises FormatError for an unknown name, and where the file is of another format or of none, saying what it seems.
    """
    head = source.head()
    found = next((form for form in FORMATS.values() if form.detect(head)), None)
    if name != "auto":
        form = _named(name)
        if found not in (form, None):
            raise FormatError(f"{source.name} is a {found.name} file, not {name}. Load it with format='auto'.")
        return form
    if found is not None:
        return found
    seems = next((what for start, what in _OTHERS if head.startswith(start)), None)
    if seems is None and not head.translate(None, _TEXT):
        seems = f"a text file that starts with {head[:20].decode('ascii')!r}"
    if source.suffix in splat.EXTENSIONS and seems is None:
        return FORMATS[splat.NAME]
    hint = "" if source.suffix else " Bytes of a .splat file, which has no header, need format='splat'."
    what = f"It is {seems}" if seems else f"It starts with {head[:8]!r}"
    raise FormatError(
        f"{source.name} is not a supported Gaussian-splat file. {what}; expected a 3DGS .ply, .spz or .splat.{hint}"
    )


def writer(path: Path, name: str | None) -> Callable[..., list[str]]:
    """The ``write`` of the named format, else of the one of the path's extension. Raises FormatError where none is."""
    writable = [form for form in FORMATS.values() if form.write]
    if name is not None:
        form = _named(name)
    else:
        form = next((form for form in FORMATS.values() if path.suffix.lower() in form.extensions), None)
    if form is None or form.write is None:
        what = f"the format {name!r}" if name is not None else f"a file named '{path.name}'"
        raise FormatError(
            f"Splats cannot be written in {what}. Expected {' or '.join(e for f in writable for e in f.extensions)}, "
            f"or a format: {', '.join(form.name for form in writable)}."
        )
    return form.write


def _named(name: str) -> Format:
    if name not in FORMATS:
        raise FormatError(f"There is no splat format {name!r}. Expected one of {', '.join(FORMATS)}.")
    return FORMATS[name]
