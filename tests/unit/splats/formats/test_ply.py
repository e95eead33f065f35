import logging
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional

from invert3d_core import splats
from invert3d_core.errors import FormatError
from invert3d_core.splats import GaussianSplats
from invert3d_core.splats.formats.buffer import BLOCK_BYTES
from invert3d_core.splats.spherical_harmonics import C0

DC_ONLY = ("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", *(f"scale_{i}" for i in range(3)))
DC_ONLY += tuple(f"rot_{i}" for i in range(4))
DEGREE3 = DC_ONLY[:6] + tuple(f"f_rest_{i}" for i in range(45)) + DC_ONLY[6:]


def header(*lines, form="binary_little_endian"):
    return "\n".join(["ply", f"format {form} 1.0", *lines, "end_header", ""]).encode()


def vertex(names, count):
    return [f"element vertex {count}", *(f"property float {name}" for name in names)]


def ply(names, rows, *before):
    """A binary PLY with these float columns."""
    rows = np.asarray(rows, "<f4")
    return header(*before, *vertex(names, len(rows))) + rows.tobytes()


def ascii_ply(names, rows, *after, end="\n"):
    lines = [" ".join(str(value) for value in row) for row in rows]
    return header(*vertex(names, len(rows)), *after, form="ascii") + "\n".join(lines).encode() + end.encode()


def some_rows(count, names=DC_ONLY, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, len(names))).astype("<f4")


def random_splats(count, degree=3, seed=0, comment=""):
    g = torch.Generator().manual_seed(seed)
    return GaussianSplats(
        positions=torch.randn(count, 3, generator=g),
        scales=torch.exp(torch.randn(count, 3, generator=g) - 4),
        rotations=functional.normalize(torch.randn(count, 4, generator=g), dim=1),
        opacities=torch.rand(count, 1, generator=g),
        sh=torch.randn(count, (degree + 1) ** 2, 3, generator=g),
        comment=comment,
    )


# ------------------------------------------------------------------------------------------------- what columns mean


def test_each_column_goes_where_its_name_says():
    g = splats.load(ply(DEGREE3, [np.arange(len(DEGREE3))]))
    assert g.positions.tolist() == [[0, 1, 2]]
    assert g.sh[0, :3].tolist() == [[3, 4, 5], [6, 21, 36], [7, 22, 37]]
    assert g.sh[0, -1].tolist() == [20, 35, 50]
    assert g.opacities.item() == 1  # sigmoid(51)
    torch.testing.assert_close(g.scales, torch.exp(torch.tensor([[52.0, 53, 54]])))
    torch.testing.assert_close(g.rotations, functional.normalize(torch.tensor([[55.0, 56, 57, 58]])))


def test_an_infinite_logit_and_a_scale_of_nothing_are_values():
    rows = some_rows(3)
    rows[:, DC_ONLY.index("opacity")] = [np.inf, -np.inf, 0]
    rows[:, DC_ONLY.index("scale_1")] = -np.inf
    g = splats.load(ply(DC_ONLY, rows))
    assert g.opacities[:, 0].tolist() == [1, 0, 0.5]
    assert g.scales[:, 1].tolist() == [0, 0, 0]


def test_quaternions_of_any_length():
    rows = some_rows(5)
    first = DC_ONLY.index("rot_0")
    rows[:, first:] = [[0, 0, 0, 0], [0, 3, 0, 4], [1e-25, 0, 0, 1e-25], [0, 3e30, 0, 0], [2, 2, -2, -2]]
    g = splats.load(ply(DC_ONLY, rows))
    half = 0.5**0.5
    expected = [[1, 0, 0, 0], [0, 0.6, 0, 0.8], [half, 0, 0, half], [0, 1, 0, 0], [0.5, 0.5, -0.5, -0.5]]
    torch.testing.assert_close(g.rotations, torch.tensor(expected))


def test_2dgs_splats_are_flat():
    names = tuple(name for name in DC_ONLY if name != "scale_2")
    rows = some_rows(4, names)
    for data in (ply(names, rows), ascii_ply(names, rows.tolist())):
        g = splats.load(data)
        assert (g.scales[:, 2] == 0).all()
        torch.testing.assert_close(g.scales[:, :2], torch.from_numpy(np.exp(rows[:, 7:9])))
        assert torch.linalg.matrix_rank(g.covariances()[0]) == 2


def test_one_scale_gives_spheres():
    names = tuple(name for name in DC_ONLY if name not in ("scale_1", "scale_2"))
    rows = some_rows(4, names)
    g = splats.load(ply(names, rows))
    torch.testing.assert_close(g.scales, torch.from_numpy(np.exp(rows[:, 7:8])).expand(-1, 3))


@pytest.mark.parametrize(("kind", "code", "one"), [("uchar", "u1", 255), ("float", "<f4", 1), ("double", "<f8", 1)])
def test_colors_as_red_green_blue(kind, code, one):
    names = (*DC_ONLY[:3], "red", "green", "blue", *DC_ONLY[6:])
    kinds = {name: kind if name in ("red", "green", "blue") else "float" for name in names}
    table = np.zeros(2, [(name, code if kinds[name] == kind else "<f4") for name in names])
    table["red"], table["green"], table["blue"] = [0, one], [one, 0.2 * one], [0.4 * one, 0.6 * one]
    data = header("element vertex 2", *(f"property {kinds[name]} {name}" for name in names)) + table.tobytes()
    g = splats.load(data)
    torch.testing.assert_close(g.sh[:, 0] * C0 + 0.5, torch.tensor([[0, 1, 0.4], [1, 0.2, 0.6]]))
    text = ascii_ply(names, [list(row) for row in table.tolist()])
    if kind == "float":
        torch.testing.assert_close(splats.load(text).sh, g.sh)
    # Beside DC columns such columns say nothing: editors leave previews in them.
    both = ply((*DC_ONLY, "red", "green", "blue"), some_rows(3, range(17)))
    assert torch.equal(splats.load(both).sh[:, 0], torch.from_numpy(some_rows(3, range(17))[:, 3:6]))


def test_the_filter_of_mip_splatting_is_applied():
    """Each splat grows by the filter and keeps what it covers: opacity times the product of its scales."""
    names = (*DC_ONLY[:6], "filter_3D", *DC_ONLY[6:])
    rows = some_rows(50, names)
    rows[:, 6] = np.abs(rows[:, 6])
    rows[0, 6], rows[1, 8:11], rows[2, 8:11], rows[2, 6] = 0, -200, -200, 0
    plain = splats.load(ply(DC_ONLY, np.delete(rows, 6, axis=1)))
    g = splats.load(ply(names, rows))
    size = torch.from_numpy(rows[:, 6:7])
    torch.testing.assert_close(g.scales, (plain.scales**2 + size**2).sqrt())
    torch.testing.assert_close(g.opacities[:, 0] * g.scales.prod(1), plain.opacities[:, 0] * plain.scales.prod(1))
    assert torch.equal(g.opacities[[0, 2]], plain.opacities[[0, 2]])
    assert g.opacities[1] == 0


def test_degree_4():
    names = DC_ONLY + tuple(f"f_rest_{i}" for i in range(72))
    rows = some_rows(3, names)
    g = splats.load(ply(names, rows))
    assert g.degree == 4
    expected = rows[:, len(DC_ONLY) :].reshape(3, 3, 24).transpose(0, 2, 1)
    assert np.array_equal(g.sh[:, 1:].numpy(), expected)


@pytest.mark.parametrize("form", ["binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("kind", ["double", "short", "uchar"])
def test_column_types(form, kind):
    """Every column of another type, more of them than fit a block."""
    count = 3 + BLOCK_BYTES // 14
    code = {"double": "f8", "short": "i2", "uchar": "u1"}[kind]
    values = np.random.default_rng(0).integers(0, 7, (count, len(DC_ONLY)))
    values[:, -1] = 1  # no zero quaternion
    lines = [f"element vertex {count}", *(f"property {kind} {name}" for name in DC_ONLY)]
    order = "<" if form == "binary_little_endian" else ">"
    g = splats.load(header(*lines, form=form) + values.astype(order + code).tobytes())
    plain = splats.load(ply(DC_ONLY, values))
    for name in ("positions", "scales", "rotations", "opacities", "sh"):
        assert torch.equal(getattr(g, name), getattr(plain, name)), name


def test_a_file_of_many_blocks_is_that_of_its_rows():
    count = 2 * BLOCK_BYTES // (4 * len(DEGREE3)) + 17
    rows = some_rows(count, DEGREE3)
    g = splats.load(ply(DEGREE3, rows))
    assert np.array_equal(g.positions.numpy(), rows[:, :3])
    assert np.array_equal(g.sh[:, 1:].numpy(), rows[:, 6:51].reshape(-1, 3, 15).transpose(0, 2, 1))
    np.testing.assert_allclose(g.scales.numpy(), np.exp(rows[:, 52:55]), rtol=1e-6)
    np.testing.assert_allclose(g.opacities.numpy()[:, 0], 1 / (1 + np.exp(-rows[:, 51].astype("f8"))), rtol=1e-6)


def test_ascii_numbers_and_spacing():
    row = ["1e-3", "-.5", "+2", "0", "0", "0", "inf", "0", "-inf", "0", "1", "0", "0", "0"]
    g = splats.load(header(*vertex(DC_ONLY, 2), form="ascii") + ("\t".join(row) + "  \r\n\n" + " ".join(row)).encode())
    torch.testing.assert_close(g.positions, torch.tensor([[1e-3, -0.5, 2.0]] * 2))
    assert g.opacities.tolist() == [[1.0], [1.0]]


def test_other_elements_before_and_after():
    rows = some_rows(2)
    lists = [
        "element strips 3",
        "property uchar tag",
        "property list ushort short parts",
        "property list uchar double d",
    ]
    strips = b"".join(struct.pack(f"<BH{n}hB{n}d", 7, n, *range(n), n, *range(n)) for n in (0, 3, 1))
    fixed = ["element camera 2", "property double f", "property uchar id"]
    cameras = struct.pack("<dBdB", 1, 2, 3, 4)
    data = header(*lists, *fixed, *vertex(DC_ONLY, 2), *(line.replace("strips", "more") for line in lists))
    g = splats.load(data + strips + cameras + rows.tobytes() + strips)
    assert np.array_equal(g.positions.numpy(), rows[:, :3])


def test_other_elements_in_ascii():
    rows = some_rows(2).tolist()
    text = ascii_ply(DC_ONLY, rows, "element face 2", "property list uchar int vertex_indices", end="\n3 0 1 1\n0\n")
    before = text.replace(b"element vertex 2", b"element note 1\nproperty list uchar int n\nelement vertex 2")
    start = before.index(b"end_header\n") + len(b"end_header\n")
    g = splats.load(before[:start] + b"2 5 6\n" + before[start:])
    torch.testing.assert_close(g.positions, torch.tensor(rows)[:, :3])


def test_comments_are_kept():
    g = splats.load(ply(DC_ONLY, some_rows(1), 'comment up="+y", front="+z"', "obj_info  two", "comment"))
    assert g.comment == 'up="+y", front="+z"\n two\n'
    assert g.stated_axes == ("+y", "+z")


def test_a_padded_file_is_read():
    assert len(splats.load(ply(DC_ONLY, some_rows(2)) + b"\0\0\r\n")) == 2


# ---------------------------------------------------------------------------------------------------------- writing


def same(a, b, name):
    return torch.equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("degree", range(5))
def test_what_is_written_comes_back(tmp_path, degree):
    g = random_splats(3 * BLOCK_BYTES // (4 * 62) + 5, degree, comment='a\nb up="+y"')
    assert splats.save(g, tmp_path / "a.ply") == []
    back = splats.load(tmp_path / "a.ply")
    assert same(g, back, "positions")
    assert same(g, back, "sh")
    assert back.comment == g.comment
    torch.testing.assert_close(back.scales, g.scales, rtol=2e-6, atol=0)
    torch.testing.assert_close(back.opacities, g.opacities, rtol=2e-6, atol=0)
    torch.testing.assert_close(back.rotations, g.rotations, rtol=0, atol=2e-7)


@st.composite
def any_splats(draw):
    count, bands = draw(st.integers(1, 6)), draw(st.sampled_from([1, 4, 9, 16, 25]))
    plain = {"allow_nan": False, "allow_infinity": False, "allow_subnormal": False, "width": 32}

    def array(width, low, high):
        return torch.from_numpy(draw(hnp.arrays(np.float32, (count, *width), elements=st.floats(low, high, **plain))))

    rotations = array((4,), -1, 1)
    rotations[rotations.norm(dim=1) < 1e-3] = torch.tensor([1.0, 0, 0, 0])
    return GaussianSplats(
        positions=array((3,), None, None),
        scales=array((3,), 0, 2.0**100),
        rotations=functional.normalize(rotations, dim=1),
        opacities=array((1,), 0, 1),
        sh=array((bands, 3), None, None),
        comment=draw(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)),
    )


@settings(max_examples=60)
@given(any_splats())
def test_any_splats_come_back(tmp_path_factory, g):
    """Positions, SH and comment to the bit; scales and opacities, which are stored through log and logit, to float32's
    rounding of those; 0 and 1 exactly."""
    path = tmp_path_factory.mktemp("ply") / "a.ply"
    assert splats.save(g, path) == []
    back = splats.load(path)
    assert same(g, back, "positions")
    assert same(g, back, "sh")
    assert back.comment == g.comment
    assert torch.equal(back.scales == 0, g.scales == 0)
    assert (back.opacities[g.opacities == 0] == 0).all()
    assert (back.opacities[g.opacities == 1] == 1).all()
    # A stored logarithm of size L is rounded by L/2^24 at most.
    torch.testing.assert_close(back.scales, g.scales, rtol=8e-6, atol=0)
    torch.testing.assert_close(back.opacities, g.opacities, rtol=8e-6, atol=0)
    torch.testing.assert_close(back.rotations, g.rotations, rtol=0, atol=2e-7)


def test_no_infinity_is_written(tmp_path):
    """Other readers drop rows with infinite columns."""
    g = random_splats(4, 0)
    g.opacities[0], g.opacities[1], g.scales[2] = 0, 1, 0
    splats.save(g, tmp_path / "a.ply")
    data = (tmp_path / "a.ply").read_bytes()
    rows = np.frombuffer(data[data.index(b"end_header\n") + 11 :], "<f4")
    assert np.isfinite(rows).all()
    assert splats.load(data).opacities[:2].tolist() == [[0], [1]]


def test_a_comment_outside_ascii_is_escaped_and_said(tmp_path):
    lost = splats.save(random_splats(1, 0, comment="café\r\nend_header"), tmp_path / "a.ply")
    assert lost == ["characters of the comment outside ASCII, written as escapes"]
    assert splats.load(tmp_path / "a.ply").comment == "caf\\xe9\\r\nend_header"


def test_an_endless_comment(tmp_path):
    with pytest.raises(FormatError, match="The comment of the splats has 2000000 characters"):
        splats.save(random_splats(1, 0, comment="x" * 2_000_000), tmp_path / "a.ply")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- values that are not finite


def test_a_few_bad_rows_are_dropped_with_a_warning(caplog):
    rows = some_rows(40)
    rows[7, 0], rows[9, 8], rows[21, 5], rows[30, 12] = np.nan, 1000, np.inf, np.nan
    with caplog.at_level(logging.WARNING, "invert3d"):
        g = splats.load(ply(DC_ONLY, rows))
    assert len(g) == 36
    assert np.array_equal(g.positions.numpy(), np.delete(rows, [7, 9, 21, 30], 0)[:, :3])
    g.validate()
    assert "The splat data" in caplog.text
    assert "dropped 4 of 40 splats" in caplog.text
    assert "the first is splat 7" in caplog.text


@pytest.mark.parametrize("column", ["x", "f_dc_1", "f_rest_44", "opacity", "scale_2", "rot_3"])
def test_a_file_full_of_nan(tmp_path, column):
    rows = some_rows(40, DEGREE3)
    rows[:, DEGREE3.index(column)] = np.nan
    (tmp_path / "nan.ply").write_bytes(ply(DEGREE3, rows))
    with pytest.raises(
        FormatError, match=r"nan\.ply': 40 of 40 splats are unusable .*NaN.* first is splat 0.*at most 10%"
    ):
        splats.load(tmp_path / "nan.ply")


def test_bad_values_of_columns_that_are_not_used_do_not_matter():
    names = (*DC_ONLY, "nx", "confidence")
    rows = some_rows(10, names)
    rows[:, -2:] = np.nan
    assert len(splats.load(ply(names, rows))) == 10


# ----------------------------------------------------------------------------------------------------------- refusals

GOOD = ply(DC_ONLY, some_rows(3))


def without(*names):
    return tuple(name for name in DC_ONLY if name not in names)


def renamed(old, new):
    return tuple(new if name == old else name for name in DC_ONLY)


CLOUD = ("x", "y", "z", "red", "green", "blue")
ROWS = some_rows(3).tolist()

REFUSED = {
    "Scaffold-GS": (
        ply(("x", "y", "z", "f_offset_0", "f_anchor_feat_0"), some_rows(3, range(5))),
        "holds the anchors of a Scaffold-GS model .*'f_anchor_feat_0'.* Export its splats",
    ),
    "no color": (ply(without(*DC_ONLY[3:6]), some_rows(3, range(11))), "lacks the PLY columns f_dc_0, f_dc_1, f_dc_2"),
    "half a color": (
        ply((*without(*DC_ONLY[3:6]), "red", "green"), some_rows(3, range(13))),
        "lacks the PLY columns f_dc_0, f_dc_1, f_dc_2",
    ),
    "codebook": (
        header(*vertex(("x",), 3), "element codebook_centers 256", "property float features_dc") + bytes(99),
        "is a codebook-compressed PLY .*'codebook_centers'.* standard, uncompressed",
    ),
    "point cloud": (
        ply(CLOUD, some_rows(3, CLOUD)),
        r"is a point cloud, not .* no columns f_dc_0\.\.2 \(found x, y, z, red",
    ),
    "mesh": (
        header(*vertex(("x", "y", "z"), 1), "element face 0", "property list uchar int vertex_indices") + bytes(12),
        "is a point cloud or mesh, not a Gaussian splat",
    ),
    "no vertex": (header("element vertices 3", "property float x") + bytes(12), "0 PLY elements 'vertex' .*: vertices"),
    "no elements": (header(), r"0 PLY elements 'vertex' \(elements: none\)"),
    "two vertex": (header(*vertex(DC_ONLY, 1), *vertex(DC_ONLY, 1)) + bytes(112), "2 PLY elements 'vertex'"),
    "no splats": (header(*vertex(DC_ONLY, 0)), "holds no splats"),
    "no opacity": (ply(without("opacity", "rot_2"), some_rows(3, DC_ONLY[2:])), "lacks the PLY columns opacity, rot_2"),
    "one scale": (ply(without("scale_1"), some_rows(3, DC_ONLY[1:])), "lacks the PLY columns scale_1 of"),
    "one dc": (ply(renamed("f_dc_2", "f_dc_3"), some_rows(3)), "lacks the PLY columns f_dc_2 of"),
    "double": (ply(renamed("f_dc_2", "x"), some_rows(3)), "has the PLY column 'x' more than once"),
    "half a degree": (
        ply((*DC_ONLY, "f_rest_0"), some_rows(3, (*DC_ONLY, 1))),
        r"has 1 PLY columns f_rest_\*; expected",
    ),
    "a gap": (
        ply((*DC_ONLY, *(f"f_rest_{i}" for i in range(1, 10))), some_rows(3, range(23))),
        r"has 9 PLY columns f_rest_\*; expected f_rest_0 to f_rest_8",
    ),
    "list column": (
        header(*vertex(DC_ONLY, 1), "property list uchar int extra") + bytes(99),
        "'vertex' has a list column",
    ),
    "cut header": (GOOD[:100], r"no line 'end_header' in its first 100 bytes"),
    "endless header": (GOOD[:100] + b"comment " + b"x" * (1 << 20), "no line 'end_header'"),
    "no format": (GOOD.replace(b"format binary_little_endian 1.0\n", b""), "no 'format' line.*binary_little_endian, "),
    "format": (
        GOOD.replace(b"binary_little_endian", b"binary_middle"),
        "line 2 of the PLY header .* 'format binary_middle",
    ),
    "type": (GOOD.replace(b"float opacity", b"half opacity"), "line 10 of .*'property half opacity'"),
    "count": (GOOD.replace(b"vertex 3", b"vertex -3"), "line 3 of .*'element vertex -3'"),
    "huge count": (GOOD.replace(b"vertex 3", b"vertex " + b"9" * 5000), "line 3 of .*'element vertex 9999"),
    "orphan": (GOOD.replace(b"element vertex 3\n", b""), "line 3 of .*'property float x'"),
    "more claimed": (
        GOOD.replace(b"vertex 3", b"vertex 4"),
        "claims 4 rows of 'vertex', at least 224 bytes, but only 168 are left",
    ),
    "far more claimed": (
        GOOD.replace(b"vertex 3", b"vertex 999999999999999999"),
        "claims 999999999999999999 rows of 'vertex'",
    ),
    "cut short": (GOOD[:-1], "claims 3 rows of 'vertex', at least 168 bytes, but only 167 are left"),
    "longer": (GOOD + b"0", "has 1 bytes more than its PLY header describes.* text-mode transfer"),
    "much longer": (GOOD + bytes(5000), "has 5000 bytes more"),
    "cut element": (
        GOOD.replace(b"end_header", b"element camera 2\nproperty double f\nend_header") + bytes(15),
        "claims 2 rows of 'camera', at least 16 bytes, but only 15 are left",
    ),
    "cut before": (
        header("element camera 99", "property double f", *vertex(DC_ONLY, 3)) + bytes(168),
        "claims 99 rows of 'camera'",
    ),
    "long list": (
        GOOD.replace(b"end_header", b"element face 1\nproperty list int int f\nend_header") + struct.pack("<i", 2**30),
        "list in the PLY element 'face' claims 1073741824 values",
    ),
    "negative list": (
        GOOD.replace(b"end_header", b"element face 1\nproperty list int int f\nend_header") + struct.pack("<i", -1),
        "list in the PLY element 'face' claims -1 values",
    ),
    "nan list": (
        GOOD.replace(b"end_header", b"element face 1\nproperty list float int f\nend_header")
        + struct.pack("<f", np.nan),
        "list in the PLY element 'face' claims nan values",
    ),
    "cut list": (
        GOOD.replace(b"end_header", b"element face 2\nproperty list uchar int f\nproperty int g\nend_header")
        + struct.pack("<BiiB", 1, 5, 6, 0),
        "ends after .* bytes, before its contents do",
    ),
    "ascii short row": (
        ascii_ply(DC_ONLY, [*ROWS[:2], ROWS[2][:-1]]),
        r"row 3 of .* is not 14 numbers \(it has 13 values",
    ),
    "ascii word": (ascii_ply(DC_ONLY, [ROWS[0], [*ROWS[1][:-1], "nil"]]), r"row 2 .* is not 14 numbers .*'nil'"),
    "ascii fewer rows": (
        ascii_ply(DC_ONLY, ROWS).replace(b"vertex 3", b"vertex 4"),
        "ends after .* bytes, before its contents do",
    ),
    "ascii far more": (
        ascii_ply(DC_ONLY, ROWS).replace(b"vertex 3", b"vertex 99999999999"),
        "claims 99999999999 rows of 'vertex'",
    ),
    "ascii longer": (
        ascii_ply(DC_ONLY, [*ROWS, ROWS[0]]).replace(b"vertex 4", b"vertex 3"),
        "bytes more than its PLY header",
    ),
    "ascii one line": (
        ascii_ply(DC_ONLY, [ROWS[0] + ROWS[1], ROWS[1], ROWS[2]]),
        "row 1 .*it has 28 values",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path, case):
    data, message = REFUSED[case]
    path = tmp_path / "some.ply"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message) as error:
        splats.load(path)
    assert "some.ply" in str(error.value)
