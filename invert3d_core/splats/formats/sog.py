"""``.sog``: splats as pictures, a texel a splat, in a zip or a folder with ``meta.json`` (playcanvas/splat-transform).

Positions have 16 bits of a logarithmic range; scales, colours and SH are entries of codebooks; the SH of a splat are
one row of a palette. Version 2 is read and written, version 1 (ranges instead of codebooks) is read.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ...errors import FormatError
from ...progress import Progress, no_progress
from .. import spherical_harmonics
from ..gaussians import GaussianSplats
from . import smallest_three, webp
from .buffer import BLOCK_BYTES, Block, Floats, SplatBuffer, normalize_quaternions
from .bundle import FolderParts, Parts, ZipParts, write_beside, write_zip
from .codebooks import nearest_scalars, scalar_codebook, vector_codebook
from .compressed_ply import morton_order
from .json_header import MAX_JSON_BYTES, Fields, parse
from .losses import Losses, blocks, rows
from .source import FOLDER_FILE, Source
from .webp import Bytes

NAME = "sog"
EXTENSIONS = (".sog",)
LIMITS = (
    "Reads versions 1 and 2 and writes version 2, bundled or as a folder with meta.json. SH degree 0 to 3, each "
    "splat's from a palette of at most 65,536; scales and colours have 256 values, opacity 8 bits, positions 16 bits "
    "of a logarithmic range, rotation 8 bits a part. Keeps the comment."
)

MAX_DEGREE = 3
MAX_PALETTE = 1 << 16

_ZIP = b"PK\x03\x04"
_MAX_COUNT = webp.MAX_SIDE**2
_CODEBOOK = 256
_ROW = 64  # entries of the palette side by side
_ZERO_LOG = -110.0  # a logarithm that stands for exactly 0 and is finite
_FIRST_TAG = 252  # of the largest part of a quaternion, in its alpha
_MAX_COMMENT = 1 << 16  # characters, of which one may take twelve bytes of JSON
_SPARE_TEXELS = 1 << 16
_FREE_BYTES = 48 << 20  # of splats and pictures, whatever the size of the file
_TEXEL_BYTES = 24  # that decoding a picture takes, with what Pillow needs

Doubles = np.ndarray[Any, np.dtype[np.float64]]
Lookup = Callable[[Bytes], Floats]


@dataclass(frozen=True)
class _Palette:
    """SH of several splats: two pictures, and how bytes become coefficients.

    count, degree: None in version 1, where the size of the first picture says them.
    """

    centroids: str
    labels: str
    values: Lookup
    count: int | None
    degree: int | None


@dataclass(frozen=True)
class _Meta:
    """What a meta.json says, of either version: pictures, and how their bytes become values."""

    count: int
    low: Doubles  # (3,)
    high: Doubles  # (3,)
    positions: list[str]
    rotations: str
    scales: str
    colors: str
    log_scales: Lookup  # of (n,3) bytes
    dc: Lookup  # of (n,3) bytes
    opacities: Lookup  # of (n,1) bytes
    palette: _Palette | None
    comment: str

    @property
    def pictures(self) -> list[str]:
        """Those with a texel a splat."""
        labels = [self.palette.labels] if self.palette else []
        return [*self.positions, self.rotations, self.scales, self.colors, *labels]


def detect(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a SOG: a zip with one of its files in front, or its meta.json."""
    if head.startswith(_ZIP):
        name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return name.endswith((FOLDER_FILE.encode(), b".webp", b"/"))
    return head.lstrip()[:1] == b"{" and all(key in head for key in (b'"means"', b'"quats"', b'"files"'))


def read(source: Source) -> GaussianSplats:
    """The splats of a SOG, in the file's order; a splat without an entry in the palette has no view-dependent colour.

    Splats with values that are not finite are dropped with a warning, see `buffer.MAX_BAD_FRACTION`.
    Raises FormatError for damaged and missing parts, and where pictures are not of the size that the header says.
    """
    source.stream.seek(0)
    parts: Parts
    if source.head().startswith(_ZIP):
        parts = ZipParts(source, FOLDER_FILE)
        text = parts.read(FOLDER_FILE)
    else:
        parts, text = FolderParts(source), b""
        if source.size <= MAX_JSON_BYTES:
            text = source.read(source.size)
    meta = _read_meta(parse(source, text, FOLDER_FILE))
    double = next((name for name in meta.pictures if meta.pictures.count(name) > 1), None)
    if double is not None:
        raise FormatError(
            f"{source.name}: its {FOLDER_FILE} names the picture '{double}' for two things; expected one for each. The "
            "file is damaged: export it again."
        )
    data = {name: parts.read(name) for name in meta.pictures}
    table = _read_palette(source, meta.palette, parts) if meta.palette else np.empty((0, 0, 3), np.float32)
    degree = round((1 + table.shape[1]) ** 0.5) - 1
    _check_sizes(source, meta, data, degree, parts.size)
    splats = SplatBuffer(meta.count, degree)

    def texels(name: str) -> Bytes:  # (N,4)
        return webp.decode(source, name, data.pop(name)).reshape(-1, 4)[: meta.count]

    lower, upper = map(texels, meta.positions)
    for part, out in _parts(splats):
        _place(lower[part, :3], upper[part, :3], meta.low, meta.high, out.positions)
    del lower, upper
    stored = texels(meta.rotations)
    for part, out in _parts(splats):
        _turn(stored[part], out.rotations)
    stored = texels(meta.scales)
    for part, out in _parts(splats):
        with np.errstate(over="ignore"):
            np.exp(meta.log_scales(stored[part, :3]), out=out.scales)
    stored = texels(meta.colors)
    for part, out in _parts(splats):
        out.sh[:, 0] = meta.dc(stored[part, :3])
        out.opacities[:] = meta.opacities(stored[part, 3:])
    if meta.palette:
        stored = texels(meta.palette.labels)
        for part, out in _parts(splats):
            labels = stored[part, 0] | stored[part, 1].astype(np.uint16) << 8
            np.take(table, labels, axis=0, out=out.sh[:, 1:], mode="clip")  # the last row is for labels without entry
    for part, _ in _parts(splats):
        splats.check(part.start, part.stop)
    return splats.finish(source, meta.comment)


def write(
    splats: GaussianSplats,
    file: BinaryIO,
    *,
    sort: bool = True,
    palette: int = MAX_PALETTE,
    iterations: int = 8,
    seed: int = 0,
    progress: Progress = no_progress,
    folder: Path | None = None,
) -> list[str]:
    """Write a SOG of version 2, bundled; the same splats and options give the same bytes.

    sort: along a Morton curve, which makes the pictures smaller; False keeps the order.
    palette: how many sets of view-dependent coefficients may be kept, 1 to 65,536; no more splats than that keep
        their own. iterations: rounds of k-means that find them. seed: of its random starts.
    progress: called while they are sought, the one long step: some seconds for 100,000 splats of degree 3, a minute
        for a million.
    folder: write an unbundled SOG instead: pictures into this folder, and only the meta.json, which names them, to the
        file. `splats.save` does so for a path that ends in meta.json.

    Returns what was lost, with the largest change of each kind. Raises FormatError for more splats than pictures have
    texels, and for a comment longer than a header may be; ValueError for options out of range.
    """
    if not 1 <= palette <= MAX_PALETTE or iterations < 1:
        raise ValueError(f"sog: palette is {palette}, iterations {iterations}; expected 1 to {MAX_PALETTE}, at least 1")
    count, degree = len(splats), min(splats.degree, MAX_DEGREE)
    if count > _MAX_COUNT:
        raise FormatError(
            f"{count} splats do not fit a .sog, which holds {_MAX_COUNT}. Leave out splats, or write a .ply."
        )
    if len(splats.comment) > _MAX_COMMENT:
        raise FormatError(
            f"The comment of the splats has {len(splats.comment)} characters; a .sog may have {_MAX_COMMENT}. Shorten "
            "the comment."
        )
    losses = Losses()
    losses.truncate(splats, degree)
    arrays = blocks(splats)
    order = morton_order(arrays.positions) if sort else np.arange(count)
    arrays = rows(arrays._replace(sh=arrays.sh[:, : spherical_harmonics.coefficients(degree)]), order)
    coded = _encode(arrays)
    pictures = {
        "means_l": _picture(coded.lower),
        "means_u": _picture(coded.upper),
        "quats": _picture(coded.rotations),
        "scales": _picture(coded.scales),
        "sh0": _picture(coded.colors),
    }
    meta: dict[str, dict[str, Any]] = {
        "means": {"mins": coded.low.tolist(), "maxs": coded.high.tolist(), "files": ["means_l", "means_u"]},
        "scales": {"codebook": _numbers(coded.scale_book), "files": ["scales"]},
        "quats": {"files": ["quats"]},
        "sh0": {"codebook": _numbers(coded.color_book), "files": ["sh0"]},
    }
    table, labels = np.empty((1, 0, 3), np.float32), np.zeros(count, np.int64)
    if degree:
        rest = torch.from_numpy(np.ascontiguousarray(arrays.sh[:, 1:]).reshape(count, -1))
        found, chosen = vector_codebook(rest, palette, iterations, seed, progress)
        entries, labels = found.numpy().reshape(len(found), -1, 3), chosen.numpy()
        book = _full(scalar_codebook(entries.reshape(-1), _CODEBOOK))
        codes = nearest_scalars(entries, book)
        table = book[codes]
        pictures["shN_centroids"] = _palette_picture(codes)
        pictures["shN_labels"] = _picture(np.stack([labels & 255, labels >> 8, 0 * labels], 1).astype(np.uint8))
        files = ["shN_centroids", "shN_labels"]
        meta["shN"] = {"count": len(table), "bands": degree, "codebook": _numbers(book), "files": files}
    back = SplatBuffer(min(count, _rows(degree)), degree)
    for start in range(0, count, back.count):
        part = slice(start, min(start + back.count, count))
        out = back.block(0, part.stop - start)
        _decode(coded, part, out)
        out.sh[:, 1:] = table[labels[part]]
        losses.compare(Block(*(array[part] for array in arrays)), out)
    if bool((np.diff(order) < 0).any()):
        losses.note("the order of the splats (along a Morton curve)")
    _put(file, folder, meta, pictures, count, splats.comment)
    return losses.words()


# ------------------------------------------------------------------------------------------------------------- reading


def _read_meta(fields: Fields) -> _Meta:
    version = fields.integer("version", 1, 1 << 30, 1)
    if version > 2:
        raise FormatError(
            f"{fields.source.name} is a .sog of version {version}; 1 and 2 are supported. Export it again as .ply."
        )
    means, scales, colors = fields.fields("means"), fields.fields("scales"), fields.fields("sh0")
    low, high = (np.array(means.numbers(name, 3), np.float64) for name in ("mins", "maxs"))
    if version == 1:
        shape = means.values_of("shape")
        sizes = Fields(fields.source, "'shape' of 'means'", {"0": shape[0]} if shape else {})
        count = sizes.integer("0", 1, _MAX_COUNT)
        log_scales = _range(scales.numbers("mins", 3), scales.numbers("maxs", 3))
        first, last = colors.numbers("mins", 4), colors.numbers("maxs", 4)
        dc, opacities = _range(first[:3], last[:3]), _sigmoid_of(_range(first[3:], last[3:]))
    else:
        count = fields.integer("count", 1, _MAX_COUNT)
        log_scales, dc, opacities = _codebook(scales), _codebook(colors), _range([0.0], [1.0])
    asset = fields.values.get("asset")
    comment = asset.get("comment") if isinstance(asset, dict) else None
    return _Meta(
        count=count,
        low=low,
        high=high,
        positions=_files(means, 2),
        rotations=_files(fields.fields("quats"), 1)[0],
        scales=_files(scales, 1)[0],
        colors=_files(colors, 1)[0],
        log_scales=log_scales,
        dc=dc,
        opacities=opacities,
        palette=_palette(fields.fields("shN"), version) if fields.values.get("shN") is not None else None,
        comment=comment if isinstance(comment, str) else "",
    )


def _palette(fields: Fields, version: int) -> _Palette:
    centroids, labels = _files(fields, 2)
    if version == 1:
        values = _range([fields.number("mins")], [fields.number("maxs")])
        return _Palette(centroids, labels, values, None, None)
    count, degree = fields.integer("count", 1, MAX_PALETTE), fields.integer("bands", 1, MAX_DEGREE)
    return _Palette(centroids, labels, _codebook(fields), count, degree)


def _files(fields: Fields, count: int) -> list[str]:
    files = fields.values_of("files")
    if len(files) != count or len(set(map(str, files))) != count or not all(isinstance(name, str) for name in files):
        raise fields.wrong("files", f"{count} names of pictures")
    return files


def _codebook(fields: Fields) -> Lookup:
    book = np.array(fields.numbers("codebook", _CODEBOOK), np.float32)
    return lambda stored: book[stored]


def _range(low: list[float], high: list[float]) -> Lookup:
    start, span = np.array(low), np.array(high) - low
    return lambda stored: (start + span * (stored / 255)).astype(np.float32)


def _sigmoid_of(logits: Lookup) -> Lookup:
    def opacities(stored: Bytes) -> Floats:
        with np.errstate(over="ignore"):
            return np.reciprocal(1 + np.exp(-logits(stored)))

    return opacities


def _read_palette(source: Source, palette: _Palette, parts: Parts) -> Floats:  # (count + 1,K,3)
    """The entries, and zeros after the last, for labels that have none."""
    name, data = palette.centroids, parts.read(palette.centroids)
    width, height = webp.size_of(source, name, data)
    bands = {spherical_harmonics.coefficients(degree) - 1: degree for degree in range(1, MAX_DEGREE + 1)}
    if palette.degree is not None:
        bands = {k: degree for k, degree in bands.items() if degree == palette.degree}
    count = palette.count or _ROW * height
    if width % _ROW or width // _ROW not in bands or not count <= _ROW * height <= MAX_PALETTE:
        widths = " or ".join(str(_ROW * k) for k in bands)
        raise FormatError(
            f"{source.name}: the picture '{name}' of view-dependent colours has {width} by {height} pixels; expected a "
            f"width of {widths}, and rows for {count} entries, {_ROW} a row. Export it again."
        )
    codes = webp.decode(source, name, data)[..., :3].reshape(_ROW * height, width // _ROW, 3)[:count]
    table = np.zeros((count + 1, width // _ROW, 3), np.float32)
    table[:count] = palette.values(codes)
    return table


def _check_sizes(source: Source, meta: _Meta, data: dict[str, bytes], degree: int, size: int) -> None:
    """Raise FormatError before memory is taken: for pictures too small or far too large, and for too many splats."""
    most = 0
    for name in meta.pictures:
        width, height = webp.size_of(source, name, data[name])
        texels = width * height
        if not meta.count <= texels <= 2 * meta.count + _SPARE_TEXELS:
            raise FormatError(
                f"{source.name}: the picture '{name}' has {width} by {height} pixels, and the .sog says that it holds "
                f"{meta.count} splats, a pixel each. The file is damaged: export it again."
            )
        most = max(most, texels)
    needed = 4 * meta.count * (8 + 3 * spherical_harmonics.coefficients(degree)) + _TEXEL_BYTES * most
    if needed > _FREE_BYTES and meta.count > size:
        raise FormatError(
            f"{source.name}: it claims {meta.count} splats in {size} bytes. No .sog is that small: the file is damaged."
        )


def _parts(splats: SplatBuffer) -> Iterator[tuple[slice, Block]]:
    """The splats, so many at a time that they stay in the cache."""
    step = _rows(round(splats.arrays.sh.shape[1] ** 0.5) - 1)
    for start in range(0, splats.count, step):
        part = slice(start, min(start + step, splats.count))
        yield part, splats.block(part.start, part.stop)


def _rows(degree: int) -> int:
    return BLOCK_BYTES // (4 * (11 + 3 * spherical_harmonics.coefficients(degree)))


def _place(lower: Bytes, upper: Bytes, low: Doubles, high: Doubles, out: Floats) -> None:
    span = np.where(high > low, high - low, 1.0)
    logs = low + span * ((lower | upper.astype(np.uint16) << 8) / 65535)
    with np.errstate(over="ignore"):
        out[:] = np.sign(logs) * np.expm1(np.abs(logs))


def _turn(
    stored: Bytes,  # (n,4)
    out: Floats,  # (n,4)
) -> None:
    tags = stored[:, 3]
    known = tags >= _FIRST_TAG
    largest = np.where(known, tags - np.minimum(tags, _FIRST_TAG), 0)
    # An unknown tag means no rotation.
    normalize_quaternions(smallest_three.join(largest, _part(stored[:, :3]) * known[:, None]), out)


def _part(codes: np.ndarray[Any, Any]) -> Doubles:
    """A part of a quaternion, which is in ±√½ because another is larger."""
    return (codes / 255 * 2 - 1) / np.sqrt(2)


# ------------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class _Coded:
    """All but the view-dependent colour, as bytes and what they mean."""

    low: Doubles  # (3,)
    high: Doubles  # (3,)
    scale_book: Floats  # (256,)
    color_book: Floats  # (256,)
    lower: Bytes  # (N,3)
    upper: Bytes  # (N,3)
    rotations: Bytes  # (N,4)
    scales: Bytes  # (N,3)
    colors: Bytes  # (N,4)


def _encode(arrays: Block) -> _Coded:
    positions = arrays.positions.astype(np.float64)
    logs = np.sign(positions) * np.log1p(np.abs(positions))
    low, high = logs.min(axis=0), logs.max(axis=0)
    fixed = np.rint((logs - low) / np.where(high > low, high - low, 1.0) * 65535).astype(np.uint16)

    largest, others = smallest_three.split(arrays.rotations)
    codes = np.rint((others * np.sqrt(2) + 1) / 2 * 255).astype(np.int16)
    smallest_three.settle(codes, 127.5, _part)
    rotations = np.concatenate([codes, _FIRST_TAG + largest[:, None]], axis=1).astype(np.uint8)

    with np.errstate(divide="ignore"):
        log_scales = np.log(arrays.scales)
    flat = np.isneginf(log_scales)
    zero = np.full(int(flat.any()), _ZERO_LOG, np.float32)
    others = log_scales[~flat]
    book = scalar_codebook(others, _CODEBOOK - len(zero)) if len(others) else zero[:0]
    scale_book = _full(np.concatenate([zero, book]))
    color_book = _full(scalar_codebook(arrays.sh[:, 0].reshape(-1), _CODEBOOK))
    colors = [nearest_scalars(arrays.sh[:, 0], color_book), np.rint(arrays.opacities * 255).astype(np.uint8)]
    return _Coded(
        low=low,
        high=high,
        scale_book=scale_book,
        color_book=color_book,
        lower=(fixed & 255).astype(np.uint8),
        upper=(fixed >> 8).astype(np.uint8),
        rotations=rotations,
        scales=nearest_scalars(log_scales, scale_book),
        colors=np.concatenate(colors, axis=1),
    )


def _decode(coded: _Coded, part: slice, out: Block) -> None:
    """What comes back of some splats, but for the view-dependent colour."""
    _place(coded.lower[part], coded.upper[part], coded.low, coded.high, out.positions)
    _turn(coded.rotations[part], out.rotations)
    np.exp(coded.scale_book[coded.scales[part]], out=out.scales)
    out.sh[:, 0] = coded.color_book[coded.colors[part, :3]]
    out.opacities[:] = coded.colors[part, 3:] / np.float32(255)


def _full(book: Floats) -> Floats:  # (256,)
    """A codebook of the length that readers expect; its last entry fills the rest."""
    return np.concatenate([book, np.full(_CODEBOOK - len(book), book[-1], np.float32)])


def _numbers(values: Floats) -> list[float]:
    """Float32 numbers in as few digits as tell them apart."""
    return [float(text) for text in values.astype(str)]


def _picture(
    texels: Bytes,  # (N,C)
) -> Bytes:  # (H,W,C)
    """The texels row after row in about a square, zeros after the last."""
    width = math.isqrt(len(texels) - 1) + 1
    height = -(-len(texels) // width)
    full = np.zeros((height * width, texels.shape[1]), np.uint8)
    full[: len(texels)] = texels
    return full.reshape(height, width, -1)


def _palette_picture(
    codes: Bytes,  # (E,K,3)
) -> Bytes:  # (⌈E/64⌉,64 K,3)
    full = np.zeros((-(-len(codes) // _ROW) * _ROW, *codes.shape[1:]), np.uint8)
    full[: len(codes)] = codes
    return full.reshape(-1, _ROW * codes.shape[1], 3)


def _put(
    file: BinaryIO,
    folder: Path | None,
    meta: dict[str, dict[str, Any]],
    pictures: dict[str, Bytes],
    count: int,
    comment: str,
) -> None:
    """Write a bundle, or the meta.json of a folder and the pictures into it."""
    data = {f"{name}.webp": webp.encode(pixels) for name, pixels in pictures.items()}
    names = write_beside(folder, data) if folder else {name: name for name in data}
    for part in meta.values():
        part["files"] = [names[f"{name}.webp"] for name in part["files"]]
    head = {"version": 2, "asset": {"generator": "Invert3D", "comment": comment}, "count": count}
    text = json.dumps({**head, **meta}, separators=(",", ":")).encode("ascii")
    if folder:
        file.write(text)
    else:
        write_zip(file, {FOLDER_FILE: text, **data})
