import gzip
import struct
import tracemalloc

import numpy as np
import pytest
import torch

from invert3d_core import splats
from invert3d_core.errors import FormatError
from invert3d_core.splats.formats.buffer import BLOCK_BYTES

WIDTHS = {1: (6, 1, 3, 3, 3), 2: (9, 1, 3, 3, 3), 3: (9, 1, 3, 3, 4)}


def header(count, version=2, degree=0, bits=12, flags=0, magic=b"NGSP"):
    return struct.pack("<4sIIBBBB", magic, version, count, degree, bits, flags, 0)


def payload(count, version=2, degree=0, seed=0):
    width = sum(WIDTHS[version]) + 3 * ((degree + 1) ** 2 - 1)
    return np.random.default_rng(seed).integers(0, 256, count * width).astype(np.uint8).tobytes()


def spz(count, body=None, extra=b"", **fields):
    data = payload(count, fields.get("version", 2), fields.get("degree", 0)) if body is None else body
    return gzip.compress(header(count, **fields) + data + extra, compresslevel=1)


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


BAD_BODY = payload(5)
REFUSED = {
    "version 4": (b"NGSP" + struct.pack("<I", 4) + bytes(24), r"SPZ file of version 4 \(zstd\).* versions 1 to 3 are"),
    "version 9": (spz(5, version=9, body=BAD_BODY), "SPZ file of version 9; versions 1 to 3"),
    "version 0": (spz(5, version=0, body=BAD_BODY), "SPZ file of version 0; versions 1 to 3"),
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
