import copy
import json
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from torch.nn import functional

from invert3d_core import splats
from invert3d_core.errors import FormatError
from invert3d_core.rotations import rotation_matrices
from invert3d_core.splats import GaussianSplats, spherical_harmonics
from tests.unit.splats.formats.damage import assert_refused_when_cut, damaged, load_or_refuse

KHR = "KHR_gaussian_splatting"
CODES = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "f4": 5126}
TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}


def random_splats(count=5, degree=1, seed=0, comment=""):
    g = torch.Generator().manual_seed(seed)
    return GaussianSplats(
        torch.randn(count, 3, generator=g),
        torch.rand(count, 3, generator=g),
        functional.normalize(torch.randn(count, 4, generator=g), dim=1),
        torch.rand(count, 1, generator=g),
        torch.randn(count, (degree + 1) ** 2, 3, generator=g),
        comment,
    )


class Builder:
    """A binary glTF put together piece by piece."""

    def __init__(self):
        self.binary = b""
        self.document = {
            "asset": {"version": "2.0"},
            "extensionsUsed": [KHR],
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": []}],
            "accessors": [],
            "bufferViews": [],
            "buffers": [{"byteLength": 0}],
        }

    def accessor(self, values, normalized=False):
        values = np.ascontiguousarray(values)
        data = values.tobytes()
        self.document["bufferViews"].append({"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data)})
        self.binary += data + bytes(-len(data) % 4)
        accessor = {
            "bufferView": len(self.document["bufferViews"]) - 1,
            "componentType": CODES[values.dtype.str[1:]],
            "count": len(values),
            "type": TYPES[values.shape[1]],
        }
        self.document["accessors"].append(accessor | ({"normalized": True} if normalized else {}))
        return len(self.document["accessors"]) - 1

    def primitive(self, g, mesh=0, **instead):
        """Splats in float32, but for what is given instead, as an accessor."""
        attributes = {
            "POSITION": g.positions.numpy(),
            f"{KHR}:ROTATION": np.roll(g.rotations.numpy(), -1, 1),
            f"{KHR}:SCALE": g.scales.numpy(),
            f"{KHR}:OPACITY": g.opacities.numpy(),
        }
        for level in range(g.degree + 1):
            for n in range(2 * level + 1):
                attributes[f"{KHR}:SH_DEGREE_{level}_COEF_{n}"] = g.sh[:, level**2 + n].numpy()
        made = {
            name: instead[short] if (short := name.split(":")[-1]) in instead else self.accessor(values.astype("<f4"))
            for name, values in attributes.items()
        }
        extension = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
        primitive = {"mode": 0, "attributes": made, "extensions": {KHR: extension}}
        self.document["meshes"][mesh]["primitives"].append(primitive)
        return primitive

    def bytes(self, text=None):
        self.document["buffers"][0].setdefault("byteLength", len(self.binary))
        text = json.dumps(self.document).encode() if text is None else text
        text += b" " * (-len(text) % 4)
        total = 28 + len(text) + len(self.binary)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        return (
            struct.pack("<4sII", b"glTF", 2, total)
            + chunks
            + struct.pack("<I4s", len(self.binary), b"BIN\0")
            + self.binary
        )


def built(g, node=None):
    builder = Builder()
    builder.primitive(g)
    builder.document["nodes"][0].update(node or {})
    return builder


def assert_same(found, expected, tolerance=1e-6):
    for name in ("positions", "scales", "opacities", "sh"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=tolerance)
    assert ((found.rotations * expected.rotations).sum(1).abs() > 1 - tolerance).all()


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("degree", range(4))
def test_every_degree(degree):
    g = random_splats(degree=degree)
    assert_same(splats.load(built(g).bytes()), g)


@pytest.mark.parametrize(
    ("name", "kind", "normalized"),
    [
        ("ROTATION", "i1", True),
        ("ROTATION", "i2", True),
        ("SCALE", "u1", True),
        ("SCALE", "u2", True),
        ("SCALE", "u1", False),
        ("SCALE", "u2", False),
        ("OPACITY", "u1", True),
        ("OPACITY", "u2", True),
        ("POSITION", "i2", False),
    ],
)
def test_integers(name, kind, normalized):
    g, builder = random_splats(), Builder()
    exact = {"ROTATION": np.roll(g.rotations.numpy(), -1, 1), "SCALE": g.scales.numpy(), "OPACITY": g.opacities.numpy()}
    factor = np.iinfo(kind).max if normalized else 1
    stored = np.rint(exact.get(name, g.positions.numpy()) * factor * (1 if normalized else 3)).astype(f"<{kind}")
    builder.primitive(g, **{name: builder.accessor(stored, normalized)})
    found = splats.load(builder.bytes())
    values = torch.from_numpy(stored.astype(np.float32) / factor)
    if name == "ROTATION":
        assert ((found.rotations * functional.normalize(values.roll(1, 1), dim=1)).sum(1) > 1 - 1e-6).all()
    else:
        attribute = {"SCALE": found.scales, "OPACITY": found.opacities, "POSITION": found.positions}[name]
        torch.testing.assert_close(attribute, values)


def test_the_most_negative_integer_is_minus_one():
    builder = Builder()
    stored = np.array([[-128, 0, 0, 0], [127, 0, 0, 0]], "i1")
    builder.primitive(random_splats(2), ROTATION=builder.accessor(stored, True))
    found = splats.load(builder.bytes()).rotations
    assert found.tolist() == [[0, -1, 0, 0], [0, 1, 0, 0]]


def test_interleaved_values():
    g, builder = random_splats(), Builder()
    rows = np.concatenate([g.positions.numpy(), np.roll(g.rotations.numpy(), -1, 1)], 1).astype("<f4")
    view = {"buffer": 0, "byteOffset": 0, "byteLength": rows.nbytes, "byteStride": 28}
    builder.binary, builder.document["bufferViews"] = rows.tobytes(), [view]
    builder.document["accessors"] = [
        {"bufferView": 0, "componentType": 5126, "count": 5, "type": "VEC3"},
        {"bufferView": 0, "byteOffset": 12, "componentType": 5126, "count": 5, "type": "VEC4"},
    ]
    builder.primitive(g, POSITION=0, ROTATION=1)
    assert_same(splats.load(builder.bytes()), g)


ANGLE = np.array([0.2, -0.5, 0.4, 0.7]) / np.linalg.norm([0.2, -0.5, 0.4, 0.7])  # x,y,z,w


def matrix_of(rotation=(0, 0, 0, 1), scale=(1, 1, 1), translation=(0, 0, 0)):
    x, y, z, w = (float(v) for v in rotation)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrices(torch.tensor([w, x, y, z], dtype=torch.float64)).numpy() * np.array(scale)
    matrix[:3, 3] = translation
    return matrix


def assert_placed(found, g, matrix):
    """Means, covariances and colours are those of the scene moved as a whole (the definition of the extension)."""
    matrix = torch.from_numpy(matrix).float()
    part = matrix[:3, :3]
    torch.testing.assert_close(found.positions, g.positions @ part.T + matrix[:3, 3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.covariances(), part @ g.covariances() @ part.T, rtol=1e-4, atol=1e-5)
    directions = functional.normalize(torch.randn(len(g), 3, generator=torch.Generator().manual_seed(1)), dim=1)
    after = functional.normalize(directions @ part.T, dim=1)
    expected = spherical_harmonics.evaluate(g.sh, directions, g.degree)
    torch.testing.assert_close(spherical_harmonics.evaluate(found.sh, after, g.degree), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("degree", [0, 1, 3])
@pytest.mark.parametrize(
    "node",
    [
        {"translation": [1, -2, 3]},
        {"rotation": ANGLE.tolist()},
        {"scale": [2.5, 2.5, 2.5]},
        {"rotation": ANGLE.tolist(), "scale": [0.5, 0.5, 0.5], "translation": [1, 0, -4]},
        {"scale": [-1, 1, 1]},
        {"rotation": ANGLE.tolist(), "scale": [-2, -2, -2]},
    ],
)
def test_nodes_place_their_splats(node, degree):
    g = random_splats(degree=degree)
    expected = matrix_of(
        *(
            node.get(name, default)
            for name, default in (("rotation", (0, 0, 0, 1)), ("scale", (1, 1, 1)), ("translation", (0, 0, 0)))
        )
    )
    assert_placed(splats.load(built(g, node).bytes()), g, expected)
    assert_placed(splats.load(built(g, {"matrix": expected.T.reshape(-1).tolist()}).bytes()), g, expected)


def test_a_quarter_turn_by_hand():
    """About y, +x goes to −z. A splat long in x is long in z then."""
    half = 0.5**0.5
    one = GaussianSplats(
        torch.tensor([[1.0, 2, 3]]),
        torch.tensor([[0.5, 0.1, 0.1]]),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.ones(1),
        torch.zeros(1, 1, 3),
    )
    found = splats.load(built(one, {"rotation": [0, half, 0, half]}).bytes())
    torch.testing.assert_close(found.positions, torch.tensor([[3.0, 2, -1]]))
    torch.testing.assert_close(found.covariances()[0].diagonal(), torch.tensor([0.01, 0.01, 0.25]))


def test_transforms_of_parents_add_up_even_where_they_are_uneven_on_the_way():
    g = random_splats(degree=2)
    builder = built(g)
    builder.document["nodes"] = [
        {"children": [1], "rotation": ANGLE.tolist(), "translation": [1, 2, 3]},
        {"children": [2], "scale": [2, 3, 4]},
        {"mesh": 0, "scale": [1, 2 / 3, 0.5]},
    ]
    assert_placed(splats.load(builder.bytes()), g, matrix_of(ANGLE, (2, 2, 2), (1, 2, 3)))


def test_several_primitives_and_nodes_one_after_another():
    first, second = random_splats(3, 0), random_splats(4, 2, seed=1)
    builder = Builder()
    builder.primitive(first)
    builder.document["meshes"].append({"primitives": []})
    builder.primitive(second, mesh=1)
    builder.document["nodes"] = [{"mesh": 0}, {"mesh": 1}, {"mesh": 0, "translation": [5, 0, 0]}, {"mesh": 1}]
    builder.document["scenes"][0]["nodes"] = [0, 1, 2]  # the last one is not shown
    g = splats.load(builder.bytes())
    assert (len(g), g.degree) == (10, 2)
    assert torch.equal(
        g.positions, torch.cat([first.positions, second.positions, first.positions + torch.tensor([5.0, 0, 0])])
    )
    assert torch.equal(g.sh[3:7], second.sh)
    assert not g.sh[:3, 1:].any() and not g.sh[7:, 1:].any()


def test_meshes_beside_the_splats_are_left_out_with_a_warning(caplog):
    builder = built(random_splats())
    builder.document["meshes"][0]["primitives"].append({"attributes": {"POSITION": 0}})
    assert len(splats.load(builder.bytes())) == 5
    assert "1 primitives of the glTF are no splats and were left out" in caplog.text


def test_colours_for_linear_light_are_kept_with_a_warning(caplog):
    g, builder = random_splats(), built(random_splats())
    builder.document["meshes"][0]["primitives"][0]["extensions"][KHR]["colorSpace"] = "lin_rec709_display"
    assert_same(splats.load(builder.bytes()), g)
    assert "are meant for linear light" in caplog.text


# -------------------------------------------------------------------------------------------------------------- damage


def change(path, value):
    def apply(document):
        for key in path[:-1]:
            document = document[key]
        if value is None:
            del document[path[-1]]
        else:
            document[path[-1]] = value

    return apply


PRIMITIVE = ("meshes", 0, "primitives", 0)
EXTENSION = (*PRIMITIVE, "extensions", KHR)
ATTRIBUTES = (*PRIMITIVE, "attributes")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("nodes", 0, "scale"), [1, 2, 1], "node 0 gives its splats a scale that is 2 in one direction and 1 in"),
        (("nodes", 0, "matrix"), [1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1], "a scale that is 1.618 in one"),
        (("nodes", 0, "scale"), [0, 0, 0], "no size in at least one direction"),
        (
            ("nodes", 0, "matrix"),
            [1] * 16,
            "'matrix' of the glTF's node 0 is a list of 16; expected a matrix whose last",
        ),
        (
            ("nodes", 0, "rotation"),
            [0, 0, 0, 0],
            "'rotation' of the glTF's node 0 is a list of 4; expected a unit quat",
        ),
        (("nodes", 0, "translation"), [0, 0], "expected 3 numbers"),
        (("nodes", 0, "translation"), [0, 0, 1e39], "expected 3 numbers"),
        (("nodes", 0, "mesh"), 7, "'mesh' of the glTF's node 0 is 7; expected a whole number from 0 to 0"),
        (("nodes", 0, "children"), [0], "the glTF shows node 0 twice"),
        (("nodes",), [{"mesh": 0, "children": [1]}, {"children": [0]}], "shows node 0 twice"),
        (("scenes", 0, "nodes"), [], "is a glTF without Gaussian splats"),
        ((*PRIMITIVE, "extensions"), None, r"without Gaussian splats: .* \(1 other primitives, such as meshes\)"),
        (("extensionsRequired",), ["EXT_meshopt_compression"], "needs the glTF extension EXT_meshopt_compression"),
        ((*EXTENSION, "kernel"), "cube", "'kernel' of .* is the text 'cube'; expected 'ellipse'"),
        ((*EXTENSION, "colorSpace"), "aces", "expected 'srgb_rec709_display' or 'lin_rec709_display'"),
        ((*EXTENSION, "extensions"), {"KHR_x_spz": {}}, "stored by the extension KHR_x_spz, which is not supported"),
        ((*PRIMITIVE, "mode"), None, r"'mode' of .* is missing; expected 0 \(points\) for splats"),
        ((*PRIMITIVE, "indices"), 0, "expected splats without indices"),
        ((*ATTRIBUTES, f"{KHR}:SCALE"), None, "lacks the attribute KHR_gaussian_splatting:SCALE"),
        ((*ATTRIBUTES, f"{KHR}:SH_DEGREE_1_COEF_2"), None, r"has 3 attributes .*; expected 1, 4, 9 or 16"),
        ((*ATTRIBUTES, f"{KHR}:SH_DEGREE_0_COEF_0"), 99, "is 99; expected a whole number from 0 to 7"),
        (("accessors", 0, "type"), "VEC4", "expected VEC3 for POSITION"),
        (("accessors", 4, "componentType"), 5121, "expected 5126 for KHR_gaussian_splatting:SH_DEGREE_0_COEF_0"),
        (("accessors", 0, "count"), 4, "has 4 positions and 5 values of KHR_gaussian_splatting:ROTATION"),
        (("accessors", 0, "count"), 0, "expected a whole number from 1"),
        (("accessors", 0, "count"), 1 << 30, "claims 1073741824 values, which need"),
        (("accessors", 0, "sparse"), {}, r"accessor 0 \(POSITION\) is sparse, which is not supported"),
        (("accessors", 0, "bufferView"), None, "has no bufferView, which is not supported"),
        (("accessors", 0, "normalized"), 1, "expected true or false"),
        (("bufferViews", 0, "byteLength"), 1 << 20, "expected a whole number from 1 to"),
        (("bufferViews", 0, "byteOffset"), 440, "ends at byte 500 of 460 in the binary chunk"),
        (("bufferViews", 0, "byteStride"), 4, "expected a whole number from 12 to 252"),
        (("bufferViews", 0, "extensions"), {"EXT_meshopt_compression": {}}, "is compressed"),
        (("buffers", 0, "uri"), "data.bin", "lies outside the file"),
        (("meshes",), {}, "'meshes' of the glTF's header is an object; expected a list"),
        (("meshes", 0), 3, "the glTF's mesh 0 is 3; expected a JSON object"),
    ],
)
def test_what_is_wrong_is_named(path, value, message):
    builder = built(random_splats())
    change(path, value)(builder.document)
    with pytest.raises(FormatError, match=message) as error:
        splats.load(builder.bytes())
    assert str(error.value).startswith("The splat data (")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "the glTF's header is no valid JSON"),
        (b"[]", "the glTF's header is a list of 0; expected a JSON object"),
        (b'{"nodes": [{"scale": [NaN, 1, 1]}]}', "NaN is not a number of JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no valid JSON"),
        (b"\xff\xfe{}", "no valid JSON"),
        (b" " * ((1 << 20) + 4), "1048580 bytes of JSON; expected at most 1048576"),
    ],
)
def test_headers_that_are_no_json(text, message):
    with pytest.raises(FormatError, match=message):
        splats.load(Builder().bytes(text))


def test_headers_that_are_no_glb():
    data = built(random_splats()).bytes()
    for wrong, message in (
        (data[:4] + struct.pack("<I", 1) + data[8:], "binary glTF of version 1; expected 2"),
        (data[:-1], "before its contents do: it was cut short"),
        (data[:20], "before its contents do: it was cut short"),
        (data + b"\0", r"its glTF header says \d+: something follows"),
        (data[:12] + struct.pack("<I", 1 << 19) + data[16:], "chunk 0 of the glTF claims 524288 bytes"),
        (data[:16] + b"BIN\0" + data[20:], r"starts with a chunk b'BIN\\x00'; expected b'JSON'"),
    ):
        with pytest.raises(FormatError, match=message):
            splats.load(wrong)


def changed_somewhere(document, rng):
    """The document with one value, anywhere in it, that is another one or of another kind."""
    document = copy.deepcopy(document)
    places, waiting = [], [document]
    while waiting:
        inside = waiting.pop()
        keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        places += [(inside, key) for key in keys]
        waiting += [inside[key] for key in keys if isinstance(inside[key], (dict, list))]
    odd = (
        0,
        -1,
        1,
        3,
        255,
        5121,
        5123,
        1 << 31,
        1 << 63,
        10**400,
        0.5,
        1e308,
        "",
        "VEC3",
        None,
        True,
        [],
        {},
        [1] * 16,
    )
    inside, key = places[rng.integers(len(places))]
    inside[key] = odd[rng.integers(len(odd))]
    return document


def test_damage():
    """Anywhere in a file, in its header with lengths that fit, and to single values of it."""
    builder = built(random_splats(20, 3), {"rotation": ANGLE.tolist(), "scale": [2, 2, 2]})
    data = builder.bytes()
    text = json.dumps(builder.document).encode()
    for changed in damaged(data, 200, 0, 1000):
        load_or_refuse(changed, "auto")
    for changed in damaged(text, 200, 1, len(text)):
        load_or_refuse(builder.bytes(changed), "gltf")
    rng = np.random.default_rng(2)
    documents = [json.dumps(changed_somewhere(builder.document, rng)).encode() for _ in range(500)]
    loaded = [load_or_refuse(builder.bytes(document), "gltf") for document in documents]
    assert 10 < sum(g is not None for g in loaded) < 300
    assert_refused_when_cut(data, "gltf")


def test_data_that_is_used_over_and_over_takes_no_memory():
    """A thousand nodes that show 20,000 splats, and coefficients that are all the same accessor."""
    g = random_splats(20_000, 3)
    builder = Builder()
    shared = builder.accessor(g.sh[:, 0].numpy())
    names = {f"SH_DEGREE_{level}_COEF_{n}": shared for level in range(4) for n in range(2 * level + 1)}
    builder.primitive(g, **names)
    builder.document["nodes"] = [{"mesh": 0} for _ in range(500)]
    builder.document["scenes"][0]["nodes"] = list(range(500))
    data = builder.bytes()
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="show 10000000 splats of SH degree 3, .*data is used several times over"):
            splats.load(data)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data)
    finally:
        tracemalloc.stop()
    builder.document["nodes"] = [{"mesh": 0} for _ in range(1001)]
    builder.document["scenes"][0]["nodes"] = list(range(1001))
    with pytest.raises(FormatError, match="show more than 1000 primitives of splats"):
        splats.load(builder.bytes())


def test_a_long_chain_of_nodes():
    builder = built(random_splats())
    last = 400
    builder.document["nodes"] = [{"children": [i + 1], "translation": [0.5, 0, 0]} for i in range(last)] + [{"mesh": 0}]
    torch.testing.assert_close(splats.load(builder.bytes()).positions[:, 0], random_splats().positions[:, 0] + 200)
    builder.document["nodes"] = [{"children": [i + 1]} for i in range(600)] + [{"mesh": 0}]
    with pytest.raises(FormatError, match="node 600 of the glTF lies below more than 500 others"):
        splats.load(builder.bytes())


# ------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("degree", range(4))
def test_what_is_written_is_read(tmp_path, degree):
    g = random_splats(70_000 if degree == 1 else 7, degree, comment='a "comment", up="+z" front="-y" ü')
    assert splats.save(g, tmp_path / "a.glb") == []
    found = splats.load(tmp_path / "a.glb")
    for name in ("positions", "scales", "opacities", "sh"):
        assert torch.equal(getattr(found, name), getattr(g, name))
    assert_same(found, g)
    assert found.comment == g.comment


def test_the_written_file_is_what_the_specification_asks_for(tmp_path):
    g = random_splats(4, 1)
    splats.save(g, tmp_path / "a.glb")
    data = (tmp_path / "a.glb").read_bytes()
    assert struct.unpack("<4sII", data[:12]) == (b"glTF", 2, len(data))
    length, kind = struct.unpack("<I4s", data[12:20])
    assert (kind, length % 4) == (b"JSON", 0)
    document = json.loads(data[20 : 20 + length])
    size, kind = struct.unpack("<I4s", data[20 + length : 28 + length])
    binary = data[28 + length :]
    assert kind == b"BIN\0" and size == len(binary) == document["buffers"][0]["byteLength"]
    assert document["extensionsUsed"] == [KHR]
    (primitive,) = document["meshes"][0]["primitives"]
    assert primitive["mode"] == 0
    assert primitive["extensions"][KHR]["kernel"] == "ellipse"
    views, accessors = document["bufferViews"], document["accessors"]
    assert [view["byteOffset"] % 4 for view in views] == [0] * len(views)
    position = accessors[primitive["attributes"]["POSITION"]]
    assert position["min"] == g.positions.amin(0).tolist() and position["max"] == g.positions.amax(0).tolist()
    rotation = views[accessors[primitive["attributes"][f"{KHR}:ROTATION"]]["bufferView"]]
    xyzw = np.frombuffer(binary, "<f4", 16, rotation["byteOffset"]).reshape(4, 4)
    np.testing.assert_allclose(xyzw, np.roll(g.rotations.numpy(), -1, 1), atol=1e-6)
    color = accessors[primitive["attributes"]["COLOR_0"]]
    assert (color["componentType"], color["type"], color["normalized"]) == (5121, "VEC4", True)
    rgba = np.frombuffer(binary, "u1", 16, views[color["bufferView"]]["byteOffset"]).reshape(4, 4) / 255
    display = (0.5 + spherical_harmonics.C0 * g.sh[:, 0].numpy()).clip(0, 1)
    curve = np.where(rgba[:, :3] > 0.0031308, 1.055 * rgba[:, :3] ** (1 / 2.4) - 0.055, 12.92 * rgba[:, :3])
    np.testing.assert_allclose(curve, display, atol=0.03)
    np.testing.assert_allclose(rgba[:, 3:], g.opacities.numpy(), atol=0.002)


def test_degree_4_is_lost_with_a_word(tmp_path):
    g = random_splats(degree=4)
    assert splats.save(g, tmp_path / "a.glb") == ["view-dependent colour (SH degree 4)"]
    found = splats.load(tmp_path / "a.glb")
    assert torch.equal(found.sh, g.sh[:, :16])


def test_a_comment_too_long_for_a_header(tmp_path):
    with pytest.raises(
        FormatError, match="comment of the splats has 2000000 characters; the header of a glTF may have"
    ):
        splats.save(random_splats(comment="x" * 2_000_000), tmp_path / "a.glb")
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_a_comment_states_the_axes_of_gltf(tmp_path):
    builder = built(random_splats())
    assert splats.load(builder.bytes()).stated_axes == ("+y", "+z")
    changed = copy.deepcopy(builder)
    changed.document["asset"]["extras"] = {"comment": 7}
    assert splats.load(changed.bytes()).stated_axes == ("+y", "+z")
    splats.save(random_splats(), tmp_path / "a.glb")
    assert splats.load(tmp_path / "a.glb").stated_axes is None  # as they were
