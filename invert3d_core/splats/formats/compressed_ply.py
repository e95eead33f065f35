"""PlayCanvas compressed PLY: 16 bytes a splat and 1 a SH coefficient, in chunks of 256 that share their bounds.

Layout of the format's own converter (playcanvas/splat-transform). The element ``chunk`` holds bounds of position,
log-scale and, in newer files, colour; ``vertex`` holds four uint32 a splat (position and scale 11-10-11 bits between
the bounds, rotation as smallest three, colour and opacity 8 bits each); ``sh`` holds ``f_rest_*`` as bytes, ±4.
"""

from typing import BinaryIO, NamedTuple

import numpy as np

from ...errors import FormatError
from ..gaussians import GaussianSplats
from ..spherical_harmonics import C0, coefficients
from .buffer import BLOCK_BYTES, Block, Floats, SplatBuffer, normalize_quaternions
from .losses import Losses, blocks, rows
from .ply_header import REST_COUNTS, Element, Header, expect_end, header_bytes, read_header, skip_elements
from .smallest_three import Array, join, settle, split
from .source import Source

NAME = "compressed_ply"
EXTENSIONS = (".compressed.ply",)
LIMITS = (
    "Reads and writes PlayCanvas compressed PLY, SH degree 0 to 3 (degree 4 is cut). Positions, log-scales and colours "
    "have 8 to 11 bits between the bounds of 256 neighbours, rotation 10, opacity 8, SH 8 bits within ±4."
)

_CHUNK = 256
_AXES = ("x", "y", "z")
_BOUNDS = tuple(f"{end}_{what}{axis}" for what in ("", "scale_") for end in ("min", "max") for axis in _AXES)
_COLOR_BOUNDS = tuple(f"{end}_{channel}" for end in ("min", "max") for channel in "rgb")
_PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_LARGEST_LOG = 20.0  # log-scales are kept within ± this
_LARGEST_SH = 4.0
_MAX_DEGREE = 3


class _Columns(NamedTuple):
    """The fields of the elements' row types, in the order this module works in."""

    bounds: list[str]  # 12, or 18 with colour
    packed: list[str]  # 4
    rest: list[str]  # coefficient after coefficient, r g b inside


def detect(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a compressed PLY."""
    return head.startswith((b"ply\n", b"ply\r\n")) and b" packed_position" in head


def read(source: Source) -> GaussianSplats:
    """The splats of a compressed PLY, in the file's order; header comments become the comment.

    Splats whose bounds are not finite are dropped with a warning, see `buffer.MAX_BAD_FRACTION`.
    Raises FormatError for missing elements and columns, counts that do not fit each other, and files shorter or longer
    than their header says.
    """
    header = read_header(source)
    elements = _find_elements(source, header)
    chunk, vertex, rest = elements["chunk"], elements["vertex"], elements.get("sh")
    columns = _find_columns(source, chunk, vertex, rest)
    starts = {}
    for element in header.elements:
        starts[element.name] = source.stream.tell()
        skip_elements(source, header, [element])
    expect_end(source)
    bounds = _fields(_raw(source, header, chunk, starts["chunk"], 0, chunk.count), columns.bounds, np.float64)
    splats = SplatBuffer(vertex.count, REST_COUNTS[len(columns.rest)])
    width = vertex.least_row_bytes + (rest.least_row_bytes if rest else 0)
    step = max(1, BLOCK_BYTES // (_CHUNK * width)) * _CHUNK
    for start in range(0, vertex.count, step):
        stop = min(start + step, vertex.count)
        packed = _fields(_raw(source, header, vertex, starts["vertex"], start, stop), columns.packed, np.uint32)
        codes = np.empty((stop - start, 0), np.uint8)
        if rest:
            raw = _raw(source, header, rest, starts["sh"], start, stop)
            # A row of bytes is an array already.
            codes = raw.view(np.uint8).reshape(stop - start, -1)[:, [int(name[1:]) for name in columns.rest]]
        _decode(bounds[start // _CHUNK : -(-stop // _CHUNK)], packed, codes, splats.block(start, stop))
        splats.check(start, stop)
    return splats.finish(source, "\n".join(header.comments))


def write(
    splats: GaussianSplats,
    file: BinaryIO,
    *,
    sort: bool = True,
) -> list[str]:
    """Write a compressed PLY with colour bounds, binary little endian.

    sort: bring neighbours into one chunk, along a Morton curve through their positions: the bounds are then tight and
    the steps small. False keeps the order; whoever writes what was read from such a file should, and loses nothing.
    Returns what was lost, with the largest change of each kind. Raises FormatError for a comment that no header can
    hold.
    """
    losses = Losses()
    degree = min(splats.degree, _MAX_DEGREE)
    losses.truncate(splats, degree)
    bands, count = coefficients(degree), len(splats)
    arrays = blocks(splats)
    arrays = arrays._replace(sh=arrays.sh[:, :bands])
    order = morton_order(arrays.positions) if sort else np.arange(count)
    chunks = -(-count // _CHUNK)
    bounds = np.empty((chunks, 18), "<f4")
    packed = np.empty((count, 4), "<u4")
    codes = np.empty((count, 3 * (bands - 1)), np.uint8)
    back = SplatBuffer(min(count, _block_length(bands)), degree)
    for start in range(0, count, back.count):
        stop = min(start + back.count, count)
        wanted = _clip(rows(arrays, order[start:stop]), losses)
        group = slice(start // _CHUNK, -(-stop // _CHUNK))
        bounds[group], packed[start:stop], codes[start:stop] = _encode(wanted)
        found = back.block(0, stop - start)
        _decode(bounds[group].astype(np.float64), packed[start:stop], codes[start:stop], found)
        losses.compare(wanted, found)
    elements = [
        ("chunk", chunks, [("float", name) for name in (*_BOUNDS, *_COLOR_BOUNDS)]),
        ("vertex", count, [("uint", name) for name in _PACKED]),
    ]
    if degree:
        elements.append(("sh", count, [("uchar", f"f_rest_{i}") for i in range(codes.shape[1])]))
    head, lost = header_bytes(elements, splats.comment)
    file.write(head)
    file.write(bounds.data)
    file.write(packed.data)
    # Channel after channel in the file.
    file.write(np.ascontiguousarray(codes.reshape(count, bands - 1, 3).transpose(0, 2, 1)).data)
    if bool((np.diff(order) < 0).any()):
        losses.note("the order of the splats (along a Morton curve)")
    return losses.words() + lost


def morton_order(
    positions: Floats,  # (N,3)
) -> Array:  # (N,)
    """Indices that sort points along a Morton (z-order) curve through their bounding box, 21 bits an axis.

    Morton 1966; bits are spread as in "Bit Twiddling Hacks" (Anderson).
    """
    low = positions.min(axis=0).astype(np.float64)
    span = positions.max(axis=0) - low
    code = np.zeros(len(positions), np.uint64)
    for axis in range(3):
        cells = ((positions[:, axis] - low[axis]) / (span[axis] or 1.0) * ((1 << 21) - 1)).astype(np.uint64)
        for shift, mask in (
            (32, 0x1F00000000FFFF),
            (16, 0x1F0000FF0000FF),
            (8, 0x100F00F00F00F00F),
            (4, 0x10C30C30C30C30C3),
            (2, 0x1249249249249249),
        ):
            cells = (cells | cells << np.uint64(shift)) & np.uint64(mask)
        code |= cells << np.uint64(axis)
    return np.argsort(code, kind="stable")


def _block_length(bands: int) -> int:
    """How many splats are encoded at a time: whole chunks."""
    return max(1, BLOCK_BYTES // (4 * (11 + 3 * bands) * _CHUNK)) * _CHUNK


def _clip(block: Block, losses: Losses) -> Block:
    smallest, largest = np.exp(-_LARGEST_LOG), np.exp(_LARGEST_LOG)
    sh = block.sh
    if sh.shape[1] > 1:
        rest = losses.clip(sh[:, 1:], -_LARGEST_SH, _LARGEST_SH, "view-dependent colour coefficients beyond ±4")
        sh = np.concatenate([sh[:, :1], rest], axis=1)
    return block._replace(
        scales=losses.clip(block.scales, smallest, largest, "scales below 2.1e-9 or above 4.9e8"), sh=sh
    )


def _encode(block: Block) -> tuple[Array, Array, Array]:
    """Splats, from the start of a chunk on, as bounds (c,18), packed words (n,4) and SH bytes (n,K−1 × rgb)."""
    n = len(block.positions)
    # Rounded to float32, so that it comes back as the same bounds.
    logs = np.log(block.scales.astype(np.float64)).astype(np.float32)
    colors = (0.5 + C0 * block.sh[:, 0].astype(np.float64)).astype(np.float32)
    position, position_bounds = _between_bounds(block.positions)
    scale, scale_bounds = _between_bounds(logs)
    color, color_bounds = _between_bounds(colors)
    largest, others = split(block.rotations)
    thirds = _round((others / np.sqrt(2) + 0.5).clip(0, 1), 1023).astype(np.int32)
    settle(thirds, 511.5, _rotation_values)
    thirds, packed = thirds.astype(np.uint32), np.empty((n, 4), np.uint32)
    packed[:, 0] = _pack(position, (11, 10, 11))
    packed[:, 1] = largest.astype(np.uint32) << 30 | thirds[:, 0] << 20 | thirds[:, 1] << 10 | thirds[:, 2]
    packed[:, 2] = _pack(scale, (11, 10, 11))
    packed[:, 3] = _pack(np.concatenate([color, block.opacities], axis=1), (8, 8, 8, 8))
    rest = block.sh[:, 1:].reshape(n, -1)
    codes = np.trunc((rest / np.float32(2 * _LARGEST_SH) + np.float32(0.5)) * 256).clip(0, 255).astype(np.uint8)
    return np.concatenate([position_bounds, scale_bounds, color_bounds], axis=1), packed, codes


def _between_bounds(
    values: Floats,  # (n,3), from the start of a chunk on
) -> tuple[Array, Array]:  # (n,3) in [0,1], (c,6)
    """Where values lie between the bounds of their chunk, and the bounds: three least, three largest."""
    n = len(values)
    # The last row again and again changes no bounds.
    full = np.concatenate([values, np.repeat(values[-1:], -n % _CHUNK, axis=0)]).reshape(-1, _CHUNK, 3)
    axes = np.ascontiguousarray(full.transpose(0, 2, 1))  # numpy finds extremes along the last axis many times faster
    low, high = axes.min(axis=2), axes.max(axis=2)
    span = high.astype(np.float64) - low
    share = (full - low[:, None].astype(np.float64)) / np.where(span > 0, span, 1)[:, None]
    return share.reshape(-1, 3)[:n], np.concatenate([low, high], axis=1)


def _round(shares: Array, largest: int) -> Array:
    return np.floor(shares * largest + 0.5)


def _pack(
    shares: Array,  # (n,k) in [0,1]
    bits: tuple[int, ...],
) -> Array:  # (n,)
    word = np.zeros(len(shares), np.uint32)
    for column, width in enumerate(bits):
        word = word << np.uint32(width) | _round(shares[:, column], (1 << width) - 1).astype(np.uint32)
    return word


def _unpack(
    words: Array,  # (n,)
    bits: tuple[int, ...],
) -> Array:  # (n,k) in [0,1]
    shares, shift = np.empty((len(words), len(bits))), 32
    for column, width in enumerate(bits):
        shift -= width
        largest = (1 << width) - 1
        np.divide(words >> np.uint32(shift) & np.uint32(largest), largest, out=shares[:, column])
    return shares


def _decode(
    bounds: Array,  # (c,12) or (c,18) float64
    packed: Array,  # (n,4)
    codes: Array,  # (n,3(K−1)), coefficient after coefficient
    out: Block,
) -> None:
    n = len(packed)
    with np.errstate(all="ignore"):
        out.positions[:] = _lerp(bounds[:, 0:6], _unpack(packed[:, 0], (11, 10, 11)))
        out.scales[:] = np.exp(_lerp(bounds[:, 6:12], _unpack(packed[:, 2], (11, 10, 11))))
        color = _unpack(packed[:, 3], (8, 8, 8, 8))
        out.opacities[:] = color[:, 3:]
        rgb = _lerp(bounds[:, 12:], color[:, :3]) if bounds.shape[1] == 18 else color[:, :3]
        out.sh[:, 0] = (rgb - 0.5) / C0
    thirds = np.stack([packed[:, 1] >> np.uint32(shift) & np.uint32(1023) for shift in (20, 10, 0)], axis=1)
    normalize_quaternions(join(packed[:, 1] >> np.uint32(30), _rotation_values(thirds)), out.rotations)
    out.sh[:, 1:] = _SH_VALUES[codes].reshape(n, -1, 3)


def _rotation_values(codes: Array) -> Array:
    return (codes / 1023 - 0.5) * np.sqrt(2)


def _lerp(
    bounds: Array,  # (c,6)
    shares: Array,  # (n,3)
) -> Array:  # (n,3)
    """Values between the bounds of their chunks; both bounds come back exactly."""
    low, high = (np.repeat(part, _CHUNK, axis=0)[: len(shares)] for part in (bounds[:, :3], bounds[:, 3:6]))
    return low * (1 - shares) + high * shares


def _sh_values() -> Floats:
    """The coefficient that each byte stands for: the middle of its step, but for the first and the last."""
    share = (np.arange(256) + 0.5) / 256
    share[[0, -1]] = 0, 1
    return ((share - 0.5) * 2 * _LARGEST_SH).astype(np.float32)


_SH_VALUES = _sh_values()


def _raw(source: Source, header: Header, element: Element, at: int, start: int, stop: int) -> Array:
    """The rows start to stop of an element that begins at a byte of the file."""
    row_type = element.row_type(header.order)
    data = np.empty((stop - start) * row_type.itemsize, np.uint8)
    source.stream.seek(at + start * row_type.itemsize)
    source.read_into(data)
    return data.view(row_type)


def _fields(raw: Array, names: list[str], kind: type) -> Array:
    """Some columns side by side."""
    with np.errstate(invalid="ignore"):  # a NaN may be one that signals
        return np.stack([raw[name].astype(kind) for name in names], axis=1)


def _find_elements(source: Source, header: Header) -> dict[str, Element]:
    """The elements by name. Raises FormatError where one lacks, comes twice, is empty, or has a wrong length."""
    elements = {element.name: element for element in header.elements}
    if header.is_ascii or any(element.has_lists for element in header.elements):
        raise FormatError(
            f"{source.name} is a compressed PLY as text or with list columns; expected binary rows. Export it again."
        )
    if len(elements) < len(header.elements) or not {"chunk", "vertex"} <= set(elements):
        raise FormatError(
            f"{source.name} is a compressed PLY with the elements {', '.join(e.name for e in header.elements)}; "
            "expected chunk, vertex and perhaps sh, each once. The file is damaged: export it again."
        )
    count = elements["vertex"].count
    if not count:
        raise FormatError(f"{source.name} holds no splats ('element vertex 0'). Export it again with its splats.")
    for name, expected in (("chunk", -(-count // _CHUNK)), ("sh", count)):
        if name in elements and elements[name].count != expected:
            raise FormatError(
                f"{source.name} has {count} splats and {elements[name].count} rows of '{name}'; expected {expected}. "
                "The header of the compressed PLY is damaged: export it again."
            )
    return elements


def _find_columns(source: Source, chunk: Element, vertex: Element, rest: Element | None) -> _Columns:
    """Where each value stands. Raises FormatError for columns that lack or have another type."""
    found = {p.name for p in chunk.properties}
    bounds = _BOUNDS + (_COLOR_BOUNDS if found.intersection(_COLOR_BOUNDS) else ())
    names = [p.name for p in rest.properties] if rest else []
    if len(names) not in REST_COUNTS or REST_COUNTS[len(names)] > _MAX_DEGREE or (rest and not names):
        raise FormatError(
            f"{source.name} has {len(names)} columns in the PLY element 'sh'; expected f_rest_0 to f_rest_8, 23 or 44 "
            "for SH degree 1 to 3. Export it again with whole SH degrees."
        )
    bands = len(names) // 3
    by_coefficient = [f"f_rest_{channel * bands + k}" for k in range(bands) for channel in range(3)]
    return _Columns(
        _places(source, chunk, bounds, "fd"),
        _places(source, vertex, _PACKED, "iI"),
        _places(source, rest, by_coefficient, "B") if rest else [],
    )


def _places(source: Source, element: Element, names: tuple[str, ...] | list[str], codes: str) -> list[str]:
    fields = {p.name: f"f{i}" for i, p in enumerate(element.properties) if p.code in codes}
    missing = [name for name in names if name not in fields]
    if missing:
        raise FormatError(
            f"{source.name} lacks the columns {', '.join(missing[:8])}{', ...' if len(missing) > 8 else ''} in the "
            f"PLY element '{element.name}', or has them in another type than a compressed PLY. Export it again."
        )
    return [fields[name] for name in names]
