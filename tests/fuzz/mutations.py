"""Damage to bytes, to words of text and to JSON: what a broken disk, a broken writer and an attacker leave in files."""

import copy
import json
import re
import struct
from random import Random
from typing import Any

ODD_BYTES = (0, 1, 2, 3, 4, 10, 31, 32, 45, 48, 57, 127, 128, 254, 255)
WHOLE = (0, 1, 2, 3, 4, 5, 16, 64, 255, 256, 257, 4096, 65535, 65536, 10**5, 10**6, 10**9)
EDGES = (2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -1, -2, -(2**31), -(2**63))
REALS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-38, 1e-20, 100.0, 1e4, 1e20, 3.4e38, -3.4e38, 1e39, 1e308)
STRANGE = (float("nan"), float("inf"), float("-inf"))
# Words that numbers, names and keys may become in a text.
WORDS = (
    *("", "nan", "inf", "-inf", "1e400", "-1e400", "1e-400", "1_0", "0x10", "+1", "--1", ".", "1.", "\u0661", "\xff"),
    *("true", "null", "x", "list", "property", "element", "comment", "end_header", "\0", "9" * 400),
)


def number(chance: Random) -> int | float:
    """A number that readers may get wrong."""
    kind = chance.random()
    if kind < 0.4:
        return chance.choice(WHOLE)
    if kind < 0.65:
        return chance.choice(EDGES)
    return chance.choice(REALS if kind < 0.9 else STRANGE)


def near(chance: Random, value: int | float) -> int | float:
    """A number beside another one."""
    by = chance.choice((1, 1, 1, 2, 3, 4, 8, 255, 256))
    change = chance.randrange(5)
    if change == 0:
        return -value
    if change == 1:
        return value * 2 if abs(value) < 1e300 else value
    if change == 2:
        return value // 2 if value == value and abs(value) < 1e300 else value
    return value + by if change == 3 else value - by


def damaged(chance: Random, data: bytes, headers: int, most: int = 4) -> bytes:
    """A copy with up to ``most`` edits: bits, bytes and numbers changed, pieces put in, taken out, moved or cut off.

    headers: half of the edits fall into this many first bytes.
    """
    changed = bytearray(data)
    for _ in range(chance.randint(1, most)):
        _edit(chance, changed, headers)
    end = chance.random()
    if end < 0.1:
        del changed[chance.randrange(len(changed) + 1) :]
    elif end < 0.13:
        changed += chance.randbytes(chance.choice((1, 7, 32, 300)))
    return bytes(changed)


def _edit(chance: Random, data: bytearray, headers: int) -> None:
    def place() -> int:
        return chance.randrange(max(1, min(headers, len(data)) if chance.random() < 0.5 else len(data)))

    at, kind = place(), chance.randrange(12)
    if not data:
        data += chance.randbytes(8)
    elif kind == 0:
        data[at] = chance.choice(ODD_BYTES)
    elif kind == 1:
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 2:
        data[at] = chance.randrange(256)
    elif kind <= 5:
        _put_number(chance, data, at)
    elif kind == 6:
        data[at:at] = chance.randbytes(chance.randint(1, 9))
    elif kind == 7:
        del data[at : at + chance.randint(1, 40)]
    elif kind == 8:
        data[at:at] = data[place() :][: chance.randint(1, 40)]
    elif kind == 9:
        piece = data[place() :][: chance.randint(1, 40)]
        data[at : at + len(piece)] = piece
    elif kind == 10:
        length = min(len(data) - at, chance.randint(1, 64))
        data[at : at + length] = bytes([chance.choice((0, 255))]) * length
    else:
        data[at : at + 1] = chance.choice((b"0", b"9", b"-", b".", b"\n", b" ", b"\r\n", b"e", b'"', b"{", b"[", b"/"))


def _put_number(chance: Random, data: bytearray, at: int) -> None:
    """Overwrite a number, at a place where numbers of its width often stand, by another one."""
    code = chance.choice("bHHIIIQffde")
    width = struct.calcsize("<" + code)
    at -= at % min(width, chance.choice((1, 2, 4)))
    if at + width > len(data):
        return
    form = ("<" if chance.random() < 0.9 else ">") + code
    (value,) = struct.unpack_from(form, data, at)
    value = near(chance, value) if chance.random() < 0.4 else number(chance)
    if code in "fde":
        try:
            struct.pack_into(form, data, at, value)
        except (OverflowError, struct.error):
            struct.pack_into(form, data, at, float("inf"))
    else:
        whole = int(value) if value == value and abs(value) < 1e300 else 2**64 - 1
        data[at : at + width] = (whole % (1 << 8 * width)).to_bytes(width, "little" if form[0] == "<" else "big")


def damaged_text(chance: Random, text: str, most: int = 3) -> str:
    """A copy with up to ``most`` words or lines changed, repeated, exchanged or taken out."""
    for _ in range(chance.randint(1, most)):
        by_lines = chance.random() < 0.35
        parts = text.splitlines(keepends=True) if by_lines else re.findall(r"\s+|[^\s]+", text)
        if not parts:
            return chance.choice(WORDS)
        at, other, kind = chance.randrange(len(parts)), chance.randrange(len(parts)), chance.randrange(6)
        if kind == 0:
            del parts[at]
        elif kind == 1:
            parts.insert(at, parts[other])
        elif kind == 2:
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 3:
            parts[at] = parts[other]
        elif by_lines:
            parts.insert(at, "".join(parts[other : other + chance.randint(1, 4)]))
        else:
            parts[at] = _other_word(chance, parts[at])
        text = "".join(parts)
    return text


def _other_word(chance: Random, word: str) -> str:
    try:
        value = int(word) if re.fullmatch(r"-?\d{1,18}", word) else float(word)
    except ValueError:
        return chance.choice(WORDS)
    return str(near(chance, value)) if chance.random() < 0.4 else str(chance.choice((number(chance), *WORDS[:12])))


def damaged_json(chance: Random, value: Any, most: int = 3) -> bytes:
    """JSON text of a value with up to ``most`` members changed, renamed, repeated, nested or taken out."""
    value = copy.deepcopy(value)
    for _ in range(chance.randint(1, most)):
        holder, key = _member(chance, value)
        if holder is None:
            return json.dumps(_other_value(chance, value)).encode()
        kind = chance.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[chance.choice((f"{key}_", key.upper(), "count", "extensions", ""))] = holder.pop(key)
        elif kind == 1:
            holder.insert(chance.randrange(len(holder) + 1), holder[key])
        elif kind == 2:
            holder[key] = [holder[key]]
        elif kind == 3:
            other, place = _member(chance, value)
            if other is not None:
                holder[key] = copy.deepcopy(other[place])
        else:
            holder[key] = _other_value(chance, holder[key])
    text = json.dumps(value, separators=chance.choice(((",", ":"), (", ", ": "))))
    if chance.random() < 0.02:
        text = text.replace(":", ":" + "[" * 2000, 1)
    return text.encode()


def _member(chance: Random, value: Any) -> tuple[Any, Any]:
    """A list or object somewhere in a value, and a key of it; (None, None) where there is none."""
    found: tuple[Any, Any] = (None, None)
    while isinstance(value, (dict, list)) and value:
        found = value, chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
        value = found[0][found[1]]
        if chance.random() < 0.3:
            break
    return found


def _other_value(chance: Random, value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and chance.random() < 0.75:
        return near(chance, value) if chance.random() < 0.4 else number(chance)
    if isinstance(value, list) and chance.random() < 0.5:
        return value[:-1] if chance.random() < 0.5 else value * 2
    if isinstance(value, str) and chance.random() < 0.3:
        return value + chance.choice(("0", "/", "\0", "\ud800", "../", ".webp"))
    return chance.choice((None, True, False, "", "1", [], {}, [[]], number(chance), "\0", "a" * 300))
