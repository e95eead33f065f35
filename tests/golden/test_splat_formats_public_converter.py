"""Our files read by others' programs, and theirs by us; each where it is installed.

npm install --global @playcanvas/splat-transform@3.7.0
pip install gsply==0.4.6

PlayCanvas' converter writes .glb (KHR_gaussian_splatting) and reads none, so ours are read by nobody else here; it
reads .sog, but takes minutes to write it without a GPU.
"""

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from invert3d_core import splats
from invert3d_core.splats import GaussianSplats
from invert3d_core.splats.spherical_harmonics import C0
from invert3d_core.splats.transform import transform

CONVERTER = shutil.which("splat-transform")


FIELDS = ("positions", "scales", "rotations", "opacities", "sh")


def scene(count=300):
    g = torch.Generator().manual_seed(0)
    return GaussianSplats(
        torch.randn(count, 3, generator=g),
        torch.exp(torch.randn(count, 3, generator=g) - 4),
        functional.normalize(torch.randn(count, 4, generator=g), dim=1),
        0.05 + 0.9 * torch.rand(count, 1, generator=g),
        0.3 * torch.randn(count, 16, 3, generator=g).clamp(-3, 3),
    )


def convert(source, target):
    if CONVERTER is None:
        pytest.skip("splat-transform is not on the path")
    done = subprocess.run([CONVERTER, "-w", source, target], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return splats.load(target)


def in_order_of(splat, other):
    """Splats as those of another that lie nearest; each once."""
    order = torch.cdist(other.positions.double(), splat.positions.double()).argmin(1)
    assert sorted(order.tolist()) == list(range(len(splat)))
    return GaussianSplats(*(getattr(splat, name)[order] for name in FIELDS))


def assert_same(found, expected, *, scales=1e-6, rotations=1e-6, opacities=1e-6, sh=1e-6, positions=1e-6):
    assert (len(found), found.degree) == (len(expected), expected.degree)
    torch.testing.assert_close(found.positions, expected.positions, rtol=0, atol=positions)
    torch.testing.assert_close(found.scales, expected.scales, rtol=scales, atol=0)
    sign = (found.rotations * expected.rotations).sum(1, keepdim=True).sign()
    torch.testing.assert_close(found.rotations * sign, expected.rotations, rtol=0, atol=rotations)
    torch.testing.assert_close(found.opacities, expected.opacities, rtol=0, atol=opacities)
    torch.testing.assert_close(found.sh, expected.sh, rtol=0, atol=sh)


BYTE_OF_COLOR = 1 / 510 / C0 + 1e-6
HALF_PRECISION = {"scales": 5e-4, "rotations": 5e-4, "sh": BYTE_OF_COLOR}
# Steps of 1/4096, of 1/16 in the logarithm, of 9 bits in a quaternion's small parts, of 4 bits within ±1.
SPZ = {"positions": 1.3e-4, "scales": 0.032, "rotations": 0.0025, "sh": 0.067}
SOG = {"positions": 1.3e-4, "scales": 0.015, "rotations": 0.006, "sh": 0.008}
WRITTEN = [
    # Name, options of our writer, SH degree that the format keeps, how far its steps move values; opacities have bytes.
    ("a.ply", {}, 3, {"opacities": 1e-6}),
    # Between bounds of 256 splats, here 9 apart: 10 bits for y, 11 for x and z.
    ("a.compressed.ply", {}, 3, {"positions": 0.0045, "scales": 0.0035, "rotations": 0.0015, "sh": 1 / 64}),
    ("a.splat", {}, 0, {"scales": 1e-6, "rotations": 0.01, "sh": BYTE_OF_COLOR}),
    ("level0.ksplat", {"level": 0}, 2, {"sh": BYTE_OF_COLOR}),
    ("level1.ksplat", {"level": 1, "block_size": 1.0}, 2, {"positions": 1e-5, **HALF_PRECISION}),
    ("level2.ksplat", {"level": 2}, 2, {"positions": 5e-5, **HALF_PRECISION}),
    # Three bytes, from which the fourth part follows: a small one badly.
    ("version2.spz", {"version": 2}, 3, {**SPZ, "rotations": 0.09}),
    ("version3.spz", {"version": 3}, 3, SPZ),
    ("version4.spz", {"version": 4}, 3, SPZ),
    # 16 bits of ±log(1 + 4.2); scales and colours from codebooks of 256; 8 bits a part of a rotation.
    ("a.sog", {}, 3, SOG),
    ("unpacked/meta.json", {}, 3, SOG),
]


@pytest.mark.parametrize(("name", "options", "degree", "steps"), WRITTEN, ids=[row[0] for row in WRITTEN])
def test_the_converter_reads_what_we_wrote(tmp_path, name, options, degree, steps):
    """As we read it, and as it was before, within the format's steps."""
    if options.get("version") == 4:
        pytest.importorskip("zstandard")
    original = scene()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    splats.save(original, tmp_path / name, **options)
    theirs = convert(tmp_path / name, tmp_path / "theirs.ply")
    # A quaternion's zero is 127.5 in their .splat, in ours 128 as in the viewer that the format comes from.
    assert_same(theirs, splats.load(tmp_path / name), rotations=0.006 if name == "a.splat" else 1e-6)
    kept = replace(original, sh=original.sh[:, : (degree + 1) ** 2])
    assert_same(theirs, in_order_of(kept, theirs), **{"opacities": 1 / 510 + 1e-6, **steps})


@pytest.mark.parametrize("name", ["a.ply", "a.compressed.ply", "version3.spz"])
def test_gsply_reads_what_we_wrote(tmp_path, name):
    gsply = pytest.importorskip("gsply")
    _, options, _, steps = next(row for row in WRITTEN if row[0] == name)
    original = scene()
    splats.save(original, tmp_path / name, **options)
    read = gsply.read_spz if name.endswith(".spz") else gsply.plyread
    data = gsply.apply_pre_activations(read(tmp_path / name), min_scale=1e-30, max_scale=1e30)
    sh = np.concatenate([data.sh0[:, None], data.shN], 1)
    arrays = (data.means, data.scales, data.quats, data.opacities, sh)
    positions, scales, rotations, opacities, sh = (torch.from_numpy(np.array(array)) for array in arrays)
    theirs = GaussianSplats(positions, scales, rotations, opacities, sh)
    assert_same(theirs, splats.load(tmp_path / name), scales=1e-5)
    assert_same(theirs, in_order_of(original, theirs), **{"opacities": 1 / 510 + 1e-6, **steps})


@pytest.mark.parametrize("name", ["theirs.compressed.ply", "theirs.spz"])
def test_what_the_converter_writes_is_ours_within_the_steps(tmp_path, name):
    if name.endswith(".spz"):
        pytest.importorskip("zstandard")
    g = scene()
    splats.save(g, tmp_path / "a.ply")
    back = convert(tmp_path / "a.ply", tmp_path / name)
    steps = {"positions": 0.005, "scales": 0.035, "rotations": 0.0025, "opacities": 0.003, "sh": 0.2}
    assert_same(back, in_order_of(g, back), **steps)


def test_what_the_converter_writes_as_gltf_is_ours_turned(tmp_path):
    """Trained splats stand with y down, glTF's world with y up: it turns them half around z, their SH too."""
    g = scene()
    splats.save(g, tmp_path / "a.ply")
    back = convert(tmp_path / "a.ply", tmp_path / "theirs.glb")
    assert back.stated_axes == ("+y", "+z")
    turned = transform(g, torch.diag(torch.tensor([-1.0, -1.0, 1.0])))
    assert_same(back, turned)
