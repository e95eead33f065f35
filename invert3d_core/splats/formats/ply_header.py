"""PLY 1.0: the header's grammar, and where its elements lie in the file.

Format page: "The PLY Polygon File Format" (Greg Turk, Stanford, 1994).
"""

import re
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import FormatError
from .source import Source

MAX_HEADER_BYTES = 1 << 20
_MAX_PADDING = 1 << 12

REST_COUNTS = {0: 0, 9: 1, 24: 2, 45: 3, 72: 4}
"""The number of f_rest columns → SH degree."""

_ENCODINGS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}
_TYPES = {  # name in a header → code that numpy and struct share
    **dict.fromkeys(("char", "int8"), "b"),
    **dict.fromkeys(("uchar", "uint8"), "B"),
    **dict.fromkeys(("short", "int16"), "h"),
    **dict.fromkeys(("ushort", "uint16"), "H"),
    **dict.fromkeys(("int", "int32"), "i"),
    **dict.fromkeys(("uint", "uint32"), "I"),
    **dict.fromkeys(("float", "float32"), "f"),
    **dict.fromkeys(("double", "float64"), "d"),
}


@dataclass(frozen=True)
class Property:
    """One column of an element; codes are those of struct ("f", "B"). length_code: of a list's length, else None."""

    name: str
    code: str
    length_code: str | None = None


@dataclass
class Element:
    """``count`` rows with these columns."""

    name: str
    count: int
    properties: list[Property] = field(default_factory=list)

    @property
    def has_lists(self) -> bool:
        """Whether rows differ in length."""
        return any(p.length_code is not None for p in self.properties)

    @property
    def least_row_bytes(self) -> int:
        """Bytes of a row of a binary file; with lists, of one whose lists are empty."""
        return sum(struct.calcsize("=" + (p.length_code or p.code)) for p in self.properties)

    def row_type(self, order: str) -> np.dtype[Any]:
        """The numpy type of a binary row without lists, its fields in the order of the properties ("f0", "f1", ...)."""
        return np.dtype([(f"f{i}", order + p.code) for i, p in enumerate(self.properties)])


@dataclass
class Header:
    """A parsed header. order: "<" or ">" for binary, "" for ASCII. size: bytes up to the first row."""

    order: str
    elements: list[Element]
    comments: list[str]
    size: int

    @property
    def is_ascii(self) -> bool:
        """Whether rows are lines of text."""
        return not self.order


def read_header(source: Source) -> Header:
    """Parse the header and leave the source at the first row.

    Raises FormatError where the file is no PLY, the header never ends, or a line breaks the grammar.
    """
    stream = source.stream
    stream.seek(0)
    if stream.readline(16).rstrip(b"\r\n") != b"ply":
        raise FormatError(
            f"{source.name} does not start with the line 'ply', so it is no PLY file. Check what it really is."
        )
    header = Header("", [], [], 0)
    encoding, number = None, 1
    while True:
        raw = stream.readline(MAX_HEADER_BYTES)
        number += 1
        if not raw.endswith(b"\n") or stream.tell() > MAX_HEADER_BYTES:
            raise FormatError(
                f"{source.name}: the PLY header has no line 'end_header' in its first {stream.tell()} bytes. The file "
                "is cut short or not a PLY. Copy or download it again."
            )
        line = raw.rstrip(b"\r\n").decode("utf-8", errors="replace")
        words = line.split()
        keyword = words[0] if words else ""
        if keyword == "end_header":
            break
        if keyword == "format" and len(words) == 3 and words[1] in _ENCODINGS:
            encoding = words[1]
        elif keyword in ("comment", "obj_info"):
            header.comments.append(line.lstrip()[len(keyword) + 1 :])
        elif keyword == "element" and len(words) == 3 and re.fullmatch(r"[0-9]{1,18}", words[2]):
            header.elements.append(Element(words[1], int(words[2])))
        elif keyword == "property" and header.elements and (column := _property(words)):
            header.elements[-1].properties.append(column)
        elif words:
            raise FormatError(
                f"{source.name}: line {number} of the PLY header is not understood: {line[:80]!r}. Expected "
                "'format', 'comment', 'element NAME COUNT', 'property TYPE NAME' or 'end_header'."
            )
    if encoding is None:
        raise FormatError(
            f"{source.name}: the PLY header has no 'format' line. Expected one of {', '.join(_ENCODINGS)}."
        )
    header.order = _ENCODINGS[encoding]
    header.size = stream.tell()
    return header


def header_bytes(
    elements: list[tuple[str, int, list[tuple[str, str]]]],  # name, rows, (type, name) of each column
    comment: str,
) -> tuple[bytes, list[str]]:
    """The header of a binary little-endian file, and what was lost of the comment, in words.

    Raises FormatError for a comment that no header can hold.
    """
    lines = comment.split("\n") if comment else []
    # As ASCII without control characters, which other readers may not expect.
    plain = ["".join(c if " " <= c <= "~" or c == "\t" else ascii(c)[1:-1] for c in line) for line in lines]
    header = ["ply", "format binary_little_endian 1.0", *(f"comment {line}" for line in plain)]
    for name, count, columns in elements:
        header.append(f"element {name} {count}")
        header += [f"property {kind} {column}" for kind, column in columns]
    data = "\n".join([*header, "end_header\n"]).encode("ascii")
    if len(data) > MAX_HEADER_BYTES:
        raise FormatError(
            f"The comment of the splats has {len(comment)} characters; a PLY header may have {MAX_HEADER_BYTES} bytes. "
            "Shorten the comment."
        )
    return data, [] if plain == lines else ["characters of the comment outside ASCII, written as escapes"]


def skip_elements(source: Source, header: Header, elements: list[Element]) -> None:
    """Move the source past the rows of these elements, which start where it stands.

    Raises FormatError where the file ends before they do.
    """
    for element in elements:
        check_room(source, header, element)
        if header.is_ascii:
            for _ in range(element.count):
                next_line(source)
        elif element.has_lists:
            _skip_list_rows(source, header.order, element)
        else:
            source.stream.seek(element.count * element.least_row_bytes, 1)


def check_room(source: Source, header: Header, element: Element) -> None:
    """Make sure that the rest of the file can hold an element, before anything is allocated for it.

    Raises FormatError where it cannot.
    """
    # In text a value is a digit and a separator at least; the last line's end may be missing.
    row = 2 * max(1, len(element.properties)) if header.is_ascii else element.least_row_bytes
    rest = source.size - source.stream.tell()
    needed = element.count * row - (1 if header.is_ascii else 0)
    if needed > rest:
        raise FormatError(
            f"{source.name}: the PLY header claims {element.count} rows of '{element.name}', at least {needed} bytes, "
            f"but only {max(0, rest)} are left in the file. It is cut short or its header is wrong: copy or download "
            "it again."
        )


def expect_end(source: Source) -> None:
    """Make sure that nothing but blanks and zeros follows. Raises FormatError where something does."""
    rest = source.size - source.stream.tell()
    if rest > _MAX_PADDING or source.stream.read().strip(b"\0 \t\r\n"):
        raise FormatError(
            f"{source.name} has {rest} bytes more than its PLY header describes, so its rows may be shifted (a "
            "text-mode transfer does that). Copy or download it again, in binary mode."
        )


def next_line(source: Source, limit: int = -1) -> bytes:
    """The next line of text that is not blank, cut after ``limit`` bytes. Raises FormatError at the end of the file."""
    while True:
        line = source.stream.readline(limit)
        if not line:
            raise source.cut_short()
        if line.strip():
            return line


def _property(words: list[str]) -> Property | None:
    if len(words) == 3 and words[1] in _TYPES:
        return Property(words[2], _TYPES[words[1]])
    if len(words) == 5 and words[1] == "list" and words[2] in _TYPES and words[3] in _TYPES:
        return Property(words[4], _TYPES[words[3]], _TYPES[words[2]])
    return None


def _skip_list_rows(source: Source, order: str, element: Element) -> None:
    steps = [
        (struct.calcsize("=" + p.code), struct.Struct(order + p.length_code) if p.length_code else None)
        for p in element.properties
    ]
    stream = source.stream
    for _ in range(element.count):
        for width, length in steps:
            items = 1
            if length is not None:
                (items,) = length.unpack(source.read(length.size))
                if items != items // 1 or items < 0 or items * width > source.size - stream.tell():
                    raise FormatError(
                        f"{source.name}: a list in the PLY element '{element.name}' claims {items} values, more than "
                        "the file holds. The file is damaged: copy or download it again."
                    )
            stream.seek(int(items) * width, 1)
    if stream.tell() > source.size:
        raise source.cut_short()
