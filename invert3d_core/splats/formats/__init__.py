"""Splat file formats: one module each, with how it is recognised, read and written and what it cannot hold.

A new format is a module with ``NAME``, ``EXTENSIONS``, ``LIMITS``, ``detect``, ``read`` and, if it is written,
``write``, and a line in `FORMATS`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import FormatError
from ..gaussians import GaussianSplats
from . import compressed_ply, gltf, ksplat, ply, sog, splat, spz
from .source import FOLDER_FILE, Source, open_source

_TEXT = bytes(range(32, 127)) + b"\t\r\n\f"

# How a file starts → what it is, for files that are often taken for splats and are none of `FORMATS`.
_OTHERS = (
    (b"PK\x03\x04", "a zip file that does not start as a .sog: unpack it, and load what is inside"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run 'git lfs pull'"),
    (b"<!DOCTYPE", "a web page, often what a failed download leaves"),
    (b"<html", "a web page, often what a failed download leaves"),
    (b"\x89PNG", "a PNG picture"),
    (b"RIFF", "a picture or sound (RIFF); the pictures of an unbundled .sog are loaded by their meta.json"),
    (b"\x1f\x8b\x08", "a gzip file with something else than an SPZ inside"),
)
# What JSON texts hold that are often taken for splats → what they are.
_OTHER_JSON = (
    (b'"lodLevels"', "the index of a streamed .sog (lod-meta.json): load the meta.json of one of its parts"),
    (b'"bufferViews"', "a text .gltf, which has its data in other files: export it as one .glb"),
    (b'"extensionsUsed"', "a text .gltf, which has its data in other files: export it as one .glb"),
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

    def options(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Those of some options that `write` has."""
        parameters = inspect.signature(self.write).parameters if self.write else {}
        return {name: value for name, value in wanted.items() if name in parameters}


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format(ply.NAME, ply.EXTENSIONS, ply.LIMITS, ply.detect, ply.read, ply.write),
        Format(splat.NAME, splat.EXTENSIONS, splat.LIMITS, splat.detect, splat.read, splat.write),
        Format(spz.NAME, spz.EXTENSIONS, spz.LIMITS, spz.detect, spz.read, spz.write),
        Format(ksplat.NAME, ksplat.EXTENSIONS, ksplat.LIMITS, ksplat.detect, ksplat.read, ksplat.write),
        Format(
            compressed_ply.NAME,
            compressed_ply.EXTENSIONS,
            compressed_ply.LIMITS,
            compressed_ply.detect,
            compressed_ply.read,
            compressed_ply.write,
        ),
        Format(sog.NAME, sog.EXTENSIONS, sog.LIMITS, sog.detect, sog.read, sog.write),
        Format(gltf.NAME, gltf.EXTENSIONS, gltf.LIMITS, gltf.detect, gltf.read, gltf.write),
    )
}


def for_reading(source: Source, name: str) -> Format:
    """The format to read a file in, by its contents alone; the name only breaks the tie of a .splat, see `_is_splat`.

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
    seems = _seems(head)
    if seems is None and (source.suffix in splat.EXTENSIONS or _is_splat(source, head)):
        return FORMATS[splat.NAME]
    maybe = seems is None and source.size % _SPLAT_BYTES == 0
    hint = " If it is a .splat, which has no header, load it with format='splat'." if maybe else ""
    what = f"It is {seems}" if seems else f"It starts with {head[:8]!r}"
    extensions = list(dict.fromkeys(extension for form in FORMATS.values() for extension in form.extensions))
    raise FormatError(
        f"{source.name} is not a supported Gaussian-splat file. {what}; expected a 3DGS {', '.join(extensions[:-1])} "
        f"or {extensions[-1]}.{hint}"
    )


def known(path: Path) -> bool:
    """Whether a file starts as one of `FORMATS` does, whatever its name; a .splat, which has no header, never does.

    Raises FormatError where it cannot be read.
    """
    with open_source(path) as source:
        head = source.head()
    return any(form.detect(head) for form in FORMATS.values())


def _seems(head: bytes) -> str | None:
    """What a file is that is none of the formats, in words; None where nothing says so."""
    seems = next((what for start, what in _OTHERS if head.startswith(start)), None)
    if seems is None and head.lstrip()[:1] == b"{":
        seems = next((what for key, what in _OTHER_JSON if key in head), None)
    if seems is None and not head.translate(None, _TEXT):
        seems = f"a text file that starts with {head[:20].decode('ascii')!r}"
    return seems


_SPLAT_BYTES = 32


def _is_splat(source: Source, head: bytes) -> bool:
    """Whether the contents are those of a .splat, which has no header: whole records, and likely values in the first.

    A record is likely with a centre and scales of ordinary size and a quaternion of about unit length; of random
    records, less than one in ten thousand is.
    """
    count = len(head) // _SPLAT_BYTES
    if source.size % _SPLAT_BYTES or not count:
        return False
    records = np.frombuffer(head, np.uint8, count * _SPLAT_BYTES).reshape(count, _SPLAT_BYTES)
    numbers = np.abs(records[:, :24].copy().view("<f4"))
    with np.errstate(invalid="ignore"):
        ordinary = ((numbers < 1e9) & ((numbers == 0) | (numbers > 1e-12))).all(axis=1)
        ordinary &= (records[:, 15:24:4] < 128).all(axis=1) & numbers[:, 3:].any(axis=1)  # no sign: scales are ≥ 0
    lengths = np.linalg.norm(records[:, 28:].astype(np.float32) - 128, axis=1) / 128
    return bool((ordinary & (np.abs(lengths - 1) < 0.05)).mean() > 0.9)


def for_writing(path: Path, name: str | None) -> Format:
    """The named format, else the one of the path's extension, or a .sog for its meta.json.

    Raises FormatError for one that is not written.
    """
    writable = [form for form in FORMATS.values() if form.write]
    if name is not None:
        form = _named(name)
    elif path.name.lower() == FOLDER_FILE:
        form = FORMATS[sog.NAME]
    else:
        form = max(writable, key=lambda form: _ending(path, form), default=None)
        form = form if form and _ending(path, form) else None
    if form is None or form.write is None:
        what = f"the format {name!r}" if name is not None else f"a file named '{path.name}'"
        extensions = dict.fromkeys(e for form in writable for e in form.extensions)
        raise FormatError(
            f"Splats cannot be written in {what}. Expected {' or '.join(extensions)}, "
            f"or a format: {', '.join(form.name for form in writable)}."
        )
    return form


def _ending(path: Path, form: Format) -> int:
    """How long the longest of a format's extensions is that the file has: ".compressed.ply" goes before ".ply"."""
    name = path.name.lower()
    return max((len(end) for end in form.extensions if name.endswith(end) and name != end), default=0)


def _named(name: str) -> Format:
    if name not in FORMATS:
        raise FormatError(f"There is no splat format {name!r}. Expected one of {', '.join(FORMATS)}.")
    return FORMATS[name]
