"""Our files read by PlayCanvas' converter, and its files read by us; where `splat-transform` is on the path.

npm install --global @playcanvas/splat-transform@3.7.0
"""

import shutil
import subprocess

import pytest
import torch
from torch.nn import functional

from invert3d_core import splats
from invert3d_core.splats import GaussianSplats

CONVERTER = shutil.which("splat-transform")
pytestmark = pytest.mark.skipif(CONVERTER is None, reason="splat-transform is not on the path")


def scene(count=1500):
    g = torch.Generator().manual_seed(0)
    return GaussianSplats(
        torch.randn(count, 3, generator=g),
        torch.exp(torch.randn(count, 3, generator=g) - 4),
        functional.normalize(torch.randn(count, 4, generator=g), dim=1),
        0.05 + 0.9 * torch.rand(count, 1, generator=g),
        0.3 * torch.randn(count, 16, 3, generator=g).clamp(-3, 3),
    )


def convert(source, target):
    assert CONVERTER is not None
    done = subprocess.run([CONVERTER, "-w", source, target], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return splats.load(target)


def assert_same(found, expected, *, scales=1e-6, rotations=1e-6, opacities=1e-6, sh=1e-6, positions=1e-6):
    assert (len(found), found.degree) == (len(expected), expected.degree)
    torch.testing.assert_close(found.positions, expected.positions, rtol=0, atol=positions)
    torch.testing.assert_close(found.scales, expected.scales, rtol=scales, atol=0)
    sign = (found.rotations * expected.rotations).sum(1, keepdim=True).sign()
    torch.testing.assert_close(found.rotations * sign, expected.rotations, rtol=0, atol=rotations)
    torch.testing.assert_close(found.opacities, expected.opacities, rtol=0, atol=opacities)
    torch.testing.assert_close(found.sh, expected.sh, rtol=0, atol=sh)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.compressed.ply", {}),
        ("level0.ksplat", {"level": 0}),
        ("level1.ksplat", {"level": 1, "block_size": 1.0}),
        ("level2.ksplat", {"level": 2}),
        ("version2.spz", {"version": 2}),
        ("version3.spz", {"version": 3}),
        ("version4.spz", {"version": 4}),
    ],
)
def test_the_converter_reads_what_we_read(tmp_path, name, options):
    if options.get("version") == 4:
        pytest.importorskip("zstandard")
    splats.save(scene(), tmp_path / name, **options)
    assert_same(convert(tmp_path / name, tmp_path / "theirs.ply"), splats.load(tmp_path / name))


@pytest.mark.parametrize("name", ["theirs.compressed.ply", "theirs.spz"])
def test_what_the_converter_writes_is_ours_within_the_steps(tmp_path, name):
    if name.endswith(".spz"):
        pytest.importorskip("zstandard")
    g = scene()
    splats.save(g, tmp_path / "a.ply")
    back = convert(tmp_path / "a.ply", tmp_path / name)
    order = torch.cdist(back.positions.double(), g.positions.double()).argmin(1)
    assert sorted(order.tolist()) == list(range(len(g)))
    same = GaussianSplats(
        *(getattr(g, field)[order] for field in ("positions", "scales", "rotations", "opacities", "sh"))
    )
    assert_same(back, same, positions=0.005, scales=0.035, rotations=0.0025, opacities=0.003, sh=0.2)
