"""Lossless WebP pictures as tables of bytes, by Pillow; sizes are known before a picture is decoded.

Format page: RFC 9649 (WebP). Pixels are numbers here: no premultiplication, and colour is kept where alpha is 0.
"""

import io
import struct
from typing import Any

import numpy as np

from ...errors import FormatError
from .source import Source

MAX_SIDE = 16383

_ANIMATED = 2
_EFFORT = 3  # 0 to 6: small gains from here on, at twice the time each

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def size_of(source: Source, name: str, data: bytes) -> tuple[int, int]:
    """Width and height of a lossless WebP, from its header. Raises FormatError for any other file."""
    kind = data[12:16]
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        if kind == b"VP8L" and len(data) >= 25 and data[20] == 0x2F:
            bits = struct.unpack_from("<I", data, 21)[0]
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if kind == b"VP8X" and len(data) >= 30 and not data[20] & _ANIMATED:
            sides = struct.unpack("<I", data[24:27] + b"\0")[0] + 1, struct.unpack("<I", data[27:30] + b"\0")[0] + 1
            if max(sides) <= MAX_SIDE:
                return sides
    what = "a lossy WebP, which keeps no numbers" if kind == b"VP8 " else f"it starts with {data[:16]!r}"
    raise FormatError(
        f"{source.name}: its picture '{name}' is no lossless WebP ({what}). Copy or download it again, or export it "
        "anew."
    )


def decode(source: Source, name: str, data: bytes) -> Bytes:  # (H,W,4)
    """The pixels as stored, RGBA. Ask `size_of` first. Raises FormatError for damaged data."""
    from PIL import Image

    _check_pillow(source.name)
    width, height = size_of(source, name, data)
    try:
        with Image.open(io.BytesIO(data), formats=("WEBP",)) as picture:
            pixels = np.asarray(picture.convert("RGBA"))
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise FormatError(
            f"{source.name}: its picture '{name}' is damaged ({error}). Copy or download it again."
        ) from error
    if pixels.shape != (height, width, 4):
        raise FormatError(
            f"{source.name}: its picture '{name}' says it has {width} by {height} pixels and has {pixels.shape[1]} by "
            f"{pixels.shape[0]}. Export it again."
        )
    return pixels


def encode(
    pixels: Bytes,  # (H,W,3) or (H,W,4)
) -> bytes:
    """A lossless WebP that keeps every byte. Raises FormatError where Pillow was built without WebP."""
    from PIL import Image

    _check_pillow("A .sog")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, exact=True, method=_EFFORT)
    return buffer.getvalue()


def _check_pillow(what: str) -> None:
    from PIL import features

    if not features.check("webp"):
        raise FormatError(
            f"{what} has WebP pictures, and this Pillow was built without WebP. Install Pillow from PyPI, or use .ply."
        )
