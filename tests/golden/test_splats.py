from pathlib import Path

import pytest
import safetensors.torch
import torch

from invert3d_core import splats
from invert3d_core.rotations import rotation_matrices
from invert3d_core.splats import GaussianSplats, spherical_harmonics

DATA = Path(__file__).parent / "invert3d"


def golden(name):
    return safetensors.torch.load_file(DATA / f"{name}.safetensors")


def data_bytes(tensor):
    return tensor.numpy().tobytes()


def assert_close(found, expected, *, rtol=0.0, atol=0.0):
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol, atol=atol)


def assert_same_rotations(found, expected, tolerance):
    """Quaternions are equal up to their sign."""
    sign = (found * expected).sum(1, keepdim=True).sign()
    assert_close(found * sign, expected, atol=tolerance)


# -------------------------------------------------------------------------------------------------------------- ply


def assert_ply(g, expected, rows=slice(None)):
    assert_close(g.positions, expected["means"][rows], rtol=1e-6)
    assert_close(g.scales, expected["scales"][rows], rtol=1e-6)
    assert_same_rotations(g.rotations, expected["quats_wxyz"][rows], 1e-6)
    assert_close(g.opacities[:, 0], expected["opacities"][rows], rtol=1e-6)
    assert_close(g.sh, expected["sh"][rows, : g.sh.shape[1]], rtol=1e-6)


@pytest.mark.parametrize("source", ["bytes", "file"])
def test_ply_degree3(source):
    expected = golden("ply_degree3")
    g = splats.load(data_bytes(expected["bytes"]) if source == "bytes" else DATA / "synthetic_degree3.ply")
    assert (len(g), g.degree, g.comment) == (64, 3, "")
    assert_ply(g, expected)
    assert torch.equal(g.positions, expected["means"])
    assert torch.equal(g.sh, expected["sh"])


PLY_VARIANTS = {  # variant → SH degree
    "ascii": 3,
    "ascii_crlf": 1,
    "binary_big_endian": 3,
    "binary_little_endian": 3,
    "dc_only": 0,
    "degree1": 1,
    "degree2": 2,
    "extra_elements": 1,
    "float32_type_names": 0,
    "shuffled_mixed_types": 3,
}


def test_every_ply_variant_is_listed():
    names = {key.removesuffix(".bytes") for key in golden("ply_variants") if key.endswith(".bytes")}
    assert names == set(PLY_VARIANTS)


@pytest.mark.parametrize("variant", PLY_VARIANTS)
def test_ply_variants(variant):
    data = golden("ply_variants")
    g = splats.load(data_bytes(data[f"{variant}.bytes"]))
    assert (len(g), g.degree) == (12, PLY_VARIANTS[variant])
    assert_ply(g, data)
    assert g.comment == ("Vertical Axis: y" if variant == "binary_little_endian" else "")


def test_the_written_header_is_the_reference_one(tmp_path):
    """Same 62 columns in the same order, so that readers that go by position work too."""
    reference = (DATA / "synthetic_degree3.ply").read_bytes()
    assert splats.save(splats.load(reference), tmp_path / "again.ply") == []
    written = (tmp_path / "again.ply").read_bytes()
    start = written.index(b"end_header\n") + len(b"end_header\n")
    assert written[:start] == reference[:start]
    assert len(written) == len(reference)
    assert_ply(splats.load(written), golden("ply_degree3"))


# ------------------------------------------------------------------------------------------------------------ .splat


def test_splat():
    expected = golden("splat")
    g = splats.load(data_bytes(expected["bytes"]), format="splat")
    assert_close(g.positions, expected["means"], atol=1e-6)
    assert_close(g.scales, expected["scales"], atol=1e-6)
    assert_same_rotations(g.rotations, expected["quats_wxyz"], 1e-6)
    assert_close(g.opacities[:, 0], expected["opacities"], atol=1e-6)
    assert_close(g.sh, expected["sh"], atol=1e-6)


def test_splat_writer_orders_as_the_reference_and_loses_no_more(tmp_path):
    expected, scene = golden("splat"), golden("ply_degree3")
    splats.save(splats.load(DATA / "synthetic_degree3.ply"), tmp_path / "scene.splat")
    g = splats.load(tmp_path / "scene.splat")
    order = expected["order"]
    assert torch.equal(g.positions, scene["means"][order])
    _, log_scales, quats, opacities, dc, _ = expected["max_error_to_source"].tolist()
    assert (g.scales.log() - scene["log_scales"][order]).abs().max() <= log_scales + 1e-6
    sign = (g.rotations * scene["quats_wxyz"][order]).sum(1, keepdim=True).sign()
    assert (g.rotations * sign - scene["quats_wxyz"][order]).abs().max() <= quats
    assert (g.opacities[:, 0] - scene["opacities"][order]).abs().max() <= opacities / 2 + 1e-6  # rounded, not cut
    assert (g.sh[:, 0] - scene["f_dc"][order]).abs().max() <= dc


# --------------------------------------------------------------------------------------------------------------- spz


@pytest.mark.parametrize("version", ["v1_deg1", "v2", "v2_deg2", "v3", "v3_deg1"])
def test_spz(version):
    data = golden("spz")
    number, count, degree, _, _ = data[f"{version}.header"].tolist()
    own = {k: data.get(f"{version}.{k}", data[f"v2.{k}"]) for k in ("means", "scales", "opacities", "sh")}
    quats = data.get(f"{version}.quats_wxyz", data["v3.quats_wxyz" if number == 3 else "v2.quats_wxyz"])
    g = splats.load(data_bytes(data[f"{version}.bytes"]))
    assert (len(g), g.degree) == (count, degree)
    assert_close(g.positions, own["means"], atol=4e-6)
    assert_close(g.scales, own["scales"], atol=1e-6)
    assert_same_rotations(g.rotations, quats, 1e-6 if number == 3 else 5e-6)
    assert_close(g.opacities[:, 0], own["opacities"], atol=1e-6)
    assert_close(g.sh, own["sh"][:, : g.sh.shape[1]], atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("degree", range(5))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 5e-6)])
def test_spherical_harmonics(degree, dtype, tolerance):
    data = golden("sh_eval")
    sh, directions = data["sh"].to(dtype), data["directions"].to(dtype)
    basis = spherical_harmonics.basis(directions, degree)
    torch.testing.assert_close(basis.double(), data["basis"][:, : (degree + 1) ** 2], rtol=0, atol=tolerance)
    for index, one in enumerate(sh):
        value = spherical_harmonics.evaluate(one.expand(10, -1, -1), directions, degree)
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), data["value_by_degree"][degree, index], rtol=0, atol=tolerance)
        color = (value + 0.5).clamp(min=0)
        torch.testing.assert_close(color.double(), data["color_by_degree"][degree, index], rtol=0, atol=tolerance)


def test_covariance():
    data = golden("covariance")
    n = len(data["scales"])
    g = GaussianSplats(torch.zeros(n, 3), data["scales"], data["quats_wxyz"], torch.ones(n), torch.zeros(n, 1, 3))
    torch.testing.assert_close(rotation_matrices(data["quats_wxyz"]), data["rotation_f64"], rtol=0, atol=1e-12)
    tolerance = 2e-6 * data["scales"].amax(1) ** 2
    assert ((g.covariances() - data["covariance_f64"]).abs().amax((1, 2)) <= tolerance).all()
