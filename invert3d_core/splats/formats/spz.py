"""``.spz`` versions 1 to 3: quantised splats, field after field, inside one gzip member (nianticlabs/spz).

Decompressed: a 16-byte header, then positions, alphas, colours, scales, rotations and SH of all splats, then extension
records. Version 4 (zstd streams after a plain header) is recognised and refused.
"""

import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

from ...errors import FormatError
from .. import spherical_harmonics
from ..gaussians import GaussianSplats
from .buffer import BLOCK_BYTES, Block, SplatBuffer, normalize_quaternions
from .source import Source

NAME = "spz"
EXTENSIONS = (".spz",)
LIMITS = (
    "Reads versions 1 to 3, SH degree 0 to 4, values as stored (no change of frame). No version 4. Not written. "
    "Positions have steps of 1/4096, log-scales of 1/16, SH 4 or 5 bits, colour and opacity 8 bits."
)

_MAGIC = b"NGSP"
_GZIP = b"\x1f\x8b"
_HEADER = struct.Struct("<4sIIBBBB")
_HAS_EXTENSIONS = 2
_MAX_EXTENSION_BYTES = 1 << 20
_MAX_RATIO = 1032  # deflate cannot do better
_PIECE = 1 << 18

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class _Header(NamedTuple):
    version: int
    count: int
    degree: int
    fraction_bits: int
    flags: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Bytes a splat of positions, alphas, colours, scales, rotations and SH."""
        rest = 3 * (spherical_harmonics.coefficients(self.degree) - 1)
        return (6 if self.version == 1 else 9, 1, 3, 3, 4 if self.version == 3 else 3, rest)


def detect(head: bytes) -> bool:
    """Whether a file that starts with these bytes is an SPZ, of any version."""
    if head.startswith(_MAGIC):
        return True
    return head.startswith(_GZIP) and _gzip_start(head)[:4] == _MAGIC


def _gzip_start(head: bytes) -> bytes:
    """The first bytes inside a gzip member; none where it is damaged."""
    try:
        return zlib.decompressobj(wbits=31).decompress(head, _HEADER.size)
    except zlib.error:
        return b""


def read(source: Source) -> GaussianSplats:
    """The splats of an SPZ file of version 1 to 3, as stored: no change of frame.

    Raises FormatError for version 4 and unknown ones, for damaged or cut-short data, and for contents that are longer
    or shorter than the header says.
    """
    header, payload = _decompress(source)
    splats = SplatBuffer(header.count, header.degree)
    sections, end = [], _HEADER.size
    for width in header.widths:
        sections.append(payload[end : end + header.count * width].reshape(header.count, width))
        end += header.count * width
    if header.flags & _HAS_EXTENSIONS:
        _check_extensions(source, payload[end:].tobytes())
    step = BLOCK_BYTES // sum(header.widths)
    for start in range(0, header.count, step):
        stop = min(start + step, header.count)
        _decode(header, [section[start:stop] for section in sections], splats.block(start, stop))
        splats.check(start, stop)
    return splats.finish(source)


def _decompress(source: Source) -> tuple[_Header, Bytes]:
    """The header and everything decompressed, header included; it grows with the data, never by what is claimed."""
    source.stream.seek(0)
    piece = source.stream.read(_PIECE)
    if piece.startswith(_MAGIC):
        version = struct.unpack_from("<I", piece.ljust(8, b"\0"), 4)[0]
        raise FormatError(
            f"{source.name} is an SPZ file of version {version} (zstd), which is not supported: versions 1 to 3 are. "
            "Save it as version 3, or as .ply."
        )
    if not piece.startswith(_GZIP):
        raise FormatError(
            f"{source.name} is no SPZ file: it starts with {piece[:4]!r} instead of gzip's 1f 8b. Check what it is."
        )
    inflate = zlib.decompressobj(wbits=31)
    data = bytearray()
    header, expected, limit = None, 0, _HEADER.size
    try:
        while True:
            # Up to one byte more than there may be, so that too much is noticed and no more than that is made.
            while piece and not inflate.eof and len(data) <= limit:
                data += inflate.decompress(piece, min(_PIECE, limit + 1 - len(data)))
                piece = inflate.unconsumed_tail
                if header is None and len(data) >= _HEADER.size:
                    header = _parse_header(source, bytes(data[: _HEADER.size]))
                    expected = _HEADER.size + header.count * sum(header.widths)
                    limit = expected + (_MAX_EXTENSION_BYTES if header.flags & _HAS_EXTENSIONS else 0)
            if inflate.eof or len(data) > limit:
                break
            piece = source.stream.read(_PIECE)
            if not piece:
                raise source.cut_short()
    except zlib.error as error:
        raise FormatError(
            f"{source.name}: the gzip data of the SPZ file is damaged ({error}). Copy or download it again."
        ) from error
    if header is None:
        raise FormatError(f"{source.name} is no SPZ file: {len(data)} bytes inside gzip are less than its header.")
    if len(data) < expected or len(data) > limit:
        found = f"only {len(data)}" if len(data) < expected else "more"
        raise FormatError(
            f"{source.name}: the SPZ header (version {header.version}) claims {header.count} splats of SH degree "
            f"{header.degree}, which are {expected} bytes, but {found} were found. The file is damaged or its writer "
            "is wrong: export it again."
        )
    return header, np.frombuffer(data, np.uint8)


def _parse_header(source: Source, data: bytes) -> _Header:
    magic, version, count, degree, fraction_bits, flags, _ = _HEADER.unpack(data)
    if magic != _MAGIC:
        raise FormatError(
            f"{source.name} is a gzip file but no SPZ: inside it starts with {magic!r} instead of {_MAGIC!r}. "
            "Unpack it and load what is inside."
        )
    if version not in (1, 2, 3):
        raise FormatError(
            f"{source.name} is an SPZ file of version {version}; versions 1 to 3 are supported. Save it as version 3, "
            "or as .ply."
        )
    if degree > spherical_harmonics.MAX_DEGREE:
        raise FormatError(
            f"{source.name}: the SPZ header claims SH degree {degree}; expected 0 to {spherical_harmonics.MAX_DEGREE}. "
            "The file is damaged: export it again."
        )
    if not count:
        raise FormatError(f"{source.name} holds no splats (the SPZ header says 0). Export it again with its splats.")
    header = _Header(version, count, degree, fraction_bits, flags)
    if count * sum(header.widths) > _MAX_RATIO * source.size:
        raise FormatError(
            f"{source.name}: the SPZ header claims {count} splats, {count * sum(header.widths)} bytes, which cannot "
            f"come out of a file of {source.size} bytes. The header is wrong or the file is cut short."
        )
    return header


def _check_extensions(source: Source, data: bytes) -> None:
    """Raise FormatError unless extension records (u32 type, u32 length, payload) fill the data; none is needed here."""
    at = 0
    while at + 8 <= len(data):
        at += 8 + struct.unpack_from("<I", data, at + 4)[0]
    if at != len(data):
        raise FormatError(
            f"{source.name}: the extension records at the end of the SPZ data do not add up. The file is damaged: "
            "export it again."
        )


def _decode(header: _Header, sections: list[Bytes], out: Block) -> None:
    positions, alphas, colors, scales, rotations, rest = sections
    n = len(positions)
    if header.version == 1:
        out.positions[:] = positions.view("<f2")
    else:
        parts = positions.reshape(n, 3, 3).astype(np.int32)
        # The top byte carries the sign: shifted up to bit 31 and down again.
        fixed = (parts[..., 0] | parts[..., 1] << 8 | parts[..., 2] << 16) << 8 >> 8
        out.positions[:] = np.ldexp(fixed.astype(np.float64), -header.fraction_bits)
    out.opacities[:] = alphas / np.float32(255)
    out.sh[:, 0] = (colors / 255 - 0.5) / 0.15
    out.sh[:, 1:] = ((rest - np.float32(128)) / 128).reshape(n, rest.shape[1] // 3, 3)
    np.exp(scales / 16 - 10, out=out.scales, casting="same_kind")
    normalize_quaternions(_smallest_three(rotations) if header.version == 3 else _first_three(rotations), out.rotations)


def _first_three(
    stored: Bytes,  # (n,3) x,y,z of a unit quaternion with w ≥ 0
) -> np.ndarray[Any, np.dtype[np.float32]]:  # (n,4) w,x,y,z
    xyz = stored / 127.5 - 1
    w = np.sqrt(np.maximum(0, 1 - (xyz * xyz).sum(axis=1, keepdims=True)))
    return np.concatenate([w, xyz], axis=1).astype(np.float32)


def _smallest_three(
    stored: Bytes,  # (n,4) one uint32 a splat
) -> np.ndarray[Any, np.dtype[np.float32]]:  # (n,4) w,x,y,z
    """Bits 31..30: which of x,y,z,w is largest and left out; the others in order, sign and 9 bits each, from bit 29."""
    packed = np.ascontiguousarray(stored).view("<u4")[:, 0]
    largest = packed >> 30
    fields = np.stack([packed >> shift & 0x3FF for shift in (20, 10, 0)], axis=1).astype(np.int32)
    values = np.where(fields & 0x200, -1.0, 1.0) * (fields & 0x1FF) / (511 * np.sqrt(2))
    xyzw = np.empty((len(packed), 4), np.float32)
    for index in range(4):
        rows = largest == index
        xyzw[np.ix_(rows, [i for i in range(4) if i != index])] = values[rows]
        xyzw[rows, index] = np.sqrt(np.maximum(0, 1 - (values[rows] ** 2).sum(axis=1)))
    return np.roll(xyzw, 1, axis=1)
