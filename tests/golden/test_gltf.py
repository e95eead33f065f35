"""Binary glTF with KHR_gaussian_splatting against the file of another writer."""

from pathlib import Path

import safetensors.torch
import torch

from invert3d_core import splats

DATA = Path(__file__).parent / "invert3d"
GOLDEN = safetensors.torch.load_file(DATA / "gltf_khr_gaussian_splatting.safetensors")
FILE = GOLDEN["bytes"].numpy().tobytes()


def assert_golden(g):
    assert (len(g), g.degree) == (64, 3)
    torch.testing.assert_close(g.positions, GOLDEN["means"], rtol=0, atol=1e-6)
    torch.testing.assert_close(g.scales, GOLDEN["scales"], rtol=0, atol=1e-6)
    alike = g.rotations * (g.rotations * GOLDEN["quats_wxyz"]).sum(1, keepdim=True).sign()
    torch.testing.assert_close(alike, GOLDEN["quats_wxyz"], rtol=0, atol=1e-6)
    torch.testing.assert_close(g.opacities[:, 0], GOLDEN["opacities"], rtol=0, atol=1e-6)
    torch.testing.assert_close(g.sh, GOLDEN["sh"], rtol=0, atol=1e-6)


def test_read():
    g = splats.load(FILE)
    assert_golden(g)
    assert g.stated_axes == ("+y", "+z")  # of every glTF


def test_what_was_read_is_written_and_read_alike(tmp_path):
    first = splats.load(FILE)
    assert splats.save(first, tmp_path / "again.glb") == []
    again = splats.load(tmp_path / "again.glb")
    assert_golden(again)
    assert torch.equal(again.sh, first.sh)
    assert again.comment == first.comment
