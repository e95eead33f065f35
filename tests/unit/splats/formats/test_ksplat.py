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
from invert3d_core.splats.formats import ksplat
from invert3d_core.splats.formats.buffer import BLOCK_BYTES
from invert3d_core.splats.spherical_harmonics import C0
from tests.unit.splats.formats.damage import assert_refused_when_cut, damaged, load_or_refuse


def main_header(splats_, level=0, sections=1, room=None, max_sections=None, version=(0, 1), low=0.0, high=0.0):
    counts = (max_sections or sections, sections, splats_ if room is None else room, splats_)
    return struct.pack("<BBxxIIIIHxx3fff", *version, *counts, level, 0, 0, 0, low, high).ljust(4096, b"\0")


def section_header(
    count, room=None, capacity=0, buckets=0, block=0.0, center_bytes=None, reach=0, full=0, partial=0, degree=0
):
    center_bytes = (12 if buckets else 0) if center_bytes is None else center_bytes
    room = count if room is None else room
    head = struct.pack("<IIIIfHxxI", count, room, capacity, buckets, block, center_bytes, reach)
    return (head + struct.pack("<IIIH", 0, full, partial, degree)).ljust(1024, b"\0")


def record(level, position=(0, 0, 0), scale=(1, 1, 1), rotation=(1, 0, 0, 0), rgba=(0, 0, 0, 0), sh=()):
    number = "e" if level else "f"
    data = struct.pack("<3H" if level else "<3f", *position) + struct.pack(f"<7{number}", *scale, *rotation)
    return data + bytes(rgba) + struct.pack(f"<{len(sh)}{'B' if level == 2 else number}", *sh)


def random_splats(count, degree=2, seed=0, comment="", spread=3.0):
    g = torch.Generator().manual_seed(seed)
    sh = torch.randn(count, (degree + 1) ** 2, 3, generator=g)
    sh[:, 0] = (torch.rand(count, 3, generator=g) - 0.5) / C0
    return GaussianSplats(
        spread * torch.randn(count, 3, generator=g),
        torch.exp(torch.randn(count, 3, generator=g) - 3),
        functional.normalize(torch.randn(count, 4, generator=g), dim=1),
        torch.rand(count, 1, generator=g),
        sh,
        comment,
    )


def saved(tmp_path, g, name="a.ksplat", **options):
    lost = splats.save(g, tmp_path / name, **options)
    return splats.load(tmp_path / name), lost


def sources(g, back):
    """Which splat of g each one read is: the nearest."""
    order = torch.cdist(back.positions.double(), g.positions.double()).argmin(1)
    assert sorted(order.tolist()) == list(range(len(g)))
    return order


# ------------------------------------------------------------------------------------------------------------- by hand


def test_a_splat_of_level_0_by_hand():
    sh = [float(value) for value in range(1, 25)]
    row = record(0, (1, -2, 3), (0.5, 0, 2), (0, 3, 0, 4), (0, 255, 51, 204), sh)
    g = splats.load(main_header(1) + section_header(1, degree=2) + row)
    assert (g.positions.tolist(), g.scales.tolist()) == ([[1, -2, 3]], [[0.5, 0, 2]])
    torch.testing.assert_close(g.rotations, torch.tensor([[0, 0.6, 0, 0.8]]))
    torch.testing.assert_close(g.opacities, torch.tensor([[0.8]]))
    torch.testing.assert_close(g.sh[0, 0] * C0 + 0.5, torch.tensor([0, 1, 0.2]))
    # Degree 1 as red, green, blue of three each, then degree 2 of five each.
    assert g.sh[0, 1:4].tolist() == [[1, 4, 7], [2, 5, 8], [3, 6, 9]]
    assert g.sh[0, 4:].T.flatten().tolist() == sh[9:]


def test_positions_in_buckets_by_hand():
    """Two full buckets of two, then one of one; a scale range of 100 and blocks of 4."""
    centers = [[0, 0, 0], [10, 0, 0], [20, 0, 0]]
    positions = [(100, 100, 100), (0, 100, 200), (100, 150, 100), (200, 0, 100), (101, 99, 100)]
    head = main_header(5, level=1)
    head += section_header(5, capacity=2, buckets=3, block=4.0, reach=100, full=2, partial=1)
    data = struct.pack("<I", 1) + struct.pack("<9f", *np.ravel(centers)) + b"".join(record(1, p) for p in positions)
    g = splats.load(head + data)
    expected = [[0, 0, 0], [-2, 0, 2], [10, 1, 0], [12, -2, 0], [20 + 0.02, -0.02, 0]]
    torch.testing.assert_close(g.positions, torch.tensor(expected), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (-0.5, 2.0)])
def test_sh_of_level_2_by_hand(low, high):
    head = main_header(1, level=2, low=low, high=high)
    head += section_header(1, capacity=256, buckets=1, block=5.0, partial=1, degree=1)
    row = record(2, (32767, 0, 65534), sh=(0, 255, 51, 102, 153, 204, 0, 0, 0))
    g = splats.load(head + struct.pack("<I3f", 1, 1, 1, 1) + row)
    low, high = low or -1.5, high or 1.5
    expected = [low, high, *(low + (high - low) * part for part in (0.2, 0.4, 0.6, 0.8))]
    torch.testing.assert_close(g.sh[0, 1:, :2].T.flatten(), torch.tensor(expected))
    assert g.positions.tolist() == [[1, -1.5, 3.5]]


def test_sections_of_several_degrees_and_with_room_to_spare():
    """The lower degree is filled up with zeros; room for records that are not there is passed over."""
    one = record(0, (1, 0, 0)) + record(0, (9, 9, 9))
    two = record(0, (2, 0, 0), sh=range(1, 10))
    head = main_header(2, sections=2, room=3, max_sections=4)
    head += section_header(1, room=2) + section_header(1, degree=1) + bytes(2048)
    g = splats.load(head + one + two)
    assert (len(g), g.degree) == (2, 1)
    assert g.positions[:, 0].tolist() == [1, 2]
    assert not g.sh[0, 1:].any()
    assert g.sh[1, 1:].T.flatten().tolist() == list(range(1, 10))


def test_degree_3_is_read():
    sh = [float(value) for value in range(45)]
    g = splats.load(main_header(1) + section_header(1, degree=3) + record(0, sh=sh))
    assert g.degree == 3
    assert g.sh[0, 9:].T.flatten().tolist() == sh[24:]


# ------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("degree", range(3))
def test_level_0_keeps_all_but_colors_and_opacity(tmp_path, degree):
    g = random_splats(BLOCK_BYTES // (4 * (11 + 3 * (degree + 1) ** 2)) + 300, degree)
    back, lost = saved(tmp_path, g, level=0)
    assert torch.equal(back.positions, g.positions)
    assert torch.equal(back.scales, g.scales)
    assert torch.equal(back.sh[:, 1:], g.sh[:, 1:])
    torch.testing.assert_close(back.rotations, g.rotations, rtol=0, atol=2e-7)
    assert (back.opacities - g.opacities).abs().max() <= 0.5 / 255 + 1e-6
    assert (back.sh[:, 0] - g.sh[:, 0]).abs().max() <= 0.5 / 255 / C0 + 1e-6
    assert [what.split(" precision")[0] for what in lost] == ["opacity", "colour"]


@pytest.mark.parametrize("level", [1, 2])
def test_levels_1_and_2_come_back_within_their_steps(tmp_path, level):
    g = random_splats(3000, 2, spread=1.0)
    g.positions[:700] = g.positions[:700] * 0.01 + 0.5  # several full buckets
    back, lost = saved(tmp_path, g, level=level, block_size=2.0)
    order = sources(g, back)
    assert ((back.positions - g.positions[order]).abs() <= 0.5 / 32767 + 4e-7).all()
    assert ((back.scales / g.scales[order] - 1).abs() <= 2**-11 + 1e-6).all()
    assert ((back.rotations * g.rotations[order]).sum(1).abs() > np.cos(np.radians(0.05))).all()
    rest, found = g.sh[order, 1:], back.sh[:, 1:]
    step = max(rest.max() / 127, -rest.min() / 128)
    within = step / 2 + 1e-6 if level == 2 else rest.abs() * 2**-11 + 1e-7
    assert ((rest - found).abs() <= within).all()
    assert lost[-1] == "the order of the splats (bucket after bucket)"
    size = (tmp_path / "a.ksplat").stat().st_size
    assert size < 5120 + 3000 * {1: 72, 2: 48}[level] + 16 * 2000


@pytest.mark.parametrize("level", range(3))
def test_writing_what_was_read_changes_nothing(tmp_path, level):
    """But rotations of halves, which are not quite of unit length: they may go to the next half."""
    first, _ = saved(tmp_path, random_splats(900, 2), level=level)
    again, lost = saved(tmp_path, first, "b.ksplat", level=level)
    order, within = sources(first, again), {"rotations": 2**-11} if level else {}
    for name in ("positions", "scales", "rotations", "opacities", "sh"):
        expected = getattr(first, name)[order]
        torch.testing.assert_close(getattr(again, name), expected, rtol=1e-6, atol=within.get(name, 1e-6), msg=name)
    assert [what for what in lost if what.split()[-1] != "bucket)" and "rotation" not in what] == []


def test_level_2_keeps_a_coefficient_of_zero(tmp_path):
    g = random_splats(50, 1)
    g.sh[:, 2] = 0
    assert not saved(tmp_path, g, level=2)[0].sh[:, 2].any()
    g.sh[:, 1:] = 0
    assert not saved(tmp_path, g, level=2)[0].sh[:, 1:].any()


def test_buckets_hold_their_capacity_and_no_more(tmp_path):
    """Full ones first, then the others with their lengths; each around a centre of its own cell."""
    count = 2 * 256 + 3
    g = random_splats(count + 5, 0)
    g.positions[:count] = 0.5
    g.positions[count:] = -7.0
    saved(tmp_path, g, level=1)
    data = (tmp_path / "a.ksplat").read_bytes()
    assert struct.unpack_from("<IIIIfHxxI", data, 4096) == (520, 520, 256, 4, 5.0, 12, 32767)
    assert struct.unpack_from("<III", data, 4096 + 28) == (8 + 48 + 24 * 520, 2, 2)
    assert struct.unpack_from("<II", data, 5120) == (5, 3)
    centers = np.frombuffer(data, "<f4", 12, 5128).reshape(4, 3)
    assert centers[:, 0].tolist() == [2.5, 2.5, -7.5, 2.5]


def test_what_is_lost_is_said(tmp_path):
    g = random_splats(3, 4, comment="from a scanner")
    g.scales[0, 1] = 1e5
    g.sh[1, 0, 0], g.sh[1, 2, 0] = 3, 1e5
    assert saved(tmp_path, g, level=1)[1][:4] == [
        "view-dependent colour (SH degree 3 to 4)",
        "colours outside 0..1 of 1 splats, clipped",
        "view-dependent colour coefficients beyond ±65504 of 1 splats, clipped",
        "scales above 65504 of 1 splats, clipped",
    ]
    assert saved(tmp_path, g, level=0)[1][-1] == "the comment, and what it states about the axes"


def test_extreme_splats_are_written(tmp_path):
    g = random_splats(300, 1)
    g.positions[:2] = torch.tensor([[3e38, -3e38, 0], [1e9, 3e20, 1e-40]])
    g.scales[:2] = torch.tensor([[3e38, 0, 1e-40], [1, 1, 1]])
    g.sh[:2] *= 1e30
    for level in range(3):
        back, _ = saved(tmp_path, g, level=level)
        assert len(back) == 300
        back.validate()


def test_options_out_of_range(tmp_path):
    for options, message in (
        ({"level": 3}, "There is no .ksplat level 3"),
        ({"block_size": 0}, "block_size of a .ksplat is 0"),
        ({"block_size": float("nan")}, "block_size of a .ksplat is nan"),
    ):
        with pytest.raises(FormatError, match=message):
            splats.save(random_splats(3), tmp_path / "a.ksplat", **options)


# ------------------------------------------------------------------------------------------------ detection, refusals


def test_detection():
    assert ksplat.detect(main_header(5))
    assert ksplat.detect(main_header(5, level=2, sections=3, max_sections=7, room=9))
    for head in (
        main_header(5)[:4000],
        main_header(5, version=(1, 0)),
        main_header(5, version=(0, 0)),
        main_header(5, level=3),
        main_header(5, sections=0, max_sections=1),
        main_header(5, sections=3, max_sections=2),
        main_header(5, room=4),
        bytes(4096),
        np.random.default_rng(0).bytes(4096),
    ):
        assert not ksplat.detect(head)


def test_a_few_bad_records_are_dropped_and_many_are_an_error(caplog):
    good, bad = record(0), record(0, scale=(1, -1, 1))
    head = main_header(40) + section_header(40)
    with caplog.at_level(logging.WARNING, "invert3d"):
        assert len(splats.load(head + 38 * good + 2 * bad)) == 38
    assert "dropped 2 of 40 splats" in caplog.text
    with pytest.raises(FormatError, match="5 of 40 splats are unusable"):
        splats.load(head + 35 * good + 5 * bad)


GOOD = record(0) * 3
BUCKETS = {"capacity": 2, "buckets": 2, "block": 5.0, "full": 1, "partial": 1}
REFUSED = {
    "version": (main_header(3, version=(1, 0)) + section_header(3) + GOOD, r"a \.ksplat of version 1\.0, or none"),
    "level": (main_header(3, level=9) + section_header(3) + GOOD, "claims level 9; expected 0, 1 or 2"),
    "no sections": (main_header(3, sections=0, max_sections=1) + section_header(3) + GOOD, "claims 0 of 1 sections"),
    "many sections": (
        main_header(3, sections=2**31) + section_header(3) + GOOD,
        "claims 2147483648 of 2147483648 sections, whose headers alone need",
    ),
    "no splats": (main_header(0) + section_header(0), "holds no splats"),
    "degree": (main_header(3) + section_header(3, degree=4) + GOOD, "section 1 of the .ksplat claims SH degree 4"),
    "more than room": (main_header(3) + section_header(3, room=2) + GOOD, "claims 3 of 2 splats in 0 full"),
    "buckets": (
        main_header(3, level=1) + section_header(3, **{**BUCKETS, "full": 2}) + bytes(28) + record(1) * 3,
        "in 2 full and 1 other of 2 buckets",
    ),
    "centers": (
        main_header(3, level=1) + section_header(3, **BUCKETS, center_bytes=16) + bytes(36) + record(1) * 3,
        "with centres of 16 bytes",
    ),
    "bucket lengths": (
        main_header(3, level=1) + section_header(3, **BUCKETS) + struct.pack("<I6f", 2, *[0] * 6) + record(1) * 3,
        "buckets of a .ksplat section hold 4 splats, but it claims 3",
    ),
    "cut short": (
        main_header(3) + section_header(3) + GOOD[:-1],
        "claims 3 splats of SH degree 0, up to byte 5252, but",
    ),
    "longer": (main_header(3) + section_header(3) + GOOD + b"0", "its sections have 3 and end at byte 5252"),
    "fewer": (main_header(4) + section_header(3) + GOOD, "says its main header, 4 splats; its sections have 3"),
    "far more": (main_header(2**32 - 1) + section_header(2**32 - 1) + GOOD, "claims 4294967295 splats .* cut short"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path, case):
    data, message = REFUSED[case]
    path = tmp_path / "some.ksplat"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=message) as error:
            splats.load(path, format="ksplat")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert "some.ksplat" in str(error.value)


@pytest.mark.parametrize("level", range(3))
def test_damage(tmp_path, level):
    saved(tmp_path, random_splats(60, 2), level=level)
    data = (tmp_path / "a.ksplat").read_bytes()
    assert_refused_when_cut(data, "ksplat")
    # The bytes of the headers that say something lie side by side.
    for headers in (44, 4096 + 44):
        loaded = [load_or_refuse(changed, "ksplat") for changed in damaged(data, 150, level, headers)]
        assert 5 < sum(g is not None for g in loaded) < 145
