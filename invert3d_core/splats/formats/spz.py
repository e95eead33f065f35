"""``.spz`` versions 1 to 4: quantised splats, field after field (nianticlabs/spz).

Sections of all splats, one after another: positions, alphas, colours, scales, rotations, SH. Up to version 3 they
follow a 16-byte header inside one gzip member, with extension records behind; in version 4 each is a zstd frame of its
own, after a plain header, extension records, and a table of their sizes.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ...errors import FormatError
from .. import spherical_harmonics
from ..gaussians import GaussianSplats
from .buffer import BLOCK_BYTES, Block, SplatBuffer, normalize_quaternions
from .losses import Losses, blocks, rows
from .smallest_three import Array, join, settle, split
from .source import Source

NAME = "spz"
EXTENSIONS = (".spz",)
LIMITS = (
    "Reads and writes versions 1 to 4 (4 needs the package zstandard), SH degree 0 to 4, values as stored (no change "
    "of frame). Positions have steps of 1/4096 within ±2048, log-scales of 1/16, SH 4 or 5 bits within ±1, colour and "
    "opacity 8 bits."
)

_MAGIC = b"NGSP"
_GZIP = b"\x1f\x8b"
_HEADER = struct.Struct("<4sIIBBBB")
_HEADER_4 = struct.Struct("<4sIIBBBBI12x")
_VERSIONS = (1, 2, 3, 4)
_ANTIALIASED, _HAS_EXTENSIONS = 1, 2
_ANTIALIASED_COMMENT = "antialiased 1"  # as PLY writers state it
_COORDINATE_SYSTEM = 0xADBE0003
_MAX_EXTENSION_BYTES = 1 << 20
_MAX_RATIO = 1032  # deflate cannot do better
_PIECE = 1 << 18
_LARGE, _LARGE_RATIO = 64 << 20, 64  # splats take more than a byte each; what holds less and grows large is no scene
_MAX_WINDOW = 1 << 25  # bytes; zstd's levels to 20 need no more
_GZIP_LEVEL, _ZSTD_LEVEL = 4, 3  # gzip's usual 6 takes four times as long for 2 % less

_SH_BITS = (5, 4)  # of degree 1, and above
_REACH = 1 << 23  # positions are 24-bit integers
_LARGEST_HALF = 65504.0
_ROOT = 511 * np.sqrt(2)

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
        return (6 if self.version == 1 else 9, 1, 3, 3, 4 if self.version >= 3 else 3, rest)

    @property
    def payload(self) -> int:
        """Bytes of all sections."""
        return self.count * sum(self.widths)


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
    """The splats of an SPZ file of version 1 to 4, as stored: no change of frame.

    A coordinate system that the file states becomes a comment that states the axes, and the antialiased flag another.
    Raises FormatError for unknown versions, for damaged or cut-short data, for contents that are longer or shorter
    than the header says, and for version 4 without the package zstandard.
    """
    source.stream.seek(0)
    plain = source.stream.read(len(_MAGIC)) == _MAGIC
    header, sections, extensions = _read_streams(source) if plain else _read_gzip(source)
    comment = _comment(source, header, extensions)
    splats = SplatBuffer(header.count, header.degree)
    step = BLOCK_BYTES // sum(header.widths)
    for start in range(0, header.count, step):
        stop = min(start + step, header.count)
        _decode(header, [section[start:stop] for section in sections], splats.block(start, stop))
        splats.check(start, stop)
    return splats.finish(source, comment)


def write(
    splats: GaussianSplats,
    file: BinaryIO,
    *,
    version: int = 3,
    fraction_bits: int = 12,
    sh_bits: tuple[int, int] = _SH_BITS,
) -> list[str]:
    """Write an SPZ file, in the splats' own frame and order.

    version: 1 to 4. 3 is what most readers know and packs rotations best; 4 compresses with zstd and needs the package
        zstandard; 2 is for old readers. 1 (positions as 16-bit floats) was never released and few read it.
    fraction_bits: 0 to 23; positions have steps of 2^−fraction_bits and reach ±2^(23 − fraction_bits).
    sh_bits: 1 to 8; bits of a coefficient of SH degree 1, and of one above. More compress less.
    Returns what was lost, with the largest change of each kind. Raises FormatError for options out of range, and for
    version 4 without zstandard.
    """
    _check_options(version, fraction_bits, sh_bits)
    zstandard = _zstandard("The splats cannot be written as SPZ version 4") if version == 4 else None
    losses = Losses()
    count, arrays = len(splats), blocks(splats)
    smooth = _ANTIALIASED if _ANTIALIASED_COMMENT in splats.comment.split("\n") else 0
    header = _Header(version, count, splats.degree, fraction_bits, smooth)
    data = np.empty(header.payload, np.uint8)
    sections = _sections(header, data)
    back = SplatBuffer(min(count, BLOCK_BYTES // sum(header.widths)), splats.degree)
    for start in range(0, count, back.count):
        stop = min(start + back.count, count)
        wanted = _clip(header, rows(arrays, slice(start, stop)), losses)
        block = [section[start:stop] for section in sections]
        _encode(header, wanted, sh_bits, block)
        found = back.block(0, stop - start)
        _decode(header, block, found)
        losses.compare(wanted, found)
    if zstandard is None:
        _write_gzip(_HEADER.pack(_MAGIC, *header, 0), data, file)
    else:
        _write_streams(header, sections, file, zstandard)
    if splats.comment not in ("", _ANTIALIASED_COMMENT):
        losses.comment(splats)
    return losses.words()


def _check_options(version: int, fraction_bits: int, sh_bits: tuple[int, int]) -> None:
    if version not in _VERSIONS:
        raise FormatError(f"There is no SPZ version {version!r}. Expected one of 1, 2, 3, 4.")
    if fraction_bits not in range(24):
        raise FormatError(f"SPZ positions cannot have {fraction_bits!r} fraction bits. Expected 0 to 23; 12 is usual.")
    if len(sh_bits) != 2 or any(bits not in range(1, 9) for bits in sh_bits):
        raise FormatError(f"SPZ sh_bits are {sh_bits!r}; expected two numbers from 1 to 8, such as (5, 4).")


def _threads() -> int:
    return min(8, os.cpu_count() or 1)


def _zstandard(what: str) -> ModuleType:
    try:
        import zstandard
    except ImportError:
        raise FormatError(
            f"{what}: its zstd compression needs the Python package zstandard, which is not installed. Run "
            "'pip install zstandard', or use SPZ version 3 or .ply."
        ) from None
    return zstandard


# ------------------------------------------------------------------------------------------------------------- headers


def _parse_header(source: Source, fields: tuple[Any, ...], versions: tuple[int, ...]) -> _Header:
    magic, version, count, degree, fraction_bits, flags = fields
    if magic != _MAGIC:
        raise FormatError(
            f"{source.name} is a gzip file but no SPZ: inside it starts with {magic!r} instead of {_MAGIC!r}. "
            "Unpack it and load what is inside."
        )
    if version not in versions:
        where = "inside gzip, where versions 1 to 3 are" if len(versions) > 1 else "without gzip, as only version 4 is"
        raise FormatError(
            f"{source.name} is an SPZ file of version {version} {where}; versions 1 to 4 are supported. Save it as "
            "version 3, or as .ply."
        )
    if degree > spherical_harmonics.MAX_DEGREE:
        raise FormatError(
            f"{source.name}: the SPZ header claims SH degree {degree}; expected 0 to {spherical_harmonics.MAX_DEGREE}. "
            "The file is damaged: export it again."
        )
    if not count:
        raise FormatError(f"{source.name} holds no splats (the SPZ header says 0). Export it again with its splats.")
    header = _Header(version, count, degree, fraction_bits, flags)
    memory = header.payload + 4 * count * (11 + 3 * spherical_harmonics.coefficients(degree))
    if header.payload > (_LARGE_RATIO if memory > _LARGE else _MAX_RATIO) * source.size:
        raise FormatError(
            f"{source.name}: the SPZ header claims {count} splats, {header.payload} bytes, which cannot come out of a "
            f"file of {source.size} bytes. The header is wrong or the file is cut short."
        )
    return header


def _sections(header: _Header, data: Bytes) -> list[Bytes]:
    """The sections of the payload, each (count, bytes a splat)."""
    ends = np.cumsum([0, *(header.count * width for width in header.widths)]).tolist()
    return [data[start:stop].reshape(header.count, -1 if stop > start else 0) for start, stop in pairwise(ends)]


def _comment(source: Source, header: _Header, extensions: bytes) -> str:
    """What the flags and the extension records say. Raises FormatError unless records fill the data."""
    lines = [_ANTIALIASED_COMMENT] if header.flags & _ANTIALIASED else []
    for kind, payload in _records(source, extensions) if header.flags & _HAS_EXTENSIONS else ():
        code = struct.unpack("<I", payload)[0] - 1 if kind == _COORDINATE_SYSTEM and len(payload) == 4 else -1
        # Bits of code − 1: x is right, y is up, z is forward, away from a viewer who sees the front. Codes from 9 on,
        # with y and z exchanged, and mirrored ones (x left) say nothing of a right-handed scene that is y up or down.
        if code in range(8):
            right, up, forward = code & 1, code >> 1 & 1, code >> 2
            letters = "LR"[right] + "DU"[up] + "BF"[forward]
            lines.append(f'SPZ coordinate system {letters}: up="{"-+"[up]}y" front="{"+-"[forward]}z"')
    return "\n".join(lines)


def _records(source: Source, data: bytes) -> Iterator[tuple[int, bytes]]:
    """The extension records: u32 type, u32 length, payload."""
    at = 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<II", data, at)
        yield kind, data[at + 8 : at + 8 + length]
        at += 8 + length
    if at != len(data):
        raise FormatError(
            f"{source.name}: the extension records of the SPZ file do not add up. The file is damaged: export it again."
        )


# ---------------------------------------------------------------------------------------------- versions 1 to 3, gzip


def _read_gzip(source: Source) -> tuple[_Header, list[Bytes], bytes]:
    """The header, the sections and the extension records; memory grows with the data, never by what is claimed."""
    source.stream.seek(0)
    piece = source.stream.read(_PIECE)
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
                    header = _parse_header(source, _HEADER.unpack_from(data)[:6], _VERSIONS[:3])
                    expected = _HEADER.size + header.payload
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
    payload = np.frombuffer(data, np.uint8)
    return header, _sections(header, payload[_HEADER.size : expected]), payload[expected:].tobytes()


def _write_gzip(head: bytes, data: Bytes, file: BinaryIO) -> None:
    """One gzip member (RFC 1952), its pieces deflated side by side: zlib does not hold the interpreter."""
    starts = range(0, len(data), _PIECE)

    def deflate(start: int) -> bytes:
        compress = zlib.compressobj(_GZIP_LEVEL, wbits=-15)
        done = compress.compress(head) if start == 0 else b""
        # A piece that ends on a byte border, so that the next one can follow; only the last one ends the stream.
        end = zlib.Z_FINISH if start == starts[-1] else zlib.Z_SYNC_FLUSH
        return done + compress.compress(data[start : start + _PIECE].data) + compress.flush(end)

    file.write(_GZIP + b"\x08" + bytes(6) + b"\xff")
    with ThreadPoolExecutor(_threads()) as pool:
        for piece in pool.map(deflate, starts):
            file.write(piece)
    file.write(struct.pack("<II", zlib.crc32(data.data, zlib.crc32(head)), (len(head) + len(data)) & 0xFFFFFFFF))


# ---------------------------------------------------------------------------------------------------- version 4, zstd


def _read_streams(source: Source) -> tuple[_Header, list[Bytes], bytes]:
    """The header, the sections and the extension records. Sizes are compared with each other before any is used."""
    source.stream.seek(0)
    *fields, streams, table = _HEADER_4.unpack(source.read(_HEADER_4.size))
    header = _parse_header(source, tuple(fields), _VERSIONS[3:])
    widths = [width for width in header.widths if width]
    if streams != len(widths) or not _HEADER_4.size <= table <= _HEADER_4.size + _MAX_EXTENSION_BYTES:
        raise FormatError(
            f"{source.name}: the SPZ header (version 4) claims {streams} streams, listed at byte {table}; expected "
            f"{len(widths)} at SH degree {header.degree}, listed from byte 32 on. The file is damaged: export it again."
        )
    extensions = source.read(table - _HEADER_4.size)
    sizes = [struct.unpack("<QQ", source.read(16)) for _ in widths]
    expected = [header.count * width for width in widths]
    if [size for _, size in sizes] != expected:
        raise FormatError(
            f"{source.name}: the streams of the SPZ file claim {', '.join(str(size) for _, size in sizes)} bytes; "
            f"{header.count} splats of SH degree {header.degree} need {', '.join(map(str, expected))}. The file is "
            "damaged: export it again."
        )
    end = source.stream.tell() + sum(size for size, _ in sizes)
    if end != source.size:
        raise FormatError(
            f"{source.name} has {source.size} bytes, but its SPZ streams end at byte {end}. It is cut short or "
            "damaged: copy or download it again."
        )
    zstandard = _zstandard(f"{source.name} is an SPZ file of version 4")
    found = [
        _inflate(source, source.read(size), size_inside, zstandard).reshape(header.count, -1)
        for size, size_inside in sizes
    ]
    return header, found if header.degree else [*found, np.empty((header.count, 0), np.uint8)], extensions


def _inflate(source: Source, frame: bytes, expected: int, zstandard: ModuleType) -> Bytes:
    try:
        inside = zstandard.frame_content_size(frame)
        if inside in (-1, expected):
            # No more than expected is made. A frame that states its size needs no window beside, others do.
            unpack = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW if inside == -1 else 0)
            data = unpack.decompress(frame, max_output_size=expected, allow_extra_data=False)
            if len(data) == expected:
                return np.frombuffer(data, np.uint8)
            inside = len(data)
    except zstandard.ZstdError as error:
        raise FormatError(
            f"{source.name}: the zstd data of the SPZ file is damaged ({error}). Copy or download it again."
        ) from error
    raise FormatError(
        f"{source.name}: a stream of the SPZ file holds {inside} bytes instead of {expected}. The file is damaged: "
        "export it again."
    )


def _write_streams(header: _Header, sections: list[Bytes], file: BinaryIO, zstandard: ModuleType) -> None:
    compress = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True, threads=_threads())
    sections = [section for section in sections if section.size]
    frames = [compress.compress(section.data) for section in sections]
    file.write(_HEADER_4.pack(_MAGIC, *header, len(frames), _HEADER_4.size))
    for frame, section in zip(frames, sections, strict=True):
        file.write(struct.pack("<QQ", len(frame), section.size))
    for frame in frames:
        file.write(frame)


# ------------------------------------------------------------------------------------------------------------- values


def _clip(header: _Header, block: Block, losses: Losses) -> Block:
    step = 2.0**-header.fraction_bits
    low, high = -_REACH * step, (_REACH - 1) * step
    if header.version == 1:
        low, high = -_LARGEST_HALF, _LARGEST_HALF
    stored, sh = (block.sh[:, 0], block.sh[:, 1:]), block.sh
    dc = losses.clip(stored[0], -0.5 / 0.15, 0.5 / 0.15, "colours beyond 0.5 ± 0.94")
    rest = losses.clip(stored[1], -1, 1, "view-dependent colour coefficients beyond ±1")
    if dc is not stored[0] or rest is not stored[1]:
        sh = np.concatenate([dc[:, None], rest], axis=1)
    return block._replace(
        positions=losses.clip(block.positions, low, high, f"positions beyond ±{high:.6g}"),
        scales=losses.clip(block.scales, np.exp(-10), np.exp(255 / 16 - 10), "scales below 4.5e-5 or above 379"),
        sh=sh,
    )


def _encode(header: _Header, block: Block, sh_bits: tuple[int, int], out: list[Bytes]) -> None:
    positions, alphas, colors, scales, rotations, rest = out
    n = len(positions)
    if header.version == 1:
        positions[:] = np.ascontiguousarray(block.positions.astype("<f2")).view(np.uint8)
    else:
        fixed = np.rint(np.ldexp(block.positions.astype(np.float64), header.fraction_bits)).astype("<i4")
        positions[:] = fixed.view(np.uint8).reshape(n, 3, 4)[:, :, :3].reshape(n, 9)
    alphas[:] = np.rint(block.opacities * 255)
    colors[:] = np.rint((block.sh[:, 0] * 0.15 + 0.5) * 255).clip(0, 255)
    scales[:] = np.rint(16 * (np.log(block.scales) + 10)).clip(0, 255)
    unit = block.rotations
    if header.version < 3:
        xyz = np.where(unit[:, :1] < 0, -unit[:, 1:], unit[:, 1:])
        rotations[:] = np.rint(xyz * 127.5 + 127.5).clip(0, 255)
    else:
        largest, others = split(np.roll(unit, -1, axis=1))
        codes = np.rint(others * _ROOT).clip(-511, 511).astype(np.int32)
        settle(codes, 0, _part_values)
        fields = np.where(codes < 0, 0x200, 0) | np.abs(codes)
        word = largest << 30 | fields[:, 0] << 20 | fields[:, 1] << 10 | fields[:, 2]
        rotations[:] = word.astype("<u4").view(np.uint8).reshape(n, 4)
    codes = np.rint(block.sh[:, 1:].reshape(n, -1) * 128).astype(np.int32) + 128
    for columns, bits in ((slice(0, 9), sh_bits[0]), (slice(9, None), sh_bits[1])):
        # To the nearest multiple of a power of two.
        step = 1 << 8 - bits
        rest[:, columns] = ((codes[:, columns] + step // 2) & -step).clip(0, 255)


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
    normalize_quaternions(_smallest_three(rotations) if header.version >= 3 else _first_three(rotations), out.rotations)


def _first_three(
    stored: Bytes,  # (n,3) x,y,z of a unit quaternion with w ≥ 0
) -> Array:  # (n,4) w,x,y,z
    xyz = stored / 127.5 - 1
    w = np.sqrt(np.maximum(0, 1 - (xyz * xyz).sum(axis=1, keepdims=True)))
    return np.concatenate([w, xyz], axis=1).astype(np.float32)


def _smallest_three(
    stored: Bytes,  # (n,4) one uint32 a splat
) -> Array:  # (n,4) w,x,y,z
    """Bits 31..30: which of x,y,z,w is largest and left out; the others in order, sign and 9 bits each, from bit 29."""
    packed = np.ascontiguousarray(stored).view("<u4")[:, 0]
    fields = np.stack([packed >> shift & 0x3FF for shift in (20, 10, 0)], axis=1).astype(np.int32)
    codes = np.where(fields & 0x200, -(fields & 0x1FF), fields)
    return np.roll(join(packed >> 30, _part_values(codes)), 1, axis=1)


def _part_values(codes: Array) -> Array:
    return codes / _ROOT
