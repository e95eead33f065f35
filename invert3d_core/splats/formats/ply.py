"""The standard 3DGS PLY: one row a splat, read by the names of its columns.

Layout of the reference implementation of 3D Gaussian Splatting (Kerbl et al. 2023): centre ``x y z``, DC ``f_dc_0..2``,
the other SH coefficients ``f_rest_*`` channel after channel, ``opacity`` as logit, ``scale_*`` as natural logarithms,
``rot_*`` as quaternion w,x,y,z of any length. Others' variants: no ``scale_2`` (2D Gaussian Splatting, Huang et al.
2024), ``scale_0`` alone (spheres), ``red green blue`` for the DC, ``filter_3D`` (Mip-Splatting, Yu et al. 2024).
"""

from typing import BinaryIO, NamedTuple

import numpy as np

from ...errors import FormatError
from ..gaussians import GaussianSplats
from ..spherical_harmonics import C0
from . import compressed_ply
from .buffer import BLOCK_BYTES, Block, Floats, SplatBuffer, normalize_quaternions
from .ply_header import (
    REST_COUNTS,
    Element,
    Header,
    check_room,
    expect_end,
    header_bytes,
    next_line,
    read_header,
    skip_elements,
)
from .source import Source

NAME = "ply"
EXTENSIONS = (".ply",)
LIMITS = (
    "Reads binary (either byte order) and ASCII files, SH degree 0 to 4, columns of any order and type, extra columns "
    "and elements; flat splats (2DGS), spheres, colours as red, green, blue, and Mip-Splatting's filter_3D. Writes "
    "binary little endian with everything kept. No codebook-compressed files, no plain point clouds."
)

_POSITION = ("x", "y", "z")
_NORMAL = ("nx", "ny", "nz")
_DC = ("f_dc_0", "f_dc_1", "f_dc_2")
_RGB = ("red", "green", "blue")
_ROTATION = ("rot_0", "rot_1", "rot_2", "rot_3")
_MAX_VALUE_BYTES = 256  # of one number in an ASCII file

# Logarithm and logit that stand for exactly 0 (they underflow when read back) and finite, because other readers throw
# splats with infinite columns away. A logit of 20 rounds to opacity 1.
_ZERO_LOG = -110.0
_ZERO_LOGIT, _ONE_LOGIT = -110.0, 20.0


class _Columns(NamedTuple):
    """Where each group of values stands in a row of floats."""

    position: list[int]
    sh: list[int]  # coefficient after coefficient, r g b inside
    opacity: list[int]
    scale: list[int]  # two for 2DGS, one for spheres
    rotation: list[int]
    smoothing: list[int]  # the filter of Mip-Splatting, or none
    rgb_unit: float = 0.0  # not 0: sh holds colours that are 1 at 1 / rgb_unit


def detect(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a PLY, and not a compressed one."""
    return head.startswith((b"ply\n", b"ply\r\n")) and not compressed_ply.detect(head)


def read(source: Source) -> GaussianSplats:
    """The splats of a 3DGS PLY; header comments become the comment.

    Rows with values that are not finite are dropped with a warning, see `buffer.MAX_BAD_FRACTION`; infinite logits and
    log-scales of −infinity are legitimate (opacity 0 or 1, a flat splat). A zero quaternion becomes the identity.
    A column filter_3D is applied: scales become √(s² + f²), and opacity shrinks as the splat grows (the 3D
    smoothing filter of Mip-Splatting).
    Raises FormatError for other PLY dialects, missing columns, and files shorter or longer than their header says.
    """
    header = read_header(source)
    if any(p.name == "packed_position" for element in header.elements for p in element.properties):
        return compressed_ply.read(source)  # a header so long that its start does not tell
    vertex = _vertex_element(source, header)
    columns = _find_columns(source, vertex)
    before = header.elements.index(vertex)
    skip_elements(source, header, header.elements[:before])
    check_room(source, header, vertex)
    _remark_unread(source, header, vertex, columns)
    splats = SplatBuffer(vertex.count, REST_COUNTS[len(columns.sh) - 3])
    if header.is_ascii:
        _read_text(source, vertex, columns, splats)
    else:
        _read_binary(source, header, vertex, columns, splats)
    skip_elements(source, header, header.elements[before + 1 :])
    expect_end(source)
    return splats.finish(source, "\n".join(header.comments))


def write(
    splats: GaussianSplats,
    file: BinaryIO,
) -> list[str]:
    """Write the 62 columns of the reference (fewer at a lower SH degree), binary little endian; normals are 0.

    Nothing of the splats is lost: values come back within float32 rounding, and scales of 0 and opacities of 0 and 1
    exactly. Returns what was lost of the comment. Raises FormatError for a comment that no header can hold.
    """
    degree_columns = 3 * (splats.sh.shape[1] - 1)
    names = [
        *_POSITION,
        *_NORMAL,
        *_DC,
        *(f"f_rest_{i}" for i in range(degree_columns)),
        "opacity",
        *("scale_0", "scale_1", "scale_2"),
        *_ROTATION,
    ]
    head, lost = header_bytes([("vertex", len(splats), [("float", name) for name in names])], splats.comment)
    file.write(head)
    arrays = [
        t.detach().cpu().numpy()
        for t in (splats.positions, splats.scales, splats.rotations, splats.opacities, splats.sh)
    ]
    step = max(1, BLOCK_BYTES // (4 * len(names)))
    rows = np.zeros((step, len(names)), "<f4")
    rest = 9 + degree_columns
    for start in range(0, len(splats), step):
        block = Block(*(array[start : start + step] for array in arrays))
        n = len(block.positions)
        rows[:n, 0:3] = block.positions
        rows[:n, 6:9] = block.sh[:, 0]
        rows[:n, 9:rest] = block.sh[:, 1:].transpose(0, 2, 1).reshape(n, degree_columns)
        # In float64: the file's rounding is then the only one.
        with np.errstate(divide="ignore"):
            opacity = block.opacities.astype(np.float64)
            logit = np.clip(np.log(opacity) - np.log1p(-opacity), None, _ONE_LOGIT)
            rows[:n, rest : rest + 1] = np.where(opacity > 0, logit, _ZERO_LOGIT)
            scale = block.scales.astype(np.float64)
            rows[:n, rest + 1 : rest + 4] = np.where(scale > 0, np.log(scale), _ZERO_LOG)
        rows[:n, rest + 4 :] = block.rotations
        file.write(rows[:n].data)
    return lost


def _vertex_element(source: Source, header: Header) -> Element:
    """The element that holds the splats. Raises FormatError for dialects that hold them otherwise, and for none."""
    named = {element.name for element in header.elements}
    columns = {p.name for element in header.elements for p in element.properties}
    codebook = next((name for name in (*sorted(named), *sorted(columns)) if "codebook" in name), None)
    if codebook is not None:
        raise FormatError(
            f"{source.name} is a codebook-compressed PLY (it has '{codebook}'), which is not supported. Export it "
            "again as a standard, uncompressed 3DGS .ply."
        )
    vertices = [element for element in header.elements if element.name == "vertex"]
    if len(vertices) != 1:
        raise FormatError(
            f"{source.name} has {len(vertices)} PLY elements 'vertex' (elements: {_listed(sorted(named))}); "
            "a 3DGS file has exactly one. Check that it is a Gaussian-splat PLY."
        )
    (vertex,) = vertices
    if not columns.intersection(_DC) and not columns.intersection(_ROTATION):
        anchors = next((name for name in columns if name.startswith("f_anchor")), None)
        if anchors is not None:
            raise FormatError(
                f"{source.name} holds the anchors of a Scaffold-GS model (it has '{anchors}'), whose splats come "
                "out of a network that the file does not hold. Export its splats as a standard 3DGS .ply."
            )
        faces = " or mesh" if "face" in named else ""
        raise FormatError(
            f"{source.name} is a point cloud{faces}, not a Gaussian splat: its vertices have no columns f_dc_0..2 "
            f"(found {_listed([p.name for p in vertex.properties])}). Train or export Gaussian splats."
        )
    if vertex.has_lists:
        raise FormatError(
            f"{source.name}: the PLY element 'vertex' has a list column, which no Gaussian-splat file has. "
            "Export it again without."
        )
    if not vertex.count:
        raise FormatError(f"{source.name} holds no splats ('element vertex 0'). Export it again with its splats.")
    return vertex


def _find_columns(source: Source, vertex: Element) -> _Columns:
    """Where each value stands. Raises FormatError for columns that lack, come twice, or are no whole SH degree."""
    names = [p.name for p in vertex.properties]
    where = {name: index for index, name in enumerate(names)}
    if len(where) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise FormatError(f"{source.name} has the PLY column '{double}' more than once. Export it again.")
    scale = [name for name in ("scale_0", "scale_1", "scale_2") if name in where] or ["scale_0"]
    if "scale_2" in where:
        scale = ["scale_0", "scale_1", "scale_2"]
    rgb = not where.keys() & set(_DC) and where.keys() >= set(_RGB)
    color = _RGB if rgb else _DC
    missing = [name for name in (*_POSITION, *color, "opacity", *scale, *_ROTATION) if name not in where]
    if missing:
        raise FormatError(
            f"{source.name} lacks the PLY columns {', '.join(missing)} of a Gaussian splat (found {_listed(names)}). "
            "Export it as a standard 3DGS .ply."
        )
    rest = [name for name in names if name.startswith("f_rest_")]
    if len(rest) not in REST_COUNTS or any(f"f_rest_{i}" not in where for i in range(len(rest))):
        raise FormatError(
            f"{source.name} has {len(rest)} PLY columns f_rest_*; expected f_rest_0 to f_rest_8, 23, 44 or 71 for SH "
            "degree 1 to 4, or none. Export it again with whole SH degrees."
        )
    bands = len(rest) // 3
    by_coefficient = (f"f_rest_{channel * bands + k}" for k in range(bands) for channel in range(3))
    smoothing = [name for name in ("filter_3D",) if name in where]
    groups = (_POSITION, (*color, *by_coefficient), ("opacity",), scale, _ROTATION, smoothing)
    # As bytes of 0 to 255, or as numbers from 0 to 1.
    unit = 1.0 if vertex.properties[where[color[0]]].code in "fd" else 1 / 255
    return _Columns(*([where[name] for name in group] for group in groups), rgb_unit=unit if rgb else 0.0)


def _remark_unread(source: Source, header: Header, vertex: Element, columns: _Columns) -> None:
    """Say which columns and elements have no place in splats; normals are 0 in the files of most programs."""
    used = {index for group in columns[:-1] for index in group}
    names = [p.name for index, p in enumerate(vertex.properties) if index not in used and p.name not in _NORMAL]
    if names:
        source.remark(f"the PLY columns {_listed(names)} have no place in splats and were left out")
    elements = [element.name for element in header.elements if element is not vertex and element.count]
    if elements:
        source.remark(f"the PLY elements {_listed(elements)} have no place in splats and were left out")
    if len(columns.scale) == 2:
        source.remark("its splats are flat, with two scales (2DGS): the third is 0")


def _read_binary(source: Source, header: Header, vertex: Element, columns: _Columns, splats: SplatBuffer) -> None:
    row_type = vertex.row_type(header.order)
    step = max(1, BLOCK_BYTES // row_type.itemsize)
    raw = np.empty(min(step, vertex.count) * row_type.itemsize, np.uint8)
    all_floats = all(p.code == "f" for p in vertex.properties)
    # With mixed types the wanted columns are gathered side by side first.
    groups = columns[:-1]
    compact = _Columns(*_consecutive(*map(len, groups)), rgb_unit=columns.rgb_unit)
    for start in range(0, vertex.count, step):
        stop = min(start + step, vertex.count)
        data = raw[: (stop - start) * row_type.itemsize]
        source.read_into(data)
        if all_floats:
            table = data.view(header.order + "f4").astype(np.float32, copy=False).reshape(stop - start, -1)
            _activate(table, columns, splats.block(start, stop))
        else:
            rows = data.view(row_type)
            with np.errstate(over="ignore", invalid="ignore"):  # a NaN may be one that signals
                gathered = [rows[f"f{index}"].astype(np.float32) for group in groups for index in group]
            _activate(np.stack(gathered, axis=1), compact, splats.block(start, stop))
        splats.check(start, stop)


def _read_text(source: Source, vertex: Element, columns: _Columns, splats: SplatBuffer) -> None:
    width = len(vertex.properties)
    # A value in text takes some ten bytes, and a hundred as a Python object.
    step = max(1, BLOCK_BYTES // (100 * width))
    for start in range(0, vertex.count, step):
        stop = min(start + step, vertex.count)
        lines = [next_line(source, _MAX_VALUE_BYTES * width).split() for _ in range(stop - start)]
        table = np.empty((stop - start, width), np.float32)
        for row, line in enumerate(lines):
            try:
                if len(line) != width:
                    raise ValueError(f"it has {len(line)} values")
                with np.errstate(over="ignore"):
                    table[row] = [float(value) for value in line]
            except ValueError as error:
                raise FormatError(
                    f"{source.name}: row {start + row + 1} of the PLY element 'vertex' is not {width} numbers "
                    f"({error}). The file is cut short or damaged: copy or download it again."
                ) from None
        _activate(table, columns, splats.block(start, stop))
        splats.check(start, stop)


def _activate(table: Floats, columns: _Columns, out: Block) -> None:
    """Rows of stored values (n,P) to splats: exp, sigmoid, normalised quaternions, SH by coefficient."""
    n = len(table)
    with np.errstate(all="ignore"):
        _take(table, columns.position, out.positions)
        _take(table, columns.sh, out.sh.reshape(n, -1))
        logit = out.opacities
        _take(table, columns.opacity, logit)
        np.negative(logit, out=logit)
        np.exp(logit, out=logit)
        logit += 1
        np.reciprocal(logit, out=logit)
        if len(columns.scale) == 3:
            _take(table, columns.scale, out.scales)
        else:
            out.scales[:, 2] = -np.inf
            out.scales[:, : 2 if len(columns.scale) == 2 else 3] = table[:, columns.scale]
        np.exp(out.scales, out=out.scales)
        if columns.rgb_unit:
            out.sh[:, 0] = (out.sh[:, 0] * columns.rgb_unit - 0.5) / C0
        if columns.smoothing:
            _smooth(table[:, columns.smoothing], out)
    quaternions = np.empty((n, 4), np.float32)
    _take(table, columns.rotation, quaternions)
    normalize_quaternions(quaternions, out.rotations)


def _smooth(
    size: Floats,  # (n,1) standard deviation of the filter
    out: Block,
) -> None:
    """Widen splats by a filter, and thin them by how much smaller they were."""
    squares = np.square(out.scales)
    wide = squares + np.square(size)
    thin = np.sqrt(np.where(wide > 0, squares / wide, 1).prod(axis=1, keepdims=True))
    np.multiply(out.opacities, thin, out=out.opacities)
    np.sqrt(wide, out=out.scales)


def _take(table: Floats, columns: list[int], out: Floats) -> None:
    first, last = columns[0], columns[-1]
    if columns == list(range(first, last + 1)):
        out[:] = table[:, first : last + 1]
    else:
        np.take(table, columns, axis=1, out=out, mode="clip")  # "raise" would go through a buffer


def _consecutive(*lengths: int) -> list[list[int]]:
    ends = np.cumsum(lengths)
    return [list(range(end - length, end)) for end, length in zip(ends.tolist(), lengths, strict=True)]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "none"
