"""Where a glTF keeps its splats: nodes with transforms, primitives with attributes, accessors with their data."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import FormatError
from ...rotations import multiply, quaternions, rotation_matrices
from .. import spherical_harmonics
from .buffer import Block, Floats, normalize_quaternions
from .json_header import Fields, Items
from .source import Source

EXTENSION = "KHR_gaussian_splatting"

_UNDERSTOOD = {EXTENSION, "KHR_mesh_quantization"}
_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
_MAX_STRIDE = 252
_POINTS, _TRIANGLES = 0, 4
_MAX_COUNT = 1 << 31
_MAX_PLACEMENTS = 1000
_MAX_DEPTH = 500
_UNEVEN = 1e-4  # of a matrix that should be orthogonal
_IDENTITY = np.eye(4)

Matrix = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Values:
    """An accessor: ``count`` vectors of ``width`` numbers, the first at byte ``at`` of the file, then every stride."""

    at: int
    stride: int
    count: int
    width: int
    kind: np.dtype[Any]
    normalized: bool

    def read(self, source: Source, first: int, last: int, out: Floats) -> None:
        """Vectors first to last as floats; normalised integers become 0..1, or -1..1."""
        source.stream.seek(self.at + first * self.stride)
        data = source.read((last - first - 1) * self.stride + self.width * self.kind.itemsize)
        stored = np.ndarray((last - first, self.width), self.kind, data, strides=(self.stride, self.kind.itemsize))
        if self.normalized:
            np.divide(stored, np.float32(np.iinfo(self.kind).max), out=out)
            np.maximum(out, -1, out=out)
        else:
            out[:] = stored


@dataclass(frozen=True)
class Primitive:
    """The attributes of splats. sh: a vector a coefficient. linear: whether colours are meant for linear light."""

    position: Values
    rotation: Values  # x,y,z,w
    scale: Values
    opacity: Values
    sh: list[Values]
    linear: bool

    @property
    def count(self) -> int:
        return self.position.count

    @property
    def degree(self) -> int:
        return round(len(self.sh) ** 0.5) - 1


class Transform:
    """A similarity: uniform scale, rotation, translation, perhaps a mirror. Raises ValueError for another matrix."""

    def __init__(
        self,
        matrix: Matrix,  # (4,4)
    ) -> None:
        determinant = float(np.linalg.det(matrix[:3, :3]))
        self.scale = abs(determinant) ** (1 / 3)
        if not np.isfinite(matrix).all() or self.scale < 1e-18:
            raise ValueError("no size in at least one direction")
        rotation = matrix[:3, :3] / self.scale
        if np.abs(rotation.T @ rotation - np.eye(3)).max() > _UNEVEN:
            sizes = np.linalg.svd(matrix[:3, :3], compute_uv=False)
            raise ValueError(f"a scale that is {sizes.max():.4g} in one direction and {sizes.min():.4g} in another")
        self.matrix = matrix
        self.mirrored = determinant < 0
        # A Gaussian is its own mirror image through its centre, so that a mirror turns it as its opposite does.
        self.rotation = torch.from_numpy(-rotation if self.mirrored else rotation)  # (3,3)
        self.quaternion = quaternions(self.rotation)  # (4,) w,x,y,z

    def apply(self, out: Block) -> None:
        """Place splats, in their arrays: mean M m + t, covariance M C Mᵀ, and SH turned with the splat."""
        with np.errstate(all="ignore"):
            out.positions[:] = out.positions @ self.matrix[:3, :3].T + self.matrix[:3, 3]
            out.scales[:] *= np.float32(self.scale)
        turned = multiply(self.quaternion, torch.from_numpy(out.rotations))
        normalize_quaternions(turned.float().numpy(), out.rotations)
        if out.sh.shape[1] > 1:
            out.sh[:] = spherical_harmonics.rotate(torch.from_numpy(out.sh), self.rotation).numpy()
            if self.mirrored:
                for odd in range(1, round(out.sh.shape[1] ** 0.5), 2):
                    out.sh[:, odd * odd : (odd + 1) ** 2] *= -1


@dataclass(frozen=True)
class Placement:
    """Splats as one node shows them; no transform where it is the identity."""

    splats: Primitive
    transform: Transform | None


@dataclass(frozen=True)
class Scene:
    """The splats that a glTF shows, and how many primitives of other kinds it shows besides."""

    placements: list[Placement]
    left_out: int


def read_scene(
    document: Fields,
    start: int,
    length: int,
) -> Scene:
    """What the default scene shows. start, length: the binary chunk in the file.

    Raises FormatError for anything that is not whole and understood, see `gltf.read`, and where there are no splats.
    """
    required = {name for name in document.values_of("extensionsRequired") if isinstance(name, str)}
    if unknown := sorted(required - _UNDERSTOOD):
        raise FormatError(
            f"{document.source.name} needs the glTF extension {unknown[0]}, which is not supported. Export the splats "
            "uncompressed, as a .glb with KHR_gaussian_splatting alone, or as .ply."
        )
    accessors = _Accessors(document, start, length)
    nodes = document.items("nodes", "the glTF's node")
    meshes = document.items("meshes", "the glTF's mesh")
    splats: dict[int, list[Primitive]] = {}
    others: dict[int, int] = {}
    parents, shown = _tree(document, nodes)
    matrices: dict[int, Matrix] = {}
    placements, left_out = [], 0
    for index in shown:
        node = nodes[index]
        if "mesh" not in node:
            continue
        mesh = node.integer("mesh", 0, len(meshes) - 1)
        if mesh not in splats:
            primitives = meshes[mesh].items("primitives", f"the primitive of the glTF's mesh {mesh},")
            found = [primitive for primitive in primitives if _extension(primitive) is not None]
            splats[mesh] = [_primitive(primitive, accessors) for primitive in found]
            others[mesh] = len(primitives) - len(found)
        left_out += others[mesh]
        if not splats[mesh]:
            continue
        matrix = _world(index, nodes, parents, matrices)
        try:
            transform = None if np.array_equal(matrix, _IDENTITY) else Transform(matrix)
        except ValueError as error:
            raise FormatError(
                f"{document.source.name}: the transform of {node.where} gives its splats {error}. Splats can be moved, "
                "turned and scaled evenly: apply the transform in the program the file comes from, and export it again."
            ) from error
        placements += [Placement(primitive, transform) for primitive in splats[mesh]]
        if len(placements) > _MAX_PLACEMENTS:
            raise FormatError(
                f"{document.source.name}: the nodes of the glTF show more than {_MAX_PLACEMENTS} primitives of splats. "
                "Export them as one."
            )
    if not placements:
        raise FormatError(
            f"{document.source.name} is a glTF without Gaussian splats: no node of its scene shows a primitive with "
            f"the extension {EXTENSION} ({left_out} other primitives, such as meshes). Export Gaussian splats."
        )
    return Scene(placements, left_out)


def _tree(document: Fields, nodes: Items) -> tuple[dict[int, int], list[int]]:
    """The parent of each node that has one, and the nodes of the default scene, parents first."""
    parents: dict[int, int] = {}
    for index, node in enumerate(nodes):
        for child in node.indices("children", len(nodes)):
            if child in parents:
                raise FormatError(
                    f"{document.source.name}: node {child} of the glTF has more than one parent. Export it again."
                )
            parents[child] = index
    scenes = document.items("scenes", "the glTF's scene")
    if scenes:
        scene = scenes[document.integer("scene", 0, len(scenes) - 1, 0)]
        roots: Iterable[int] = scene.indices("nodes", len(nodes))
    else:
        roots = (index for index in range(len(nodes)) if index not in parents)
    shown: dict[int, None] = {}
    waiting = list(roots)[::-1]
    while waiting:
        index = waiting.pop()
        if index in shown:  # a node below itself, or a root that is also a child
            raise FormatError(f"{document.source.name}: the glTF shows node {index} twice. Export it again.")
        shown[index] = None
        waiting += nodes[index].indices("children", len(nodes))[::-1]
    return parents, list(shown)


def _world(index: int, nodes: Items, parents: dict[int, int], known: dict[int, Matrix]) -> Matrix:
    """The transform of a node into the scene, that of its parents included."""
    path = []
    at: int | None = index
    while at is not None and at not in known:
        path.append(at)
        at = parents.get(at)
        if len(path) > _MAX_DEPTH:
            raise FormatError(
                f"{nodes[index].source.name}: node {index} of the glTF lies below more than {_MAX_DEPTH} others. "
                "Export the splats as one primitive of one node."
            )
    for step in reversed(path):
        above = known.get(parents[step], _IDENTITY) if step in parents else _IDENTITY
        with np.errstate(all="ignore"):
            known[step] = above @ _local(nodes[step])
    return known[index]


def _local(node: Fields) -> Matrix:
    if "matrix" in node:
        matrix = np.array(node.numbers("matrix", 16), np.float64).reshape(4, 4).T
        if not np.array_equal(matrix[3], _IDENTITY[3]):
            raise node.wrong("matrix", "a matrix whose last row is 0, 0, 0, 1")
        return matrix
    matrix = np.eye(4)
    matrix[:3, 3] = node.numbers("translation", 3, [0.0, 0.0, 0.0])
    matrix[:3, :3] *= np.array(node.numbers("scale", 3, [1.0, 1.0, 1.0]), np.float64)
    if "rotation" not in node:
        return matrix
    x, y, z, w = node.numbers("rotation", 4)
    if not 0.5 < x * x + y * y + z * z + w * w < 2:
        raise node.wrong("rotation", "a unit quaternion")
    rotation = rotation_matrices(torch.tensor([w, x, y, z], dtype=torch.float64)).numpy()
    matrix[:3, :3] = rotation @ matrix[:3, :3]
    return matrix


def _extension(primitive: Fields) -> Fields | None:
    if "extensions" not in primitive:
        return None
    extensions = primitive.fields("extensions")
    return extensions.fields(EXTENSION) if EXTENSION in extensions else None


def _primitive(primitive: Fields, accessors: "_Accessors") -> Primitive:
    """The attributes of a primitive of splats, each with its place in the file."""
    extension = _extension(primitive)
    assert extension is not None
    for name, known in (("kernel", ("ellipse",)), ("projection", ("perspective",))):
        if extension.text(name, known[0]) not in known:
            raise extension.wrong(name, repr(known[0]))
    spaces = ("srgb_rec709_display", "lin_rec709_display")
    space = extension.text("colorSpace", spaces[0])
    if space not in spaces:
        raise extension.wrong("colorSpace", " or ".join(map(repr, spaces)))
    if "extensions" in extension:
        names = ", ".join(extension.fields("extensions").values)
        raise FormatError(
            f"{primitive.source.name}: the splats of {primitive.where} are stored by the extension {names}, which is "
            "not supported. Export them uncompressed, or as .spz or .ply."
        )
    if primitive.integer("mode", 0, 6, _TRIANGLES) != _POINTS:
        raise primitive.wrong("mode", f"{_POINTS} (points) for splats")
    if "indices" in primitive:
        raise primitive.wrong("indices", "splats without indices")
    attributes = primitive.fields("attributes")
    count: int | None = None

    def values(name: str, width: int, integers: bool = False) -> Values:
        nonlocal count
        if name not in attributes:
            raise FormatError(
                f"{primitive.source.name}: {primitive.where} lacks the attribute {name} of {EXTENSION} (it has "
                f"{', '.join(list(attributes.values)[:8]) or 'none'}). Export it again, with the names of the "
                "extension as it was published."
            )
        found = accessors.find(attributes, name, width, integers)
        if count is not None and found.count != count:
            raise FormatError(
                f"{primitive.source.name}: {primitive.where} has {count} positions and {found.count} values of {name}. "
                "The file is damaged: export it again."
            )
        count = found.count
        return found

    position = values("POSITION", 3, True)  # integers with KHR_mesh_quantization
    rotation, scale = values(f"{EXTENSION}:ROTATION", 4, True), values(f"{EXTENSION}:SCALE", 3, True)
    opacity = values(f"{EXTENSION}:OPACITY", 1, True)
    prefix = f"{EXTENSION}:SH_DEGREE_"
    stored = sum(name.startswith(prefix) for name in attributes.values)
    names = [f"{prefix}{level}_COEF_{n}" for level in range(4) for n in range(2 * level + 1)][: max(1, stored)]
    if stored not in (0, 1, 4, 9, 16):
        raise FormatError(
            f"{primitive.source.name}: {primitive.where} has {stored} attributes {prefix}*; expected 1, 4, 9 or 16, "
            "for SH degree 0 to 3. Export it again with whole SH degrees."
        )
    return Primitive(position, rotation, scale, opacity, [values(name, 3) for name in names], space == spaces[1])


class _Accessors:
    """The glTF's accessors, each checked against its view, buffer and file when it is asked for."""

    def __init__(self, document: Fields, start: int, length: int) -> None:
        self.accessors = document.items("accessors", "the glTF's accessor")
        self.views = document.items("bufferViews", "the glTF's buffer view")
        self.buffers = document.items("buffers", "the glTF's buffer")
        self.start = start
        self.length = length

    def find(self, attributes: Fields, name: str, width: int, integers: bool) -> Values:
        """An attribute's values. Raises FormatError for another type, and for what reaches outside its data."""
        accessor = self.accessors[attributes.integer(name, 0, len(self.accessors) - 1)]
        if _WIDTHS.get(accessor.text("type", "")) != width:
            raise accessor.wrong("type", f"{next(k for k, v in _WIDTHS.items() if v == width)} for {name}")
        code = accessor.values.get("componentType")
        if not isinstance(code, int) or code not in _COMPONENTS or not (integers or code == 5126):
            raise accessor.wrong("componentType", f"{'5120 to 5123 or ' if integers else ''}5126 for {name}")
        normalized = accessor.values.get("normalized", False)
        if not isinstance(normalized, bool):
            raise accessor.wrong("normalized", "true or false")
        if "sparse" in accessor or "bufferView" not in accessor:
            missing = "is sparse" if "sparse" in accessor else "has no bufferView"
            raise FormatError(
                f"{accessor.source.name}: {accessor.where} ({name}) {missing}, which is not supported for splats. "
                "Export it again without."
            )
        kind = np.dtype(_COMPONENTS[code])
        count = accessor.integer("count", 1, _MAX_COUNT)
        view = self.views[accessor.integer("bufferView", 0, len(self.views) - 1)]
        item = width * kind.itemsize
        stride = view.integer("byteStride", item, _MAX_STRIDE, item)
        at = accessor.integer("byteOffset", 0, self.length, 0)
        offset, length = self._view(view)
        needed = at + (count - 1) * stride + item
        if needed > length:
            raise FormatError(
                f"{accessor.source.name}: {accessor.where} ({name}) claims {count} values, which need {needed} bytes "
                f"of {view.where}, and it has {length}. The file is damaged or cut short: export it again."
            )
        return Values(self.start + offset + at, stride, count, width, kind, normalized and kind.kind in "iu")

    def _view(self, view: Fields) -> tuple[int, int]:
        """Where a buffer view lies in the binary chunk, and its length."""
        if "extensions" in view and (extensions := view.fields("extensions").values):
            raise FormatError(
                f"{view.source.name}: {view.where} is compressed ({', '.join(extensions)}), which is not "
                "supported. Export the file uncompressed."
            )
        index = view.integer("buffer", 0, len(self.buffers) - 1)
        if index > 0 or "uri" in self.buffers[index] or not self.length:
            raise FormatError(
                f"{view.source.name}: the data of {view.where} lies outside the file. Export it as one .glb file."
            )
        offset = view.integer("byteOffset", 0, self.length, 0)
        length = view.integer("byteLength", 1, self.length)
        if offset + length > self.length:
            raise FormatError(
                f"{view.source.name}: {view.where} ends at byte {offset + length} of {self.length} in the binary "
                "chunk. The file is damaged or cut short: export it again."
            )
        return offset, length
