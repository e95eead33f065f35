"""The standard 3DGS PLY: one row a splat, read by the names of its columns.

Layout of the reference implementation of 3D Gaussian Splatting (Kerbl et al. 2023): centre ``x y z``, DC ``f_dc_0..2``,
the other SH coefficients ``f_rest_*`` channel after channel, ``opacity`` as logit, ``scale_*`` as natural logarithms,
``rot_*`` as quaternion w,x,y,z of any length.
"""

from typing import BinaryIO, NamedTuple

import numpy as np

from ...errors import FormatError
from ..gaussians import GaussianSplats
from .buffer import BLOCK_BYTES, Block, Floats, SplatBuffer, normalize_quaternions
from .ply_header import MAX_HEADER_BYTES, Element, Header, check_room, expect_end, next_line, read_header, skip_elements
from .source import Source

NAME = "ply"
EXTENSIONS = (".ply",)
LIMITS = (
    "Reads binary (either byte order) and ASCII files, SH degree 0 to 4, columns of any order and type, extra columns "
    "and elements; 2DGS files, which lack scale_2, give flat splats. Writes binary little endian with everything kept. "
    "No compressed PLY, no plain point clouds."
)

_POSITION = ("x", "y", "z")
_DC = ("f_dc_0", "f_dc_1", "f_dc_2")
_ROTATION = ("rot_0", "rot_1", "rot_2", "rot_3")
_MAX_VALUE_BYTES = 256  # of one number in an ASCII file
_REST_COUNTS = {0: 0, 9: 1, 24: 2, 45: 3, 72: 4}  # f_rest columns → SH degree

# Logarithm and logit that stand for exactly 0 (they underflow when read back) and finite, because other readers throw
# splats with infinite columns away. A logit of 20 rounds to opacity 1.
_ZERO_LOG = -110.0
_ZERO_LOGIT, _ONE_LOGIT = -110.0, 20.0


class _Columns(NamedTuple):
    """Where each group of values stands in a row of floats."""

    position: list[int]
    sh: list[int]  # coefficient after coefficient, r g b inside
    opacity: list[int]
    scale: list[int]  # two for 2DGS
    rotation: list[int]


def detect(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a PLY."""
    return head.startswith((b"ply\n", b"ply\r\n"))


def read(source: Source) -> GaussianSplats:
    """The splats of a 3DGS PLY; header comments become the comment.

    Rows with values that are not finite are dropped with a warning, see `buffer.MAX_BAD_FRACTION`; infinite logits and
    log-scales of −infinity are legitimate (opacity 0 or 1, a flat splat). A zero quaternion becomes the identity.
    Raises FormatError for other PLY dialects, missing columns, and files shorter or longer than their header says.
    """
    header = read_header(source)
    vertex = _vertex_element(source, header)
    names = [p.name for p in vertex.properties]
    columns = _find_columns(source, names)
    before = header.elements.index(vertex)
    skip_elements(source, header, header.elements[:before])
    check_room(source, header, vertex)
    splats = SplatBuffer(vertex.count, _REST_COUNTS[len(columns.sh) - 3])
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
        *("nx", "ny", "nz"),
        *_DC,
        *(f"f_rest_{i}" for i in range(degree_columns)),
        "opacity",
        *("scale_0", "scale_1", "scale_2"),
        *_ROTATION,
    ]
    comment, lost = _header_comment(splats.comment)
    header = [
        "ply",
        "format binary_little_endian 1.0",
        *(f"comment {line}" for line in comment),
        f"element vertex {len(splats)}",
        *(f"property float {name}" for name in names),
        "end_header\n",
    ]
    head = "\n".join(header).encode("ascii")
    if len(head) > MAX_HEADER_BYTES:
        raise FormatError(
            f"The comment of the splats has {len(splats.comment)} characters; a PLY header may have "
            f"{MAX_HEADER_BYTES} bytes. Shorten the comment."
        )
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


def _header_comment(comment: str) -> tuple[list[str], list[str]]:
    """The lines of a comment as ASCII without control characters, and what that lost."""
    lines = comment.split("\n") if comment else []
    plain = ["".join(c if " " <= c <= "~" or c == "\t" else ascii(c)[1:-1] for c in line) for line in lines]
    return plain, [] if plain == lines else ["characters of the comment outside ASCII, written as escapes"]


def _vertex_element(source: Source, header: Header) -> Element:
    """The element that holds the splats. Raises FormatError for dialects that hold them otherwise, and for none."""
    named = {element.name for element in header.elements}
    columns = {p.name for element in header.elements for p in element.properties}
    if "packed_position" in columns:
        raise FormatError(
            f"{source.name} is a PlayCanvas compressed PLY (it has the column 'packed_position'), which is not "
            "supported. Convert it to a standard 3DGS .ply, for example with SuperSplat or splat-transform."
        )
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
    if not columns.intersection(_DC):
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


def _find_columns(source: Source, names: list[str]) -> _Columns:
    """Where each value stands. Raises FormatError for columns that lack, come twice, or are no whole SH degree."""
    where = {name: index for index, name in enumerate(names)}
    if len(where) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise FormatError(f"{source.name} has the PLY column '{double}' more than once. Export it again.")
    scale = ("scale_0", "scale_1", "scale_2") if "scale_2" in where else ("scale_0", "scale_1")
    missing = [name for name in (*_POSITION, *_DC, "opacity", *scale, *_ROTATION) if name not in where]
    if missing:
        raise FormatError(
            f"{source.name} lacks the PLY columns {', '.join(missing)} of a Gaussian splat (found {_listed(names)}). "
            "Export it as a standard 3DGS .ply."
        )
    rest = [name for name in names if name.startswith("f_rest_")]
    if len(rest) not in _REST_COUNTS or any(f"f_rest_{i}" not in where for i in range(len(rest))):
        raise FormatError(
            f"{source.name} has {len(rest)} PLY columns f_rest_*; expected f_rest_0 to f_rest_8, 23, 44 or 71 for SH "
            "degree 1 to 4, or none. Export it again with whole SH degrees."
        )
    bands = len(rest) // 3
    by_coefficient = (f"f_rest_{channel * bands + k}" for k in range(bands) for channel in range(3))
    return _Columns(
        *([where[n] for n in group] for group in (_POSITION, (*_DC, *by_coefficient), ("opacity",), scale, _ROTATION))
    )


def _read_binary(source: Source, header: Header, vertex: Element, columns: _Columns, splats: SplatBuffer) -> None:
    row_type = vertex.row_type(header.order)
    step = max(1, BLOCK_BYTES // row_type.itemsize)
    raw = np.empty(min(step, vertex.count) * row_type.itemsize, np.uint8)
    all_floats = all(p.code == "f" for p in vertex.properties)
    # With mixed types the wanted columns are gathered side by side first.
    compact = _Columns(*_consecutive(*map(len, columns)))
    for start in range(0, vertex.count, step):
        stop = min(start + step, vertex.count)
        data = raw[: (stop - start) * row_type.itemsize]
        source.read_into(data)
        if all_floats:
            table = data.view(header.order + "f4").astype(np.float32, copy=False).reshape(stop - start, -1)
            _activate(table, columns, splats.block(start, stop))
        else:
            rows = data.view(row_type)
            with np.errstate(over="ignore"):
                gathered = [rows[f"f{index}"].astype(np.float32) for group in columns for index in group]
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
            out.scales[:, :2] = table[:, columns.scale]
            out.scales[:, 2] = -np.inf
        np.exp(out.scales, out=out.scales)
    quaternions = np.empty((n, 4), np.float32)
    _take(table, columns.rotation, quaternions)
    normalize_quaternions(quaternions, out.rotations)


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
