"""Files that were cut short, that claim too much, or hold anything: a FormatError, no other error, no huge allocation.

`tests.fuzz` changes files in many more ways.
"""

import tracemalloc
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invert3d_core import splats
from invert3d_core.errors import FormatError
from tests.fuzz import containers
from tests.fuzz.targets import TARGETS
from tests.unit.splats.formats.damage import load_or_refuse

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


def load(data, name):
    """Splats, or None where they are refused; a .splat has to be called by its name."""
    return load_or_refuse(data, "splat" if name.endswith(".splat") else "auto")


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("v4")])
def test_a_file_cut_short_anywhere_is_refused(name):
    data = FILES[name]
    whole = load(data, name)
    assert whole is not None
    # Without its last line end a text is still whole.
    for size in sorted({*range(0, len(data) - 1, 97), len(data) - 2}):
        cut = load(data[:size], name)
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
    assert load(data.replace(line, b"element vertex %d" % claimed), name) is None
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            splats.load(data.replace(line, b"element vertex %d" % claimed))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("nan", [b"\0\0\xa0\x7f", b"\0\0\0\0\0\0\xf4\x7f"], ids=["float", "double"])
@pytest.mark.parametrize("name", ["ply", "compressed_ply", "ksplat"])
def test_signalling_nan_gives_no_warning(name, nan):
    """Numbers that numpy warns of when it converts them, wherever they stand."""
    for data in TARGETS[name].start():
        start = 5120 if name == "ksplat" else data.index(b"end_header") + 11
        for shift in range(len(nan)):
            changed = data[: start + shift] + (nan * len(data))[: len(data) - start - shift]
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                load_or_refuse(changed, name)


@pytest.mark.parametrize(("window_log", "whole"), [(10, True), (25, True), (26, False), (27, False)])
def test_a_window_of_zstd_takes_no_memory(window_log, whole):
    """Frames that do not state their size are unpacked through a window, as large as they say: within limits."""
    zstandard = pytest.importorskip("zstandard")
    fields, extensions, streams = containers.unpack_spz4(FILES["v4.spz"])
    options = zstandard.ZstdCompressionParameters(window_log=window_log, write_content_size=False)
    frames = []
    for stream in streams:
        packer = zstandard.ZstdCompressor(compression_params=options).compressobj()
        frames.append(packer.compress(stream) + packer.flush())
        assert zstandard.get_frame_parameters(frames[-1]).window_size == 1 << window_log
    data = containers.pack_spz4(fields, extensions, streams, frames=frames)
    if whole:
        assert torch.equal(splats.load(data).sh, splats.load(FILES["v4.spz"]).sh)
    else:
        with pytest.raises(FormatError, match="zstd data of the SPZ file is damaged .*too much memory"):
            splats.load(data)


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
