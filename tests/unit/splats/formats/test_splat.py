import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from invert3d_core import splats
from invert3d_core.errors import FormatError
from invert3d_core.splats import GaussianSplats
from invert3d_core.splats.formats.buffer import BLOCK_BYTES
from invert3d_core.splats.spherical_harmonics import C0

RECORD = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])


def records(count, seed=0):
    rng = np.random.default_rng(seed)
    rows = np.zeros(count, RECORD)
    rows["position"] = rng.normal(size=(count, 3))
    rows["scale"] = rng.uniform(0.01, 1, (count, 3))
    rows["rgba"] = rng.integers(0, 256, (count, 4))
    rows["rotation"] = rng.integers(0, 256, (count, 4))
    return rows


def random_splats(count, degree=0, seed=0, comment=""):
    """Splats with colours between 0 and 1."""
    g = torch.Generator().manual_seed(seed)
    sh = torch.zeros(count, (degree + 1) ** 2, 3)
    sh[:, 0] = (torch.rand(count, 3, generator=g) - 0.5) / C0
    return GaussianSplats(
        torch.randn(count, 3, generator=g),
        torch.rand(count, 3, generator=g),
        functional.normalize(torch.randn(count, 4, generator=g), dim=1),
        torch.rand(count, 1, generator=g),
        sh,
        comment,
    )


def test_a_record_by_hand():
    row = np.zeros(1, RECORD)
    row["position"], row["scale"] = (1, 2, 3), (0.1, 0.2, 0.3)
    row["rgba"], row["rotation"] = (0, 255, 51, 204), (128, 0, 128, 128)
    g = splats.load(row.tobytes(), format="splat")
    torch.testing.assert_close(g.positions, torch.tensor([[1.0, 2, 3]]))
    torch.testing.assert_close(g.scales, torch.tensor([[0.1, 0.2, 0.3]]))
    torch.testing.assert_close(g.sh * C0 + 0.5, torch.tensor([[[0, 1, 0.2]]]))
    torch.testing.assert_close(g.opacities, torch.tensor([[0.8]]))
    assert g.rotations.tolist() == [[0, -1, 0, 0]]


def test_a_rotation_of_zeros_is_none():
    row = records(1)
    row["rotation"] = 128
    assert splats.load(row.tobytes(), format="splat").rotations.tolist() == [[1, 0, 0, 0]]


def test_a_file_of_many_blocks_is_that_of_its_rows():
    rows = records(2 * BLOCK_BYTES // 32 + 5)
    g = splats.load(rows.tobytes(), format="splat")
    assert np.array_equal(g.positions.numpy(), rows["position"])
    assert np.array_equal(g.scales.numpy(), rows["scale"])
    np.testing.assert_allclose(g.opacities.numpy()[:, 0], rows["rgba"][:, 3] / 255, rtol=1e-6)


@settings(max_examples=40)
@given(st.integers(1, 50), st.integers(0, 2**32), st.booleans())
def test_what_is_written_comes_back(tmp_path_factory, count, seed, sort):
    """Positions and scales to the bit, the rest within half a step of its bytes."""
    g = random_splats(count, seed=seed)
    path = tmp_path_factory.mktemp("splat") / "a.splat"
    splats.save(g, path, sort=sort)
    back = splats.load(path)
    order = torch.arange(count)
    if sort:
        order = (g.positions[:, None] == back.positions[None]).all(-1).int().argmax(0)
        covered = (g.scales.double().prod(1) * g.opacities[:, 0])[order]
        assert (covered.diff() <= 1e-5 * covered[:-1]).all()
        assert torch.equal(order.sort().values, torch.arange(count))
    assert torch.equal(back.positions, g.positions[order])
    assert torch.equal(back.scales, g.scales[order])
    assert ((back.opacities - g.opacities[order]).abs() <= 0.5 / 255 + 1e-6).all()
    assert ((back.sh - g.sh[order]).abs() <= 0.5 / 255 / C0 + 1e-6).all()
    assert ((back.rotations * g.rotations[order]).sum(1).abs() >= np.cos(np.radians(0.5))).all()


def test_the_largest_and_most_opaque_come_first(tmp_path):
    g = random_splats(4)
    g.scales[:] = torch.tensor([0.1, 0.3, 0.2, 0.0])[:, None]
    g.opacities[:, 0] = torch.tensor([1.0, 0.5, 0.9, 1.0])
    lost = splats.save(g, tmp_path / "a.splat")
    assert torch.equal(splats.load(tmp_path / "a.splat").positions, g.positions[[1, 2, 0, 3]])
    assert "the order of the splats (largest and most opaque first)" in lost


def test_writing_what_was_read_changes_no_color(tmp_path):
    rows = records(300)
    first = splats.load(rows.tobytes(), format="splat")
    lost = splats.save(first, tmp_path / "a.splat", sort=False)
    again = splats.load(tmp_path / "a.splat")
    for name in ("positions", "scales", "opacities", "sh"):
        assert torch.equal(getattr(again, name), getattr(first, name)), name
    assert [what for what in lost if "rotation" not in what] == []


def test_nothing_lost_is_said_so(tmp_path):
    row = records(2)
    row["rotation"] = (255, 128, 128, 128)
    first = splats.load(row.tobytes(), format="splat")
    assert splats.save(first, tmp_path / "a.splat", sort=False) == []


def test_what_is_lost_is_said(tmp_path):
    g = random_splats(3, degree=2, comment='up="+y"')
    g.sh[0, 0, 0], g.sh[1, 4, 2] = 4, 0.1
    g.opacities[:, 0] = torch.tensor([0.5, 1, 0])
    assert splats.save(g, tmp_path / "a.splat", sort=False) == [
        "view-dependent colour (SH degree 1 to 2)",
        "colours outside 0..1 of 1 splats, clipped",
        "rotation precision (turns by up to 0.55 degrees)",
        "opacity precision (changes by up to 0.002)",
        "colour precision (changes by up to 0.0017)",
        "the comment, and what it states about the axes",
    ]


@pytest.mark.parametrize(("field", "value"), [("position", np.nan), ("scale", np.inf), ("scale", -0.5)])
def test_a_few_bad_records_are_dropped_and_many_are_an_error(tmp_path, caplog, field, value):
    rows = records(40)
    rows[field][5, 1] = value
    path = tmp_path / "a.splat"
    path.write_bytes(rows.tobytes())
    with caplog.at_level(logging.WARNING, "invert3d"):
        assert len(splats.load(path)) == 39
    assert "a.splat': dropped 1 of 40 splats" in caplog.text
    rows[field][:5, 1] = value
    path.write_bytes(rows.tobytes())
    with pytest.raises(FormatError, match=r"a\.splat': 6 of 40 splats are unusable"):
        splats.load(path)


def test_a_file_of_zeros(tmp_path):
    (tmp_path / "a.splat").write_bytes(bytes(320))
    with pytest.raises(FormatError, match=r"a\.splat': the scales of all 10 splats are 0"):
        splats.load(tmp_path / "a.splat")


def test_noise_is_refused(tmp_path):
    (tmp_path / "a.splat").write_bytes(np.random.default_rng(0).bytes(32 * 500))
    with pytest.raises(FormatError, match=r"[34]\d\d of 500 splats are unusable .* or it is of another type"):
        splats.load(tmp_path / "a.splat")


def test_a_size_that_is_no_number_of_records(tmp_path):
    path = tmp_path / "a.splat"
    path.write_bytes(records(3).tobytes()[:-1])
    with pytest.raises(FormatError, match=r"a\.splat' has 95 bytes, which is no multiple of 32"):
        splats.load(path)
