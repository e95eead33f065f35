import logging
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from torch.nn import functional

from invert3d_core import splats
from invert3d_core.errors import FormatError
from invert3d_core.splats import GaussianSplats
from invert3d_core.splats.formats import compressed_ply
from invert3d_core.splats.formats.buffer import BLOCK_BYTES
from invert3d_core.splats.spherical_harmonics import C0
from tests.unit.splats.formats.damage import assert_refused_when_cut, damaged, load_or_refuse

BOUNDS = [f"{end}_{what}{axis}" for what in ("", "scale_") for end in ("min", "max") for axis in "xyz"]
COLORS = [f"{end}_{channel}" for end in ("min", "max") for channel in "rgb"]
PACKED = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]


def header(*elements, order="little"):
    lines = ["ply", f"format binary_{order}_endian 1.0"]
    for name, count, kind, columns in elements:
        lines += [f"element {name} {count}", *(f"property {kind} {column}" for column in columns)]
    return "\n".join([*lines, "end_header", ""]).encode()


def a_file(bounds, words, codes=(), colors=COLORS, order="little"):
    """A file of one chunk."""
    sign, words = "<>"[order == "big"], np.asarray(words)
    elements = [("chunk", 1, "float", [*BOUNDS, *colors]), ("vertex", len(words), "uint", PACKED)]
    codes = np.asarray(codes, np.uint8)
    if codes.size:
        elements.append(("sh", len(words), "uchar", [f"f_rest_{i}" for i in range(codes.shape[1])]))
    data = np.asarray(bounds).astype(sign + "f4").tobytes() + words.astype(sign + "u4").tobytes() + codes.tobytes()
    return header(*elements, order=order) + data


def random_splats(count, degree=3, seed=0, comment=""):
    g = torch.Generator().manual_seed(seed)
    return GaussianSplats(
        torch.randn(count, 3, generator=g),
        torch.exp(torch.randn(count, 3, generator=g) - 3),
        functional.normalize(torch.randn(count, 4, generator=g), dim=1),
        torch.rand(count, 1, generator=g),
        torch.randn(count, (degree + 1) ** 2, 3, generator=g).clamp(-4, 4),
        comment,
    )


def saved(tmp_path, g, name="a.ply", **options):
    lost = splats.save(g, tmp_path / name, format="compressed_ply", **options)
    return splats.load(tmp_path / name), lost


# ------------------------------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_splat_by_hand(order):
    bounds = [0, 0, 0, 1, 2, 4, -1, -2, -3, 1, 2, 3, 0, 0.5, 0, 1, 1.5, 1]
    position = 2047 << 21 | 1023 << 11 | 0
    rotation = 2 << 30 | 1023 << 20 | 0 << 10 | 511
    scale = 0 << 21 | 1023 << 11 | 2047
    word = [position, rotation, scale, 0 << 24 | 255 << 16 | 51 << 8 | 204]
    codes = [[0, 255, 128, 127, 1, 254, 64, 192, 200]]
    g = splats.load(a_file([bounds], [word], codes, order=order))
    assert g.positions.tolist() == [[1, 2, 0]]
    torch.testing.assert_close(g.scales, torch.exp(torch.tensor([[-1.0, 2, 3]])))
    half, small = 0.5**0.5, (511 / 1023 - 0.5) * 2**0.5
    expected = torch.tensor([[half, -half, 0.0, small]])  # y was left out, and there is no room for it
    torch.testing.assert_close(g.rotations, functional.normalize(expected, dim=1), atol=1e-6, rtol=0)
    torch.testing.assert_close(g.opacities, torch.tensor([[0.8]]))
    torch.testing.assert_close(g.sh[0, 0] * C0 + 0.5, torch.tensor([0.0, 1.5, 0.2]))
    # Channel after channel in the file.
    middle = [(code + 0.5) / 32 - 4 for code in codes[0]]
    middle[0], middle[1] = -4, 4
    assert g.sh[0, 1:].T.flatten().tolist() == middle


def test_colors_without_bounds_are_direct():
    g = splats.load(a_file([[0] * 12], [[0, 0, 0, 51 << 24 | 102 << 16 | 255 << 8 | 0]], colors=()))
    torch.testing.assert_close(g.sh[0, 0] * C0 + 0.5, torch.tensor([0.2, 0.4, 1.0]))
    assert (g.opacities.item(), g.degree) == (0, 0)


def test_every_splat_has_the_bounds_of_its_chunk():
    count = 2 * 256 + 7
    bounds = np.zeros((3, 18), "<f4")
    bounds[:, 0] = bounds[:, 3] = [10, 20, 30]
    elements = ("chunk", 3, "float", BOUNDS + COLORS), ("vertex", count, "uint", PACKED)
    g = splats.load(header(*elements) + bounds.tobytes() + bytes(16 * count))
    assert g.positions[:, 0].tolist() == [10] * 256 + [20] * 256 + [30] * 7


def test_columns_and_elements_of_any_order_and_more_of_them():
    columns = ["unknown", *reversed(BOUNDS + COLORS)]
    elements = (
        ("camera", 2, "double", ["f"]),
        ("vertex", 1, "uint", ["more", *reversed(PACKED)]),
        ("chunk", 1, "float", columns),
    )
    values = dict.fromkeys(columns, 0.0) | {"min_y": 3.0, "max_y": 5.0, "min_scale_z": -1.0, "max_scale_z": -1.0}
    words = [9, 0, 0, 0, 1023 << 11]
    data = bytes(16) + struct.pack("<5I", *words) + struct.pack(f"<{len(columns)}f", *(values[c] for c in columns))
    g = splats.load(header(*elements) + data)
    assert g.positions.tolist() == [[0, 5, 0]]
    torch.testing.assert_close(g.scales, torch.exp(torch.tensor([[0.0, 0, -1]])))


# ------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("degree", range(4))
def test_what_is_written_comes_back(tmp_path, degree):
    """Within half a step of what the format has, over several blocks."""
    count = BLOCK_BYTES // (4 * (11 + 3 * (degree + 1) ** 2)) + 700
    g = random_splats(count, degree, seed=degree)
    back, lost = saved(tmp_path, g, sort=False)
    assert (len(back), back.degree) == (count, degree)
    pad = -count % 256
    for name, values, found in (
        ("positions", g.positions, back.positions),
        ("scales", g.scales.log(), back.scales.log()),
        ("colors", g.sh[:, 0], back.sh[:, 0]),
    ):
        chunks = torch.cat([values, values[-1:].expand(pad, 3)]).reshape(-1, 256, 3)
        span = (chunks.amax(1) - chunks.amin(1)).repeat_interleave(256, 0)[:count]
        steps = torch.tensor([255.0, 255, 255] if name == "colors" else [2047.0, 1023, 2047])
        assert ((values - found).abs() <= 0.5 * span / steps + 4e-6).all(), name
    assert ((g.opacities - back.opacities).abs() <= 0.5 / 255 + 1e-6).all()
    assert ((g.rotations * back.rotations).sum(1).abs() > np.cos(np.radians(0.15))).all()
    assert ((g.sh[:, 1:] - back.sh[:, 1:]).abs() <= 4 / 128 + 1e-6).all()
    kinds = [what.split(" precision")[0] for what in lost]
    expected = ["position", "scale", "rotation", "opacity", "colour", "view-dependent colour"]
    assert kinds == expected[: 6 if degree else 5]


@pytest.mark.parametrize("count", [1, 255, 256, 257, 700])
def test_writing_what_was_read_loses_nothing(tmp_path, count):
    first, _ = saved(tmp_path, random_splats(count, 2))
    again, lost = saved(tmp_path, first, "b.ply", sort=False)
    assert lost == []
    for name in ("positions", "scales", "rotations", "opacities", "sh"):
        a, b = getattr(first, name), getattr(again, name)
        if name == "rotations":
            b = b * (a * b).sum(1, keepdim=True).sign()
        torch.testing.assert_close(b, a, rtol=1e-6, atol=3e-6, msg=name)


def test_neighbours_share_a_chunk(tmp_path):
    """Sorted, the steps of two far clusters are those of each cluster."""
    g = random_splats(1024, 0)
    g.positions[:] = g.positions * 0.01 + torch.tensor([0.0, 0, 100]) * (torch.arange(1024) % 2)[:, None]
    back, lost = saved(tmp_path, g)
    assert "the order of the splats (along a Morton curve)" in lost
    order = torch.cdist(back.positions.double(), g.positions.double()).argmin(1)
    assert sorted(order.tolist()) == list(range(1024))
    assert (back.positions - g.positions[order]).abs().max() < 5e-5
    kept, _ = saved(tmp_path, g, sort=False)
    assert (kept.positions - g.positions).abs().max() > 0.01


def test_morton_order_by_hand():
    corners = np.array([[x, y, z] for z in (0, 1) for y in (0, 1) for x in (0, 1)], np.float32)
    shuffled = np.random.default_rng(0).permutation(8)
    assert corners[shuffled][compressed_ply.morton_order(corners[shuffled])].tolist() == corners.tolist()
    line = np.zeros((5, 3), np.float32)
    line[:, 1] = [3e38, -3e38, 0, 1e30, -1]
    assert compressed_ply.morton_order(line)[0] == 1
    assert compressed_ply.morton_order(line)[-1] == 0
    assert compressed_ply.morton_order(np.ones((3, 3), np.float32)).tolist() == [0, 1, 2]


def test_what_is_lost_is_said(tmp_path):
    g = random_splats(3, 4, comment='up="+y"\nnaïve')
    g.scales[0] = 0
    g.sh[1, 2] = 7
    back, lost = saved(tmp_path, g)
    assert lost[:3] == [
        "view-dependent colour (SH degree 4)",
        "view-dependent colour coefficients beyond ±4 of 1 splats, clipped",
        "scales below 2.1e-9 or above 4.9e8 of 1 splats, clipped",
    ]
    assert lost[-1] == "characters of the comment outside ASCII, written as escapes"
    assert (back.degree, back.comment, back.stated_axes) == (3, 'up="+y"\nna\\xefve', None)
    assert (back.sh[:, 2].amax(), back.scales.min() < 1e-8) == (4, True)


def test_extreme_splats_are_written(tmp_path):
    g = random_splats(300, 1)
    g.positions[:2] = torch.tensor([[3e38, -3e38, 0], [-3e38, 3e38, 1e-40]])
    g.scales[:2] = torch.tensor([[3e38, 0, 1e-40], [1, 1, 1]])
    g.sh[:2, 0] = torch.tensor([[1e30, -1e30, 0], [-1e30, 0, 0]])
    back, _ = saved(tmp_path, g)
    assert len(back) == 300
    back.validate()


def test_an_endless_comment(tmp_path):
    with pytest.raises(FormatError, match="comment of the splats has 2000000 characters"):
        splats.save(random_splats(2, comment="x" * 2_000_000), tmp_path / "a.ply", format="compressed_ply")


def test_a_header_too_long_to_tell_at_its_start(tmp_path):
    """The columns that give the format away lie behind what detection sees."""
    g = random_splats(5, 1, comment="a line\n" * 20_000)
    back, _ = saved(tmp_path, g)
    assert (len(back), len(back.comment)) == (5, len(g.comment))


def test_its_own_extension_is_enough(tmp_path):
    for name in ("a.compressed.ply", "b.COMPRESSED.ply"):
        splats.save(random_splats(3), tmp_path / name)
        assert compressed_ply.detect((tmp_path / name).read_bytes())
    splats.save(random_splats(3), tmp_path / "compressed.ply")
    assert not compressed_ply.detect((tmp_path / "compressed.ply").read_bytes())


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_chunk_with_bounds_that_are_not_finite_is_dropped_or_refused(caplog):
    count = 256 * 20
    bounds = np.zeros((20, 18), "<f4")
    bounds[3, 6:12] = np.nan
    elements = ("chunk", 20, "float", BOUNDS + COLORS), ("vertex", count, "uint", PACKED)
    with caplog.at_level(logging.WARNING, "invert3d"):
        g = splats.load(header(*elements) + bounds.tobytes() + bytes(16 * count))
    assert len(g) == count - 256
    assert "dropped 256 of 5120 splats" in caplog.text
    bounds[5:9, 0] = np.inf
    with pytest.raises(FormatError, match="1280 of 5120 splats are unusable"):
        splats.load(header(*elements) + bounds.tobytes() + bytes(16 * count))


CHUNK, VERTEX = ("chunk", 1, "float", BOUNDS), ("vertex", 3, "uint", PACKED)
SH = ("sh", 3, "uchar", [f"f_rest_{i}" for i in range(9)])
ROWS = bytes(48 + 48)
REFUSED = {
    "text": (header(CHUNK, VERTEX).replace(b"binary_little_endian", b"ascii") + ROWS, "as text or with list columns"),
    "list": (
        header(CHUNK, VERTEX, ("face", 1, "list uchar int", ["v"])) + ROWS + bytes(1),
        "as text or with list columns",
    ),
    "no chunk": (header(VERTEX) + ROWS, "with the elements vertex; expected chunk, vertex and perhaps sh"),
    "two chunks": (header(CHUNK, CHUNK, VERTEX) + ROWS, "with the elements chunk, chunk, vertex; expected"),
    "no splats": (header(("chunk", 0, "float", BOUNDS), ("vertex", 0, "uint", PACKED)), "holds no splats"),
    "more chunks": (
        header(("chunk", 2, "float", BOUNDS), VERTEX) + ROWS + bytes(48),
        "has 3 splats and 2 rows of 'chunk'; expected 1",
    ),
    "less sh": (
        header(CHUNK, VERTEX, ("sh", 2, *SH[2:])) + ROWS + bytes(18),
        "3 splats and 2 rows of 'sh'; expected 3",
    ),
    "no max_z": (
        header(("chunk", 1, "float", [*BOUNDS[:5], "max_w", *BOUNDS[6:]]), VERTEX) + ROWS,
        "lacks the columns max_z in the PLY element 'chunk'",
    ),
    "half a color": (
        header(("chunk", 1, "float", [*BOUNDS, "min_r"]), VERTEX) + ROWS + bytes(4),
        "lacks the columns min_g, min_b, max_r, max_g, max_b in",
    ),
    "float words": (
        header(CHUNK, ("vertex", 3, "float", PACKED)) + ROWS,
        "lacks the columns packed_position, .* in the PLY element 'vertex', or has them in another type",
    ),
    "a gap": (
        header(CHUNK, VERTEX, ("sh", 3, "uchar", [f"f_rest_{i}" for i in range(1, 10)])) + ROWS + bytes(27),
        "lacks the columns f_rest_0 in the PLY element 'sh'",
    ),
    "half a degree": (
        header(CHUNK, VERTEX, ("sh", 3, "uchar", SH[3][:8])) + ROWS + bytes(24),
        "has 8 columns in the PLY element 'sh'; expected f_rest_0 to f_rest_8, 23 or 44",
    ),
    "degree 4": (
        header(CHUNK, VERTEX, ("sh", 3, "uchar", [f"f_rest_{i}" for i in range(72)])) + ROWS + bytes(216),
        "has 72 columns in the PLY element 'sh'",
    ),
    "cut short": (header(CHUNK, VERTEX) + ROWS[:-1], "claims 3 rows of 'vertex', at least 48 bytes, but only 47"),
    "longer": (header(CHUNK, VERTEX) + ROWS + b"1", "has 1 bytes more than its PLY header describes"),
    "far more": (
        header(("chunk", 10**15, "float", BOUNDS), ("vertex", 256 * 10**15, "uint", PACKED)) + ROWS,
        "claims 1000000000000000 rows of 'chunk'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path, case):
    data, message = REFUSED[case]
    path = tmp_path / "some.ply"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=message) as error:
            splats.load(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert "some.ply" in str(error.value)


def test_damage(tmp_path):
    saved(tmp_path, random_splats(300, 1))
    data = (tmp_path / "a.ply").read_bytes()
    assert_refused_when_cut(data, "auto")
    loaded = [load_or_refuse(changed, "auto") for changed in damaged(data, 300, 0, 1200)]
    assert 20 < sum(g is not None for g in loaded) < 280
