"""What a host knows of a file's making, kept in the comment of splats: lines ``name: {JSON}`` beside the other ones.

A workflow is such a thing. What a comment states of up and front stays true whatever the JSON holds.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

_LINE = re.compile(r"([A-Za-z_]\w*): ([\[{].*[\]}])", re.ASCII)
_STATEMENT = re.compile(r"(\b(?:up|front)\s*)([=:])", re.IGNORECASE)  # as Orientation.from_comment would read it


def with_metadata(
    comment: str,
    metadata: Mapping[str, Any],
    max_bytes: int,
) -> tuple[str, list[str]]:
    """The comment with a line for each value, in place of what an earlier call added; and the names that did not fit.

    metadata: names, letters and digits, to JSON objects and lists. max_bytes: the comment stays below this; values are
    taken in order, and one that does not fit is left out whole.
    Raises ValueError for another name, and for a value that is no JSON object or list.
    """
    lines, left_out = [line for line in (without_metadata(comment),) if line], []
    room = max_bytes - len("\n".join(lines).encode())
    for name, value in metadata.items():
        # In JSON an equals sign or a colon before which a letter stands is inside a text, where it may be escaped.
        text = json.dumps(value, separators=(",", ":"))
        line = f"{name}: {_STATEMENT.sub(lambda found: f'{found[1]}{_escaped(found[2])}', text)}"
        if not _LINE.fullmatch(line):
            raise ValueError(f"metadata: {name!r} is no name, or its value no JSON object or list: {text[:40]}")
        if len(line) + 1 > room:
            left_out.append(name)
            continue
        room -= len(line) + 1
        lines.append(line)
    return "\n".join(lines), left_out


def without_metadata(comment: str) -> str:
    """The comment without the lines that `with_metadata` added."""
    return "\n".join(line for line in comment.split("\n") if _parsed(line) is None)


def metadata_of(comment: str) -> dict[str, Any]:
    """The values that `with_metadata` put into a comment, by name."""
    return dict(filter(None, map(_parsed, comment.split("\n"))))


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}"


def _parsed(line: str) -> tuple[str, Any] | None:
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    try:
        return found[1], json.loads(found[2])
    except (ValueError, RecursionError):
        return None
