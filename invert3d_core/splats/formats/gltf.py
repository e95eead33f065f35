"""glTF 2.0 binary files with the extension ``KHR_gaussian_splatting``.

Splats are point primitives whose attributes are arrays: centre, rotation x,y,z,w, linear scale, opacity, and a vector
for each SH coefficient. Format pages: the glTF 2.0 specification, and KHR_gaussian_splatting in KhronosGroup/glTF.
"""

import json
import struct
from typing import BinaryIO, NamedTuple

import numpy as np

from ...errors import FormatError
from .. import spherical_harmonics
from ..gaussians import GaussianSplats
from ..spherical_harmonics import C0
from .buffer import BLOCK_BYTES, Block, Floats, SplatBuffer, normalize_quaternions
from .gltf_scene import EXTENSION, Placement, read_scene
from .json_header import MAX_JSON_BYTES, Fields, check_length, parse
from .losses import Losses
from .source import Source

NAME = "gltf"
EXTENSIONS = (".glb",)
LIMITS = (
    "Reads and writes everything in float32 with SH degree 0 to 3 and the comment; reads integer rotations, scales and "
    "opacities, and several primitives, which nodes may move, turn and scale evenly. No .gltf with separate files, no "
    "compressed buffers."
)

MAX_DEGREE = 3

_MAGIC = b"glTF"
_HEADER = struct.Struct("<4sII")
_CHUNK = struct.Struct("<I4s")
_MAX_FILE = (1 << 32) - 1
_FLOAT, _BYTE = 5126, 5121
_POINTS = 0
_ARRAY_BUFFER = 34962
_STATED_AXES = 'up="+y" front="+z"'  # of every glTF, by its specification
_FREE_BYTES = 40 << 20  # of splats whatever the size of the file


class _Column(NamedTuple):
    """One attribute to write: its name in a primitive, and its values of some splats."""

    name: str
    type: str
    width: int
    code: int = _FLOAT

    @property
    def bytes(self) -> int:
        return self.width * (1 if self.code == _BYTE else 4)


def detect(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a binary glTF; whether there are splats in it, `read` finds."""
    return head.startswith(_MAGIC)


def read(source: Source) -> GaussianSplats:
    """The splats of all nodes of the scene, one after another, with the nodes' transforms applied.

    The comment is the one `write` left, else states glTF's own axes, up +y and front +z.
    Splats with values that are not finite are dropped with a warning, see `buffer.MAX_BAD_FRACTION`.
    Raises FormatError for damaged and cut-short files, for files without splats, for what is compressed or lies
    outside the file, for parts of an SH degree, and for transforms that are no even scaling and rotation.
    """
    document, start, length = _chunks(source)
    scene = read_scene(document, start, length)
    count = sum(placement.splats.count for placement in scene.placements)
    degree = max(placement.splats.degree for placement in scene.placements)
    row_bytes = 4 * (11 + 3 * spherical_harmonics.coefficients(degree))
    if count * row_bytes > 3 * source.size + _FREE_BYTES:
        raise FormatError(
            f"{source.name}: the nodes of the glTF show {count} splats of SH degree {degree}, {count * row_bytes} "
            f"bytes in memory, which is too much for a file of {source.size} bytes: data is used several times over. "
            "Export the splats as one primitive."
        )
    if scene.left_out:
        source.remark(f"{scene.left_out} primitives of the glTF are no splats and were left out")
    if any(placement.splats.linear for placement in scene.placements):
        source.remark(
            "its colours are meant for linear light (colorSpace lin_rec709_display) and are kept as they are: drawn as "
            "display colours, as every splat is here, they look darker"
        )
    splats = SplatBuffer(count, degree)
    step = max(1, BLOCK_BYTES // row_bytes)
    at = 0
    for placement in scene.placements:
        for first in range(0, placement.splats.count, step):
            last = min(first + step, placement.splats.count)
            _fill(source, placement, first, last, splats.block(at, at + last - first))
            splats.check(at, at + last - first)
            at += last - first
    return splats.finish(source, _comment(document))


def write(
    splats: GaussianSplats,
    file: BinaryIO,
) -> list[str]:
    """Write one primitive in float32, values as they are, with 8-bit vertex colours for viewers of plain points.

    The node has no transform: splats whose up is not +y stand otherwise in viewers that take glTF by its word. The
    comment is kept beside the generator's name (``asset.extras.comment``).

    Returns what was lost: SH degree 4, which glTF does not know. Raises FormatError for a comment longer than a header
    may be, and for more than 4 GiB.
    """
    degree = min(splats.degree, MAX_DEGREE)
    columns = [
        _Column("POSITION", "VEC3", 3),
        _Column("COLOR_0", "VEC4", 4, _BYTE),
        _Column(f"{EXTENSION}:ROTATION", "VEC4", 4),
        _Column(f"{EXTENSION}:SCALE", "VEC3", 3),
        _Column(f"{EXTENSION}:OPACITY", "SCALAR", 1),
        *(
            _Column(f"{EXTENSION}:SH_DEGREE_{level}_COEF_{n}", "VEC3", 3)
            for level in range(degree + 1)
            for n in range(2 * level + 1)
        ),
    ]
    text = _document(splats, columns)
    size = len(splats) * sum(column.bytes for column in columns)
    total = _HEADER.size + 2 * _CHUNK.size + len(text) + size
    if total > _MAX_FILE:
        raise FormatError(
            f"{len(splats)} splats of SH degree {degree} would be {total} bytes as a binary glTF, which can have "
            f"{_MAX_FILE}. Lower the SH degree, leave out splats, or write a .ply."
        )
    file.write(_HEADER.pack(_MAGIC, 2, total))
    file.write(_CHUNK.pack(len(text), b"JSON"))
    file.write(text)
    file.write(_CHUNK.pack(size, b"BIN\0"))
    positions, scales, rotations, opacities, sh = (
        t.detach().cpu().numpy()
        for t in (splats.positions, splats.scales, splats.rotations, splats.opacities, splats.sh)
    )
    _put(file, positions)
    for start in range(0, len(splats), _ROWS):
        file.write(_vertex_colors(sh[start : start + _ROWS, 0], opacities[start : start + _ROWS]).tobytes())
    for start in range(0, len(splats), _ROWS):
        unit = np.empty_like(rotations[start : start + _ROWS])
        normalize_quaternions(rotations[start : start + _ROWS], unit)
        file.write(np.roll(unit, -1, axis=1).astype("<f4").tobytes())
    _put(file, scales)
    _put(file, opacities)
    for index in range(spherical_harmonics.coefficients(degree)):
        _put(file, sh[:, index])
    losses = Losses()
    losses.truncate(splats, MAX_DEGREE)
    return losses.words()


_ROWS = 1 << 16


def _put(file: BinaryIO, values: Floats) -> None:
    for start in range(0, len(values), _ROWS):
        file.write(np.ascontiguousarray(values[start : start + _ROWS], "<f4").data)


def _vertex_colors(
    dc: Floats,  # (n,3)
    opacities: Floats,  # (n,1)
) -> np.ndarray:  # (n,4) uint8
    """What COLOR_0 holds: the base colour in linear light (the inverse of sRGB's curve), and the opacity."""
    display = (0.5 + C0 * dc).clip(0, 1)
    linear = np.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)
    return np.rint(255 * np.concatenate([linear, opacities], axis=1)).astype(np.uint8)


def _document(splats: GaussianSplats, columns: list[_Column]) -> bytes:
    """The JSON chunk, padded with spaces to whole words."""
    count, at, views = len(splats), 0, []
    for column in columns:
        length = count * column.bytes
        views.append({"buffer": 0, "byteOffset": at, "byteLength": length, "target": _ARRAY_BUFFER})
        at += length
    positions = splats.positions.detach()
    extra: dict[str, dict[str, object]] = {
        "POSITION": {"min": positions.amin(0).tolist(), "max": positions.amax(0).tolist()},
        "COLOR_0": {"normalized": True},
    }
    accessors = [
        {
            "bufferView": i,
            "componentType": column.code,
            "count": count,
            "type": column.type,
            **extra.get(column.name, {}),
        }
        for i, column in enumerate(columns)
    ]
    primitive = {
        "mode": _POINTS,
        "attributes": {column.name: i for i, column in enumerate(columns)},
        "extensions": {
            EXTENSION: {
                "kernel": "ellipse",
                "colorSpace": "srgb_rec709_display",
                "projection": "perspective",
                "sortingMethod": "cameraDistance",
            }
        },
    }
    document = {
        "asset": {"version": "2.0", "generator": "Invert3D", "extras": {"comment": splats.comment}},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": at}],
    }
    text = json.dumps(document, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 4)
    if len(text) > MAX_JSON_BYTES:
        raise FormatError(
            f"The comment of the splats has {len(splats.comment)} characters; the header of a glTF may have "
            f"{MAX_JSON_BYTES} bytes. Shorten the comment."
        )
    return text


def _chunks(source: Source) -> tuple[Fields, int, int]:
    """The JSON of a binary glTF, and where its binary chunk starts and how long it is (0, 0 without one)."""
    source.stream.seek(0)
    magic, version, total = _HEADER.unpack(source.read(_HEADER.size))
    if magic != _MAGIC:
        raise FormatError(f"{source.name} is no binary glTF: it starts with {magic!r} instead of {_MAGIC!r}.")
    if version != 2:
        raise FormatError(f"{source.name} is a binary glTF of version {version}; expected 2. Export it again.")
    if total > source.size:
        raise source.cut_short()
    if total < source.size:
        raise FormatError(
            f"{source.name} has {source.size} bytes and its glTF header says {total}: something follows, or the header "
            "is damaged. Copy or download it again."
        )
    text, start, length = b"", 0, 0
    at, index = _HEADER.size, 0
    while at < total and index < 2:
        source.stream.seek(at)
        size, kind = _CHUNK.unpack(source.read(_CHUNK.size))
        at += _CHUNK.size
        if at + size > total:
            raise FormatError(
                f"{source.name}: chunk {index} of the glTF claims {size} bytes and {total - at} are left. The file is "
                "damaged: copy or download it again."
            )
        if index == 0:
            if kind != b"JSON":
                raise FormatError(f"{source.name}: the glTF starts with a chunk {kind!r}; expected b'JSON'.")
            check_length(source, size, "the glTF's header")
            text = source.read(size)
        elif kind == b"BIN\0":
            start, length = at, size
        at += size
        index += 1
    return parse(source, text, "the glTF's header"), start, length


def _comment(document: Fields) -> str:
    extras = document.fields("asset").values.get("extras")
    comment = extras.get("comment") if isinstance(extras, dict) else None
    return comment if isinstance(comment, str) else _STATED_AXES


def _fill(source: Source, placement: Placement, first: int, last: int, out: Block) -> None:
    """Splats first to last of a primitive, placed in the scene."""
    values = placement.splats
    values.position.read(source, first, last, out.positions)
    values.scale.read(source, first, last, out.scales)
    values.opacity.read(source, first, last, out.opacities)
    xyzw = np.empty_like(out.rotations)
    values.rotation.read(source, first, last, xyzw)
    normalize_quaternions(np.roll(xyzw, 1, axis=1), out.rotations)
    for index, coefficient in enumerate(values.sh):
        coefficient.read(source, first, last, out.sh[:, index])
    out.sh[:, len(values.sh) :] = 0
    if placement.transform is not None:
        placement.transform.apply(out)
