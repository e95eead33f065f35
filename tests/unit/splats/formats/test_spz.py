import gzip
import importlib.util
import struct
import sys
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from invert3d_core import splats
from invert3d_core.errors import FormatError
from invert3d_core.splats import GaussianSplats
from invert3d_core.splats.formats.buffer import BLOCK_BYTES
from tests.unit.splats.formats.damage import assert_refused_when_cut, damaged, load_or_refuse

WIDTHS = {1: (6, 1, 3, 3, 3), 2: (9, 1, 3, 3, 3), 3: (9, 1, 3, 3, 4), 4: (9, 1, 3, 3, 4)}
needs_zstandard = pytest.mark.skipif(importlib.util.find_spec("zstandard") is None, reason="zstandard is not installed")
VERSIONS = [1, 2, 3, pytest.param(4, marks=needs_zstandard)]


def header(count, version=2, degree=0, bits=12, flags=0, magic=b"NGSP"):
    return struct.pack("<4sIIBBBB", magic, version, count, degree, bits, flags, 0)


def payload(count, version=2, degree=0, seed=0):
    width = sum(WIDTHS[version]) + 3 * ((degree + 1) ** 2 - 1)
    return np.random.default_rng(seed).integers(0, 256, count * width).astype(np.uint8).tobytes()


def spz(count, body=None, extra=b"", **fields):
    data = payload(count, fields.get("version", 2), fields.get("degree", 0)) if body is None else body
    return gzip.compress(header(count, **fields) + data + extra, compresslevel=1)


def spz_4(count, bodies=None, degree=0, flags=0, extensions=b"", table=None, streams=None, claimed=None, bits=12):
    """A file of version 4; bodies: the uncompressed streams."""
    import zstandard

    widths = [*WIDTHS[4], 3 * ((degree + 1) ** 2 - 1)][: 6 if degree else 5]
    if bodies is None:
        data = payload(count, 4, degree)
        ends = np.cumsum([0, *(count * width for width in widths)])
        bodies = [data[a:b] for a, b in pairwise(ends)]
    frames = [zstandard.ZstdCompressor().compress(body) for body in bodies]
    claimed = [len(body) for body in bodies] if claimed is None else claimed
    head = struct.pack("<4sIIBBBB", b"NGSP", 4, count, degree, bits, flags, len(frames) if streams is None else streams)
    head += struct.pack("<I12x", 32 + len(extensions) if table is None else table) + extensions
    head += b"".join(struct.pack("<QQ", len(frame), size) for frame, size in zip(frames, claimed, strict=True))
    return head + b"".join(frames)


def random_splats(count, degree=3, seed=0, comment=""):
    g = torch.Generator().manual_seed(seed)
    return GaussianSplats(
        5 * torch.randn(count, 3, generator=g),
        torch.exp(torch.randn(count, 3, generator=g) - 3),
        functional.normalize(torch.randn(count, 4, generator=g), dim=1),
        torch.rand(count, 1, generator=g),
        (0.4 * torch.randn(count, (degree + 1) ** 2, 3, generator=g)).clamp(-0.95, 0.95),
        comment,
    )


def saved(tmp_path, g, name="a.spz", **options):
    lost = splats.save(g, tmp_path / name, **options)
    return splats.load(tmp_path / name), lost


def sections(positions, alpha=0, color=(0, 0, 0), scale=(0, 0, 0), rotation=(0, 0, 0), rest=()):
    return bytes([*positions, alpha, *color, *scale, *rotation, *rest])


def test_a_splat_by_hand():
    positions = b"".join(struct.pack("<i", value)[:3] for value in (4096, -2048, 8388607))
    body = sections(
        positions, 255, (0, 255, 51), (160, 144, 255), (255, 0, 127), (0, 64, 255, 128, 128, 128, 192, 1, 2)
    )
    g = splats.load(spz(1, body, degree=1))
    torch.testing.assert_close(g.positions, torch.tensor([[1.0, -0.5, 8388607 / 4096]]))
    assert g.opacities.tolist() == [[1.0]]
    torch.testing.assert_close(g.sh[0, 0], torch.tensor([-0.5 / 0.15, 0.5 / 0.15, -0.3 / 0.15]))
    torch.testing.assert_close(g.scales, torch.exp(torch.tensor([[0.0, -1.0, 5.9375]])))
    expected = [[-1, -0.5, 127 / 128], [0, 0, 0], [0.5, -127 / 128, -126 / 128]]
    torch.testing.assert_close(g.sh[0, 1:], torch.tensor(expected))
    x, y, z = 1.0, -1.0, 127 / 127.5 - 1
    torch.testing.assert_close(g.rotations, torch.tensor([[0, x, y, z]]) / (x * x + y * y + z * z) ** 0.5)


def test_positions_of_version_1_are_half_floats():
    body = sections(np.array([1.5, -0.25, 1000], "<f2").tobytes())
    assert splats.load(spz(1, body, version=1)).positions.tolist() == [[1.5, -0.25, 1000]]


@pytest.mark.parametrize("largest", range(4))
def test_smallest_three(largest):
    """Each part of x,y,z,w left out in turn; the others keep their order and their signs."""
    magnitudes, signs = (511, 100, 7), (1, 0, 1)
    word = largest << 30
    for place, (magnitude, sign) in enumerate(zip(magnitudes, signs, strict=True)):
        word |= (sign << 9 | magnitude) << (20 - 10 * place)
    body = sections(bytes(9), rotation=struct.pack("<I", word))
    others = [m / 511 / 2**0.5 * (-1 if s else 1) for m, s in zip(magnitudes, signs, strict=True)]
    xyzw = [*others[:largest], (1 - sum(v * v for v in others)) ** 0.5, *others[largest:]]
    torch.testing.assert_close(splats.load(spz(1, body, version=3)).rotations, torch.tensor([[xyzw[3], *xyzw[:3]]]))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("degree", range(5))
def test_a_file_of_many_blocks_is_that_of_its_splats(version, degree):
    count = 2 * BLOCK_BYTES // len(payload(1, version, degree)) + 3
    g = splats.load(spz(count, version=version, degree=degree))
    assert (len(g), g.degree) == (count, degree)
    g.validate()
    data = np.frombuffer(payload(count, version, degree), np.uint8)
    alphas = data[9 * count : 10 * count]
    np.testing.assert_allclose(g.opacities[:, 0].numpy(), alphas / 255, rtol=1e-6)
    norms = g.rotations.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    if degree:
        last = data.reshape(-1)[-3 * ((degree + 1) ** 2 - 1) :].reshape(-1, 3)
        assert np.array_equal(g.sh[-1, 1:].numpy(), (last.astype("f4") - 128) / 128)


def test_extension_records_are_skipped():
    records = struct.pack("<IIfff", 0xADBE0002, 12, 1, 2, 3) + struct.pack("<II", 0x1234, 0)
    assert len(splats.load(spz(5, flags=2, extra=records))) == 5
    assert len(splats.load(spz(5, flags=2))) == 5


@needs_zstandard
@pytest.mark.parametrize("degree", range(5))
def test_version_4_is_version_3_in_streams(degree):
    body = payload(70, 3, degree)
    three, four = splats.load(spz(70, body, version=3, degree=degree)), splats.load(spz_4(70, degree=degree))
    for name in ("positions", "scales", "rotations", "opacities", "sh"):
        assert torch.equal(getattr(three, name), getattr(four, name)), name


@pytest.mark.parametrize(
    ("code", "comment", "axes"),
    [
        (4, 'SPZ coordinate system RUB: up="+y" front="+z"', ("+y", "+z")),
        (6, 'SPZ coordinate system RDF: up="-y" front="-z"', ("-y", "-z")),
        (7, 'SPZ coordinate system LUF: up="+y" front="-z"', ("+y", "-z")),
        (0, "", None),
        (9, "", None),
        (2**32 - 1, "", None),
    ],
)
def test_a_stated_coordinate_system_states_the_axes(code, comment, axes):
    record = struct.pack("<III", 0xADBE0003, 4, code)
    g = splats.load(spz(5, flags=2, extra=struct.pack("<II3s", 7, 3, b"abc") + record))
    assert (g.comment, g.stated_axes) == (comment, axes)
    assert splats.load(spz(5, flags=2, extra=struct.pack("<IIH", 0xADBE0003, 2, 4))).comment == ""


def test_the_antialiased_flag_is_a_comment(tmp_path):
    g = splats.load(spz(5, flags=1))
    assert g.comment == "antialiased 1"
    back, lost = saved(tmp_path, g, version=2)
    assert back.comment == "antialiased 1"
    assert not any("comment" in what for what in lost)
    assert saved(tmp_path, random_splats(2, comment="from a scanner"))[1][-1].startswith("the comment")


# ------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("degree", [0, 1, 3, 4])
def test_what_is_written_comes_back(tmp_path, version, degree):
    """Within half a step of what the format has, over several blocks."""
    g = random_splats(BLOCK_BYTES // len(payload(1, version, degree)) + 3, degree)
    back, lost = saved(tmp_path, g, version=version)
    assert (len(back), back.degree, back.comment) == (len(g), degree, "")
    within = g.positions.abs() * 2**-11 + 1e-7 if version == 1 else torch.tensor(0.5 / 4096 + 1e-6)
    assert ((back.positions - g.positions).abs() <= within).all()
    assert (back.scales.log() - g.scales.log()).abs().max() <= 0.5 / 16 + 1e-5
    assert (back.opacities - g.opacities).abs().max() <= 0.5 / 255 + 1e-6
    assert (back.sh[:, 0] - g.sh[:, 0]).abs().max() <= 0.5 / 255 / 0.15 + 1e-5
    rest = (back.sh - g.sh).abs()
    assert rest[:, 1:4].amax() <= 4.5 / 128 if degree else True
    assert rest[:, 4:].amax() <= 8.5 / 128 if degree > 1 else True
    turns = 2 * torch.rad2deg(torch.acos((back.rotations * g.rotations).sum(1).abs().clamp(max=1)))
    assert turns.max() < (0.3 if version >= 3 else 13)
    assert turns.median() < (0.2 if version >= 3 else 1)
    kinds = [what.split(" precision")[0] for what in lost]
    expected = ["position", "scale", "rotation", "opacity", "colour", "view-dependent colour"]
    assert kinds == expected[: 6 if degree else 5]


@pytest.mark.parametrize("version", VERSIONS)
def test_writing_what_was_read_loses_nothing(tmp_path, version):
    """But rotations of versions 1 and 2, whose parts are rounded to more than a unit and come back shorter."""
    first, _ = saved(tmp_path, random_splats(4000), version=version)
    again, lost = saved(tmp_path, first, "b.spz", version=version)
    assert [what for what in lost if version >= 3 or "rotation" not in what] == []
    for name in ("positions", "scales", "opacities", "sh"):
        torch.testing.assert_close(getattr(again, name), getattr(first, name), rtol=1e-6, atol=1e-7, msg=name)
    if version >= 3:
        cosine = (again.rotations * first.rotations).sum(1, keepdim=True)
        torch.testing.assert_close(again.rotations * cosine.sign(), first.rotations, rtol=0, atol=3e-6)


@pytest.mark.parametrize(("bits", "step"), [((8, 8), 1), ((1, 8), 128), ((3, 3), 32)])
def test_sh_bits(tmp_path, bits, step):
    g = random_splats(500, 2)
    back, _ = saved(tmp_path, g, sh_bits=bits)
    codes = back.sh[:, 1:4] * 128 + 128
    assert (((codes % step) == 0) | (codes == 255)).all()
    assert (back.sh[:, 1:4] - g.sh[:, 1:4]).abs().max() <= (step + 1.5) / 2 / 128


def test_fraction_bits_move_the_range(tmp_path):
    g = random_splats(4, 0)
    g.positions[0] = torch.tensor([3000.0, -9000.0, 1.0])
    back, lost = saved(tmp_path, g)
    assert back.positions[0].tolist() == [8388607 / 4096, -2048, 1]
    assert lost[0] == "positions beyond ±2048 of 1 splats, clipped"
    back, lost = saved(tmp_path, g, fraction_bits=8)
    assert (back.positions - g.positions).abs().max() <= 0.5 / 256 + 1e-6
    assert not any("clipped" in what for what in lost)


def test_what_is_outside_the_format_is_said(tmp_path):
    g = random_splats(6, 2)
    g.scales[:2] = torch.tensor([[0, 1, 1], [1e3, 1, 1]])
    g.sh[2, 0, 0], g.sh[3, 0, 0], g.sh[4, 5, 1] = -3.4, 4, 1.5
    back, lost = saved(tmp_path, g)
    assert lost[:3] == [
        "colours beyond 0.5 ± 0.94 of 2 splats, clipped",
        "view-dependent colour coefficients beyond ±1 of 1 splats, clipped",
        "scales below 4.5e-5 or above 379 of 2 splats, clipped",
    ]
    assert back.sh[4, 5, 1] == 127 / 128
    torch.testing.assert_close(back.sh[2:4, 0, 0], torch.tensor([-0.5 / 0.15, 0.5 / 0.15]))


@pytest.mark.parametrize("version", VERSIONS)
def test_extreme_splats_are_written(tmp_path, version):
    g = random_splats(300, 4)
    g.positions[:2] = torch.tensor([[3e38, -3e38, 0], [1e9, 3e20, 1e-40]])
    g.scales[:2] = torch.tensor([[3e38, 0, 1e-40], [1, 1, 1]])
    g.sh[:2] *= 1e30
    back, _ = saved(tmp_path, g, version=version)
    assert len(back) == 300
    back.validate()


def test_a_gzip_of_many_pieces_is_one_member(tmp_path):
    g = random_splats(30_000)
    saved(tmp_path, g)
    data = (tmp_path / "a.spz").read_bytes()
    inside = gzip.decompress(data)
    assert len(inside) == 16 + 30_000 * 65
    assert inside[:16] == header(30_000, version=3, degree=3)
    saved(tmp_path, g, "b.spz")
    assert (tmp_path / "b.spz").read_bytes() == data


def test_options_out_of_range(tmp_path):
    for options, message in (
        ({"version": 5}, "There is no SPZ version 5"),
        ({"fraction_bits": 24}, "cannot have 24 fraction bits"),
        ({"sh_bits": (0, 4)}, r"sh_bits are \(0, 4\); expected two numbers from 1 to 8"),
        ({"sh_bits": (5,)}, r"sh_bits are \(5,\)"),
    ):
        with pytest.raises(FormatError, match=message):
            splats.save(random_splats(3), tmp_path / "a.spz", **options)


def test_without_zstandard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(FormatError, match="cannot be written as SPZ version 4: .* Run 'pip install zstandard', or use"):
        splats.save(random_splats(3), tmp_path / "a.spz", version=4)
    assert list(tmp_path.iterdir()) == []
    saved(tmp_path, random_splats(3))
    path = tmp_path / "b.spz"
    head = struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 1, 0, 12, 0, 5, 32)
    path.write_bytes(head + b"".join(struct.pack("<QQ", 0, size) for size in WIDTHS[4]))
    with pytest.raises(FormatError, match=r"b\.spz' is an SPZ file of version 4: .*zstandard, which is not installed"):
        splats.load(path)


# ------------------------------------------------------------------------------------------------------------ refusals

BAD_BODY = payload(5)
REFUSED = {
    "version 4": (
        spz(5, version=4, body=payload(5, 4)),
        "SPZ file of version 4 inside gzip, where versions 1 to 3 are",
    ),
    "version 9": (
        spz(5, version=9, body=BAD_BODY),
        "SPZ file of version 9 inside gzip.* versions 1 to 4 are supported",
    ),
    "version 0": (spz(5, version=0, body=BAD_BODY), "SPZ file of version 0 inside gzip"),
    "plain 3": (b"NGSP" + struct.pack("<I", 3) + bytes(24), "SPZ file of version 3 without gzip, as only version 4 is"),
    "plain cut": (b"NGSP" + struct.pack("<I", 4) + bytes(20), "ends after 28 bytes"),
    "degree": (spz(5, degree=5, body=BAD_BODY), "claims SH degree 5; expected 0 to 4"),
    "no splats": (spz(0, body=b""), "holds no splats"),
    "header only": (gzip.compress(header(5)[:10]), "10 bytes inside gzip are less than its header"),
    "short": (
        spz(5, body=BAD_BODY[:-1]),
        "claims 5 splats of SH degree 0, which are 111 bytes, but only 110 were found",
    ),
    "long": (spz(5, extra=b"0"), "which are 111 bytes, but more were found"),
    "long v1": (spz(5, version=1, body=BAD_BODY), "version 1.* but more were found"),
    "extensions": (spz(5, flags=2, extra=struct.pack("<II", 1, 9)), "extension records .* do not add up"),
    "extension part": (spz(5, flags=2, extra=b"abc"), "extension records .* do not add up"),
    "impossible count": (spz(2**31, body=BAD_BODY), "claims 2147483648 splats, .* cannot come out of a file of"),
    "cut short": (spz(50)[:-20], "ends after .* bytes, before its contents do"),
    "checksum": (spz(50)[:-8] + bytes(8), "gzip data of the SPZ file is damaged"),
    "middle": (spz(50)[:300] + b"\xff" * 100 + spz(50)[400:], "gzip data of the SPZ file is damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path, case):
    data, message = REFUSED[case]
    path = tmp_path / "some.spz"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message) as error:
        splats.load(path)
    assert "some.spz" in str(error.value)


@pytest.mark.parametrize(("data", "message"), [(b"\x1f\x8b" + bytes(20), "damaged"), (b"abcd", "starts with b'abcd'")])
def test_refused_when_named(data, message):
    with pytest.raises(FormatError, match=message):
        splats.load(data, format="spz")


def test_a_gzip_file_of_something_else():
    with pytest.raises(FormatError, match="is a gzip file but no SPZ: inside it starts with b'ply"):
        splats.load(gzip.compress(b"ply\nformat ascii 1.0\n"), format="spz")


@pytest.mark.parametrize("count", [5, 400_000])
def test_a_bomb_takes_no_memory(count):
    """128 MB of zeros in half a megabyte: no more comes out than the header's count needs."""
    zeros = gzip.compress(header(count) + bytes(1 << 27), compresslevel=1)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="but more were found"):
            splats.load(zeros)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@needs_zstandard
def test_refused_streams(tmp_path):
    good = spz_4(50, degree=1)
    bodies = [bytes(50 * width) for width in (*WIDTHS[4], 9)]
    longer = [*bodies[:2], bodies[2] + b"0", *bodies[3:]]
    cases = (
        (spz_4(50, streams=6), "claims 6 streams, listed at byte 32; expected 5 at SH degree 0"),
        (spz_4(50, table=31), "claims 5 streams, listed at byte 31"),
        (spz_4(50, table=2**31), "listed at byte 2147483648; expected"),
        (spz_4(51, bodies[:5]), "streams of the SPZ file claim 450, 50, .* bytes; 51 splats of SH degree 0 need 459"),
        (spz_4(50, longer, degree=1, claimed=[len(b) for b in bodies]), "a stream of the SPZ file holds 151 bytes"),
        (good[:-1], "but its SPZ streams end at byte .* cut short"),
        (good + b"0", "but its SPZ streams end at byte"),
        (good.replace(b"\x28\xb5\x2f\xfd", bytes(4), 1), "zstd data of the SPZ file is damaged"),
        (spz_4(50, flags=2, extensions=b"abcd"), "extension records of the SPZ file do not add up"),
        (spz_4(50, degree=5), "claims SH degree 5"),
        (spz_4(0), "holds no splats"),
    )
    for data, message in cases:
        (tmp_path / "some.spz").write_bytes(data)
        with pytest.raises(FormatError, match=message) as error:
            splats.load(tmp_path / "some.spz")
        assert "some.spz" in str(error.value)


@needs_zstandard
def test_a_bomb_of_zstd_takes_no_memory():
    """Zeros shrink without limit in zstd: what claims far more than its file can hold is refused unread."""
    count = 4_000_000
    zeros = spz_4(count, [bytes(count * width) for width in WIDTHS[4]])
    frame = zeros[:32] + struct.pack("<QQ", 20, 9) + zeros[48:]
    tracemalloc.start()
    try:
        for data in (zeros, frame):
            with pytest.raises(FormatError, match="claims 4000000 splats, 80000000 bytes, which cannot come out of"):
                splats.load(data)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@needs_zstandard
def test_a_frame_that_claims_more_takes_no_memory():
    """The size inside a zstd frame is compared before it is used."""
    import zstandard

    data = spz_4(
        50, [bytes(1 << 27), *(bytes(50 * width) for width in WIDTHS[4][1:])], claimed=[450, 50, 150, 150, 200]
    )
    without = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 27))
    frames = [without, *(zstandard.ZstdCompressor().compress(bytes(50 * width)) for width in WIDTHS[4][1:])]
    table = b"".join(struct.pack("<QQ", len(f), 50 * width) for f, width in zip(frames, WIDTHS[4], strict=True))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="a stream of the SPZ file holds 134217728 bytes instead of 450"):
            splats.load(data)
        with pytest.raises(FormatError, match="zstd data of the SPZ file is damaged"):
            splats.load(data[:32] + table + b"".join(frames))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("version", VERSIONS)
def test_damage(tmp_path, version):
    saved(tmp_path, random_splats(60, 1), version=version)
    data = (tmp_path / "a.spz").read_bytes()
    assert_refused_when_cut(data, "auto")
    for changed in damaged(data, 200, version, 150):
        load_or_refuse(changed, "spz")
    if version < 4:
        inside = [load_or_refuse(gzip.compress(b, 1), "spz") for b in damaged(gzip.decompress(data), 200, version, 16)]
        assert any(g is not None for g in inside)
