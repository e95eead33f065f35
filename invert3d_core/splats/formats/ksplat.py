"""``.ksplat``: sections of fixed-size records behind large headers, at three levels (mkkellogg/GaussianSplats3D).

A main header of 4096 bytes, section headers of 1024 bytes each, then the sections. Level 0 stores float32; levels 1 and
2 store positions as uint16 inside cubic buckets, scales and rotations as float16, and SH as float16 or bytes. Colour
and opacity are bytes at every level.
"""

import struct
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ...errors import FormatError
from ..gaussians import GaussianSplats
from ..spherical_harmonics import C0, coefficients
from .buffer import BLOCK_BYTES, Block, SplatBuffer, normalize_quaternions
from .losses import Losses, blocks, rows
from .smallest_three import Array
from .source import Source

NAME = "ksplat"
EXTENSIONS = (".ksplat",)
LIMITS = (
    "Reads levels 0 to 2, SH degree 0 to 3; writes SH degree 0 to 2. Colour within 0..1 and opacity have 8 bits. Level "
    "0 keeps the rest; 1 has 16 bits for position, scale, rotation and SH; 2 has 8 bits for SH. No comment."
)

_MAIN = struct.Struct("<BBxxIIIIHxx3fff")
_SECTION = struct.Struct("<IIIIfHxxIIIIH")
_MAIN_BYTES, _SECTION_BYTES = 4096, 1024
_VERSION = (0, 1)
_CENTER_BYTES = 12  # of a bucket
_RANGES = (1, 32767, 32767)  # by level: how far positions reach on either side of a bucket's centre, in steps
_SH_REACH = 1.5  # of level 2, where the header says 0
_MAX_READ_DEGREE, _MAX_DEGREE = 3, 2
_LARGEST_HALF = 65504.0


class _Main(NamedTuple):
    """What the main header says."""

    level: int
    max_sections: int
    sections: int
    splats: int
    sh_low: float
    sh_high: float


class _Section(NamedTuple):
    """A section header, and where its data lie in the file."""

    count: int
    room: int  # records there is space for
    capacity: int  # of a full bucket
    buckets: int
    block_size: float
    reach: int  # steps on either side of a bucket's centre
    full: int  # buckets
    partial: int  # buckets
    degree: int
    start: int

    @property
    def centers(self) -> int:
        """The byte of the first bucket centre."""
        return self.start + 4 * self.partial

    @property
    def records(self) -> int:
        """The byte of the first record."""
        return self.centers + _CENTER_BYTES * self.buckets


def _record_type(level: int, degree: int) -> np.dtype[Any]:
    number = "<f2" if level else "<f4"
    values = 3 * (coefficients(degree) - 1)
    return np.dtype(
        [
            ("position", "<u2" if level else "<f4", 3),
            ("scale", number, 3),
            ("rotation", number, 4),
            ("rgba", "u1", 4),
            ("sh", "u1" if level == 2 else number, (values,)),
        ]
    )


def detect(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a .ksplat: there is no magic, but counts that fit each other."""
    if len(head) < _MAIN_BYTES:
        return False
    major, minor, max_sections, sections, room, count, level, *_ = _MAIN.unpack_from(head)
    plausible = 1 <= sections <= max_sections and count <= room and level < len(_RANGES) and not any(head[2:4])
    return (major, minor) == _VERSION and plausible


def read(source: Source) -> GaussianSplats:
    """The splats of a .ksplat file, in the file's order; sections of a lower SH degree are filled up with zeros.

    Records with values that are not finite or with negative scales are dropped with a warning, see
    `buffer.MAX_BAD_FRACTION`. Raises FormatError for other versions and levels, for headers that contradict each other,
    and for files shorter or longer than they say.
    """
    main = _read_main(source)
    sections = _read_sections(source, main)
    lengths = [_bucket_lengths(source, main, section) for section in sections]
    splats = SplatBuffer(main.splats, max(section.degree for section in sections if section.count))
    done = 0
    for section, filled in zip(sections, lengths, strict=True):
        stored = _read_array(source, section.centers, 3 * section.buckets, "<f4").reshape(-1, 3)
        with np.errstate(invalid="ignore"):  # a NaN may be one that signals
            centers = stored.astype(np.float64)
        ends, row_type = np.cumsum(filled), _record_type(main.level, section.degree)
        step = max(1, BLOCK_BYTES // row_type.itemsize)
        for start in range(0, section.count, step):
            stop = min(start + step, section.count)
            place = section.records + start * row_type.itemsize
            raw = _read_array(source, place, (stop - start) * row_type.itemsize, "u1").view(row_type)
            of = centers[np.searchsorted(ends, np.arange(start, stop), side="right")] if main.level else None
            out = splats.block(done + start, done + stop)
            _decode(main, section.block_size / 2 / section.reach, section.reach, raw, of, out)
            splats.check(done + start, done + stop)
        done += section.count
    return splats.finish(source)


def write(
    splats: GaussianSplats,
    file: BinaryIO,
    *,
    level: int = 1,
    block_size: float = 5.0,
) -> list[str]:
    """Write a .ksplat of one section; splats of opacity 0 are kept.

    level: 0 keeps positions, scales, rotations and SH (to degree 2) as they are; 1 halves the file; 2 has bytes for SH.
    block_size: edge of a bucket of levels 1 and 2, scene units, > 0; positions have steps of 1/65534 of it. Smaller is
        finer, and costs 12 bytes a bucket that holds splats.
    Returns what was lost, with the largest change of each kind. Raises FormatError for options out of range.
    """
    if level not in range(len(_RANGES)):
        raise FormatError(f"There is no .ksplat level {level!r}. Expected 0, 1 or 2.")
    if not 0 < block_size < float("inf"):
        raise FormatError(f"The block_size of a .ksplat is {block_size!r}; expected a length above 0, such as 5.0.")
    block_size = float(np.float32(block_size))  # as the header holds it
    losses = Losses()
    degree, count, reach = min(splats.degree, _MAX_DEGREE), len(splats), _RANGES[level]
    losses.truncate(splats, degree)
    bands, arrays = coefficients(degree), blocks(splats)
    arrays = arrays._replace(sh=arrays.sh[:, :bands])
    order, buckets = _bucket(arrays.positions, block_size) if level else (np.arange(count), _Buckets.none())
    row_type = _record_type(level, degree)
    low, high = _sh_range(arrays.sh[:, 1:])
    main = _Main(level, 1, 1, count, low, high)
    file.write(_MAIN.pack(*_VERSION, 1, 1, count, count, level, 0, 0, 0, low, high).ljust(_MAIN_BYTES, b"\0"))
    extra = _CENTER_BYTES * len(buckets.centers) + 4 * len(buckets.partial)
    fields = (_CAPACITY, len(buckets.centers), block_size, _CENTER_BYTES, reach) if level else (0, 0, 0, 0, 0)
    section = (count, count, *fields, extra + count * row_type.itemsize, buckets.full, len(buckets.partial), degree)
    file.write(_SECTION.pack(*section).ljust(_SECTION_BYTES, b"\0"))
    file.write(buckets.partial.astype("<u4").data)
    file.write(buckets.centers.data)
    ends = np.cumsum(np.concatenate([np.full(buckets.full, _CAPACITY), buckets.partial]))
    back = SplatBuffer(min(count, max(1, BLOCK_BYTES // (4 * (11 + 3 * bands)))), degree)
    for start in range(0, count, back.count):
        stop = min(start + back.count, count)
        of = None
        if level:
            of = buckets.centers[np.searchsorted(ends, np.arange(start, stop), side="right")].astype(np.float64)
        wanted = _clip(level, rows(arrays, order[start:stop]), losses)
        raw, found = np.empty(stop - start, row_type), back.block(0, stop - start)
        unit = block_size / 2 / reach
        _encode(main, unit, reach, wanted, of, raw)
        file.write(raw.data)
        _decode(main, unit, reach, raw, of, found)
        losses.compare(wanted, found)
    if bool((np.diff(order) < 0).any()):
        losses.note("the order of the splats (bucket after bucket)")
    losses.comment(splats)
    return losses.words()


# ------------------------------------------------------------------------------------------------------------- headers


def _read_main(source: Source) -> _Main:
    source.stream.seek(0)
    fields = _MAIN.unpack_from(source.read(_MAIN_BYTES))
    major, minor, max_sections, sections, _, count, level, _, _, _, low, high = fields
    if (major, minor) != _VERSION:
        raise FormatError(
            f"{source.name} is a .ksplat of version {major}.{minor}, or none; version 0.1 is supported. Check what it "
            "is, or export it again."
        )
    if level >= len(_RANGES):
        raise FormatError(
            f"{source.name}: the .ksplat header claims level {level}; expected 0, 1 or 2. The file is damaged: export "
            "it again."
        )
    if not 1 <= sections <= max_sections or _MAIN_BYTES + max_sections * _SECTION_BYTES > source.size:
        raise FormatError(
            f"{source.name}: the .ksplat header claims {sections} of {max_sections} sections, whose headers alone need "
            f"{_MAIN_BYTES + max_sections * _SECTION_BYTES} bytes of {source.size}. The file is cut short or damaged: "
            "copy or download it again."
        )
    if not count:
        raise FormatError(
            f"{source.name} holds no splats (the .ksplat header says 0). Export it again with its splats."
        )
    return _Main(level, max_sections, sections, count, low or -_SH_REACH, high or _SH_REACH)


def _read_sections(source: Source, main: _Main) -> list[_Section]:
    """The sections in use; their sizes are held against the file's before anything is made from them."""
    at, sections = _MAIN_BYTES + main.max_sections * _SECTION_BYTES, []
    for index in range(main.sections):
        source.stream.seek(_MAIN_BYTES + index * _SECTION_BYTES)
        fields = _SECTION.unpack(source.read(_SECTION.size))
        count, room, capacity, buckets, block_size, center_bytes, reach, _, full, partial, degree = fields
        if degree > _MAX_READ_DEGREE:
            raise FormatError(
                f"{source.name}: section {index + 1} of the .ksplat claims SH degree {degree}; expected 0 to "
                f"{_MAX_READ_DEGREE}. The file is damaged: export it again."
            )
        if count > room or full + partial > buckets or (buckets and center_bytes != _CENTER_BYTES):
            raise FormatError(
                f"{source.name}: section {index + 1} of the .ksplat claims {count} of {room} splats in {full} full and "
                f"{partial} other of {buckets} buckets, with centres of {center_bytes} bytes, which cannot be. The "
                "file is damaged: export it again."
            )
        reach = reach or _RANGES[main.level]
        section = _Section(count, room, capacity, buckets, block_size, reach, full, partial, degree, at)
        at = section.records + room * _record_type(main.level, degree).itemsize
        if at > source.size:
            raise FormatError(
                f"{source.name}: section {index + 1} of the .ksplat claims {count} splats of SH degree {degree}, up to "
                f"byte {at}, but the file has {source.size}. It is cut short or its header is wrong: copy or download "
                "it again."
            )
        sections.append(section)
    if at != source.size or sum(section.count for section in sections) != main.splats:
        raise FormatError(
            f"{source.name} has {source.size} bytes and, says its main header, {main.splats} splats; its sections have "
            f"{sum(section.count for section in sections)} and end at byte {at}. The file is damaged: copy or download "
            "it again."
        )
    return sections


def _bucket_lengths(source: Source, main: _Main, section: _Section) -> Array:
    """How many splats each bucket in use holds, full ones first. Raises FormatError unless they hold the section's."""
    if not main.level:
        return np.zeros(0, np.int64)
    partial = _read_array(source, section.start, section.partial, "<u4").astype(np.int64)
    lengths = np.concatenate([np.full(section.full, section.capacity, np.int64), partial])
    if lengths.sum() != section.count:
        raise FormatError(
            f"{source.name}: the buckets of a .ksplat section hold {lengths.sum()} splats, but it claims "
            f"{section.count}. The file is damaged: export it again."
        )
    return lengths


def _read_array(source: Source, start: int, count: int, kind: str) -> Array:
    data = np.empty(count * np.dtype(kind).itemsize, np.uint8)
    source.stream.seek(start)
    source.read_into(data)
    return data.view(kind)


# ------------------------------------------------------------------------------------------------------------- buckets

_CAPACITY = 256


class _Buckets(NamedTuple):
    """Cubes of one edge length with splats in them, full ones first."""

    full: int
    partial: Array  # (p,) splats in each of the others
    centers: Array  # (full + p, 3) float32

    @classmethod
    def none(cls) -> "_Buckets":
        return cls(0, np.zeros(0, np.int64), np.zeros((0, 3), "<f4"))


def _bucket(
    positions: Array,  # (N,3)
    block_size: float,
) -> tuple[Array, _Buckets]:
    """An order of the splats in which buckets are filled one after another, and the buckets."""
    cells = np.floor(positions / block_size)
    order = np.lexsort((cells[:, 2], cells[:, 1], cells[:, 0]))
    cells = cells[order]
    new = np.ones(len(cells), bool)
    new[1:] = (cells[1:] != cells[:-1]).any(axis=1)
    starts = np.flatnonzero(new)
    lengths = np.diff(starts, append=len(cells))
    full, rest = np.divmod(lengths, _CAPACITY)
    rank = np.arange(len(cells)) - np.repeat(starts, lengths)
    in_full = rank < np.repeat(full * _CAPACITY, lengths)
    centers = ((cells[starts].astype(np.float64) + 0.5) * block_size).astype("<f4")
    centers = np.concatenate([np.repeat(centers, full, axis=0), centers[rest > 0]])
    order = np.concatenate([order[in_full], order[~in_full]])
    return order, _Buckets(int(full.sum()), rest[rest > 0], centers)


# ------------------------------------------------------------------------------------------------------------- values


def _sh_range(
    rest: Array,  # (N,K−1,3)
) -> tuple[float, float]:
    """What bytes 0 and 255 of a coefficient stand for: all of them, with a byte for 0; one is never 0 itself."""
    if not rest.size:
        return -_SH_REACH, _SH_REACH
    step = max(float(rest.max()) / 127, -float(rest.min()) / 128, 1e-6)
    # With 16 bits, so that float32 holds both ends exactly, and byte 128 is exactly 0.
    share, exponent = np.frexp(step)
    step = float(np.ldexp(np.ceil(share * 65536), exponent - 16))
    return -128 * step, 127 * step


def _coefficient_order(count: int) -> list[int]:
    """Where the stored values of a record, degree after degree and channel after channel, stand in (K−1,3)."""
    order = []
    for degree in range(1, _MAX_READ_DEGREE + 1):
        bands = range(coefficients(degree - 1) - 1, coefficients(degree) - 1)
        order += [3 * k + channel for channel in range(3) for k in bands]
    return order[:count]


def _clip(level: int, block: Block, losses: Losses) -> Block:
    sh = block.sh
    dc = losses.clip(sh[:, 0], -0.5 / C0, 0.5 / C0, "colours outside 0..1")
    if level == 1:
        sh = losses.clip(sh, -_LARGEST_HALF, _LARGEST_HALF, "view-dependent colour coefficients beyond ±65504")
    scales = losses.clip(block.scales, 0, _LARGEST_HALF, "scales above 65504") if level else block.scales
    return block._replace(scales=scales, sh=np.concatenate([dc[:, None], sh[:, 1:]], axis=1))


def _encode(main: _Main, unit: float, reach: int, block: Block, centers: Array | None, out: Array) -> None:
    n = len(out)
    if centers is None:
        out["position"] = block.positions
    else:
        out["position"] = np.rint((block.positions - centers) / unit + reach).clip(0, 2 * reach)
    out["scale"] = block.scales
    out["rotation"] = block.rotations
    out["rgba"][:, :3] = np.rint((0.5 + C0 * block.sh[:, 0]).clip(0, 1) * 255)
    out["rgba"][:, 3:] = np.rint(block.opacities * 255)
    rest = block.sh[:, 1:].reshape(n, -1)
    rest = rest[:, _coefficient_order(rest.shape[1])]
    if main.level == 2:
        rest = np.rint((rest - main.sh_low) / (main.sh_high - main.sh_low) * 255).clip(0, 255)
    out["sh"] = rest


def _decode(main: _Main, unit: float, reach: int, raw: Array, centers: Array | None, out: Block) -> None:
    n = len(raw)
    with np.errstate(all="ignore"):
        out.positions[:] = raw["position"] if centers is None else (raw["position"] - float(reach)) * unit + centers
    out.scales[:] = raw["scale"]
    out.opacities[:] = raw["rgba"][:, 3:] / np.float32(255)
    out.sh[:, 0] = (raw["rgba"][:, :3] / 255 - 0.5) / C0
    normalize_quaternions(raw["rotation"].astype(np.float32), out.rotations)
    stored = raw["sh"].reshape(n, -1)
    rest = np.zeros((n, 3 * (out.sh.shape[1] - 1)), np.float32)
    order = _coefficient_order(stored.shape[1])
    with np.errstate(all="ignore"):
        if main.level == 2:
            rest[:, order] = stored * (main.sh_high - main.sh_low) / 255 + main.sh_low
        else:
            rest[:, order] = stored
    out.sh[:, 1:] = rest.reshape(n, -1, 3)
