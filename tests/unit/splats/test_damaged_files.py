"""Whatever is done to a file's bytes: a FormatError or whole splats, no other error, no huge allocation."""

import gzip
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invert3d_core import splats
from invert3d_core.errors import FormatError

GOLDEN = Path(__file__).parents[2] / "golden" / "invert3d"


def golden_files():
    files = {"degree3.ply": (GOLDEN / "synthetic_degree3.ply").read_bytes()}
    for key, data in safetensors.torch.load_file(GOLDEN / "ply_variants.safetensors").items():
        if key.endswith(".bytes"):
            files[f"{key.removesuffix('.bytes')}.ply"] = data.numpy().tobytes()
    for key, data in safetensors.torch.load_file(GOLDEN / "spz.safetensors").items():
        if key.endswith(".bytes") and (key[:2] != "v4" or key == "v4.bytes"):
            files[f"{key.removesuffix('.bytes')}.spz"] = data.numpy().tobytes()
    files["scene.splat"] = safetensors.torch.load_file(GOLDEN / "splat.safetensors")["bytes"].numpy().tobytes()
    return files


FILES = golden_files()


def load_or_refuse(data, name):
    """Splats that hold what their class promises, or None; within the memory a file of this size may take."""
    tracemalloc.start()
    try:
        g = splats.load(data, format="splat" if name.endswith(".splat") else "auto")
        g.validate()
        assert len(g) > 0
        assert ((g.rotations.norm(dim=1) - 1).abs() < 1e-5).all()
        return g
    except FormatError as error:
        assert str(error)
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * len(data) + (64 << 20)


@st.composite
def damaged(draw, data):
    """A few bytes changed, put in or taken out, then perhaps the end cut off or made longer."""
    changed = bytearray(data)
    # Half of the damage goes to the start, where headers are.
    place = st.one_of(st.integers(0, min(len(data) - 1, 600)), st.integers(0, len(data) - 1))
    for _ in range(draw(st.integers(0, 4))):
        at = min(draw(place), len(changed))
        kind = draw(st.sampled_from(["set", "flip", "insert", "delete", "digit", "swap"]))
        if kind == "insert":
            changed[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del changed[at : at + draw(st.integers(1, 40))]
        elif kind == "swap":
            other = min(draw(place), len(changed))
            piece = changed[other : other + 20]
            changed[at : at + len(piece)] = piece
        elif at < len(changed):
            new = {"set": st.integers(0, 255), "flip": st.sampled_from([1 << i for i in range(8)])}
            value = draw(new.get(kind, st.sampled_from(b"0123456789-.\n\r \xff\x7f")))
            changed[at] = changed[at] ^ value if kind == "flip" else value
    if draw(st.booleans()):
        changed = changed[: draw(st.integers(0, len(changed)))]
    return bytes(changed)


@pytest.mark.parametrize("name", FILES)
def test_damaged_bytes(name):
    @settings(max_examples=60, derandomize=True)
    @given(damaged(FILES[name]))
    def run(data):
        load_or_refuse(data, name)

    run()


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".spz") and not name.startswith("v4")])
def test_damage_inside_gzip(name):
    """With a checksum that fits, so that the damage reaches the decoder."""

    @settings(max_examples=60, derandomize=True)
    @given(damaged(gzip.decompress(FILES[name])))
    def run(inside):
        load_or_refuse(gzip.compress(inside, compresslevel=1), name)

    run()


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("v4")])
def test_a_file_cut_short_anywhere_is_refused(name):
    data = FILES[name]
    whole = load_or_refuse(data, name)
    assert whole is not None
    # Without its last line end a text is still whole.
    for size in sorted({*range(0, len(data) - 1, 97), len(data) - 2}):
        cut = load_or_refuse(data[:size], name)
        if name.endswith(".splat") and size and size % 32 == 0:
            assert cut is not None  # a shorter .splat is a .splat
            assert len(cut) == size // 32
        elif name.startswith("ascii") and size > data.rindex(b" "):
            continue  # a last number that lost digits is a number
        else:
            assert cut is None, size


@settings(max_examples=200, derandomize=True)
@given(st.binary(max_size=300), st.sampled_from(["ply", "splat", "spz", "auto"]))
def test_random_bytes(data, format):
    for start in (b"", b"ply\n", b"ply\nformat ascii 1.0\n", b"\x1f\x8b\x08\0", b"NGSP"):
        try:
            splats.load(start + data, format=format).validate()
        except FormatError:
            continue


@pytest.mark.parametrize("claimed", [65, 10**6, 10**12, 2**31, 2**63 - 1])
@pytest.mark.parametrize("name", ["degree3.ply", "ascii.ply", "extra_elements.ply"])
def test_a_claim_of_more_takes_no_memory(name, claimed):
    data = FILES[name]
    start = data.index(b"element vertex ")
    line = data[start : data.index(b"\n", start)]
    assert load_or_refuse(data.replace(line, b"element vertex %d" % claimed), name) is None
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            splats.load(data.replace(line, b"element vertex %d" % claimed))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_long_text_without_line_ends_takes_no_memory():
    """A line is read no further than its columns can reach."""
    data = FILES["ascii.ply"]
    start = data.index(b"end_header\n") + len(b"end_header\n")
    flat = data[:start] + b"1 " * (8 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="row 1 of the PLY element 'vertex' is not 62 numbers"):
            splats.load(flat)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
