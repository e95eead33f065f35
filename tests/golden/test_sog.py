"""SOG against the file of another writer, and against what that writer loses."""

import io
import zipfile
from pathlib import Path

import safetensors.torch
import torch

from invert3d_core import splats

DATA = Path(__file__).parent / "invert3d"
GOLDEN = safetensors.torch.load_file(DATA / "sog.safetensors")
FILE = GOLDEN["bytes"].numpy().tobytes()


def turned_alike(found, expected):
    """Quaternions of the sign of the expected ones."""
    return found * (found * expected).sum(1, keepdim=True).sign()


def assert_golden(g):
    assert (len(g), g.degree) == (64, 3)
    torch.testing.assert_close(g.positions, GOLDEN["means"], rtol=0, atol=1e-6)
    torch.testing.assert_close(g.scales, GOLDEN["scales"], rtol=0, atol=1e-6)
    torch.testing.assert_close(turned_alike(g.rotations, GOLDEN["quats_wxyz"]), GOLDEN["quats_wxyz"], rtol=0, atol=1e-6)
    torch.testing.assert_close(g.opacities[:, 0], GOLDEN["opacities"], rtol=0, atol=1e-6)
    torch.testing.assert_close(g.sh, GOLDEN["sh"], rtol=0, atol=1e-6)


def test_bundle():
    assert_golden(splats.load(FILE))


def test_folder(tmp_path):
    zipfile.ZipFile(io.BytesIO(FILE)).extractall(tmp_path / "scene")
    assert_golden(splats.load(tmp_path / "scene"))
    assert_golden(splats.load(tmp_path / "scene" / "meta.json"))


def test_what_was_read_is_written_and_read_alike(tmp_path):
    """But for quaternions in which the part left out is not the largest: our writer leaves out the largest."""
    first = splats.load(FILE)
    (lost,) = splats.save(first, tmp_path / "again.sog", sort=False)
    assert lost.startswith("rotation precision")
    again = splats.load(tmp_path / "again.sog")
    assert torch.equal(again.sh, first.sh) and torch.equal(again.opacities, first.opacities)
    torch.testing.assert_close(again.positions, GOLDEN["means"], rtol=0, atol=1e-6)
    torch.testing.assert_close(again.scales, GOLDEN["scales"], rtol=0, atol=1e-6)
    assert ((again.rotations * first.rotations).sum(1).abs() > 1 - 1e-5).sum() >= 60
    assert splats.save(again, tmp_path / "third.sog", sort=False) == []
    assert torch.equal(splats.load(tmp_path / "third.sog").rotations, again.rotations)


def test_the_writer_loses_no_more(tmp_path):
    scene = safetensors.torch.load_file(DATA / "ply_degree3.safetensors")
    splats.save(splats.load(DATA / "synthetic_degree3.ply"), tmp_path / "scene.sog", sort=False)
    g = splats.load(tmp_path / "scene.sog")
    means, log_scales, quats, opacities, dc, rest = GOLDEN["max_error_to_source"].tolist()
    assert (g.positions - scene["means"]).abs().max() <= means
    assert (g.scales.log() - scene["log_scales"]).abs().max() <= log_scales
    assert (turned_alike(g.rotations, scene["quats_wxyz"]) - scene["quats_wxyz"]).abs().max() <= quats
    assert (g.opacities[:, 0] - scene["opacities"]).abs().max() <= opacities / 2 + 1e-6  # rounded, not cut
    assert (g.sh[:, 0] - scene["f_dc"]).abs().max() <= dc
    assert (g.sh[:, 1:] - scene["sh_rest"]).abs().max() <= rest
