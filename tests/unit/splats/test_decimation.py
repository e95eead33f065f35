import math

import pytest
import torch

from invert3d_core import cameras, splats
from invert3d_core.metrics.images import psnr
from invert3d_core.progress import Cancelled
from invert3d_core.rendering import rasterize
from invert3d_core.splats import decimation
from invert3d_core.splats.decimation import decimate
from invert3d_core.splats.selection import most_visible, select
from invert3d_core.toy import samples
from tests.unit.rendering.scenes import built_of, cloud, one, tensors_of, together

SAMPLES = sorted(samples.FOLDER.glob("*.ply"))


def views_of(g):
    sphere = cameras.fit_sphere(g)
    ring = cameras.orbit(cameras.azimuths(3, 20), 15, cameras.fit_radius(sphere.radius, 40, 96, 96), 40, 96, 96)
    return cameras.Orientation(*g.stated_axes).into_splat_frame(ring, sphere.center)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize(("share", "least_db", "ahead_db"), [(2, 36, 15), (4, 31, 12), (10, 23, 8)])
def test_merging_is_far_ahead_of_dropping(path, share, least_db, ahead_db):
    """Rendered PSNR against the whole asset, against the most visible splats and against a random choice of as many."""
    g = splats.load(path)
    count = len(g) // share
    cams = views_of(g)
    whole = rasterize(g, cams).color.clamp(0, 1)
    random = torch.randperm(len(g), generator=torch.Generator().manual_seed(0))[:count]
    merged, dropped, drawn = (
        float(psnr(rasterize(h, cams).color.clamp(0, 1)[None], whole[None]))
        for h in (decimate(g, count), most_visible(g, count), select(g, random))
    )
    assert merged > least_db
    assert merged > dropped + ahead_db
    assert merged > drawn + 5


def test_the_count_is_met_and_the_values_are_splats():
    g = cloud(700, degree=2)
    for count in (699, 350, 20, 1):
        fewer = decimate(g, count)
        assert len(fewer) == count
        assert fewer.degree == 2
        fewer.validate()
        torch.testing.assert_close(fewer.rotations.norm(dim=1), torch.ones(count))
    assert decimate(g, 700) is g
    assert decimate(g, 10_000) is g
    with pytest.raises(ValueError, match="count is 0, expected at least 1"):
        decimate(g, 0)


def test_what_is_merged_with_none_stays_as_it_is():
    g = cloud(400, degree=1)
    fewer = decimate(g, 390)
    same = (fewer.positions[:, None] == g.positions).all(2)
    kept, where = same.any(1), same.int().argmax(1)
    assert 380 <= int(kept.sum()) < 390
    for found, given in zip(tensors_of(fewer), tensors_of(g), strict=True):
        assert torch.equal(found[kept], given[where[kept]])
    assert (where[kept].diff() > 0).all()  # in order


def test_same_seed_same_splats():
    g = cloud(500)
    first, again, other = decimate(g, 100), decimate(g, 100), decimate(g, 100, seed=1)
    assert torch.equal(first.positions, again.positions)
    assert not torch.equal(first.positions, other.positions)


def test_two_equal_splats_become_one_that_hides_as_much():
    pair = decimate(together(one(scale=0.2, opacity=0.02), one(scale=0.2, opacity=0.02)), 1)
    assert float(pair.opacities) == pytest.approx(1 - 0.98**2, rel=1e-4)  # both, one behind the other
    torch.testing.assert_close(pair.scales, torch.full((1, 3), 0.2), rtol=0.02, atol=0)
    # Nearly opaque ones: the union has a flat top, so its Gaussian is wider. ∫ 1 − (1 − o g)² = 2π s² (2o − o²/2).
    opaque = decimate(together(one(scale=0.2, opacity=0.9), one(scale=0.2, opacity=0.9)), 1)
    hidden = float(opaque.opacities) * float(opaque.scales.square().mean())
    assert float(opaque.opacities) == pytest.approx(0.99, abs=1e-3)
    assert hidden == pytest.approx(0.2**2 * (2 * 0.9 - 0.9**2 / 2), rel=0.1)


def test_moments_of_a_faint_pair_by_hand():
    left, right = one((-0.1, 0, 0), 0.1, 0.01, (1.0, 0.0, 0.0)), one((0.1, 0, 0), 0.1, 0.03, (0.0, 0.0, 1.0))
    merged = decimate(together(left, right), 1)
    torch.testing.assert_close(merged.positions, torch.tensor([[0.05, 0, 0]]), rtol=0, atol=1e-6)  # 1 : 3
    expected = torch.diag(torch.tensor([0.01 + 0.75 * 0.25 * 0.04, 0.01, 0.01]))
    torch.testing.assert_close(merged.covariances()[0], expected, rtol=0.02, atol=1e-7)
    torch.testing.assert_close(merged.sh[0, 0], 0.25 * left.sh[0, 0] + 0.75 * right.sh[0, 0])


def test_likes_join_before_strangers():
    near_alike = together(one((0.0, 0, 0), 0.1), one((0.05, 0, 0), 0.1))
    near_other = together(one((5.0, 0, 0), 0.1), one((5.05, 0, 0), 0.1, rgb=(1.0, 0, 0)))
    apart = together(one((10.0, 0, 0), 0.1), one((10.8, 0, 0), 0.1))
    merged = decimate(together(near_other, apart, near_alike), 5)
    assert merged.positions[-1, 0] == pytest.approx(0.025, abs=1e-6)
    assert merged.positions[:4, 0].tolist() == pytest.approx([5, 5.05, 10, 10.8])


def test_degenerate_splats_are_merged_too():
    g = cloud(64)
    flat = built_of([g.positions * 0, g.scales * torch.tensor([1.0, 1, 0]), *tensors_of(g)[2:]])
    points = built_of([g.positions, g.scales * 0, *tensors_of(g)[2:]])
    hidden = built_of([*tensors_of(g)[:3], g.opacities * 0, g.sh])
    solid = built_of([*tensors_of(g)[:3], torch.ones(64, 1), g.sh])
    for odd in (flat, points, hidden, solid):
        fewer = decimate(odd, 7)
        assert len(fewer) == 7
        fewer.validate()


@pytest.mark.parametrize("unit", [1e-12, 1e-7, 1e7, 1e12])
def test_units_do_not_matter(unit):
    g = cloud(300, degree=1)
    scaled = built_of([g.positions * unit, g.scales * unit, *tensors_of(g)[2:]])
    expected, found = decimate(g, 60), decimate(scaled, 60)
    torch.testing.assert_close(found.positions / unit, expected.positions, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.scales / unit, expected.scales, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.sh, expected.sh, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.opacities, expected.opacities, rtol=0, atol=1e-4)


def test_chunks_do_not_matter(monkeypatch):
    g = cloud(600)
    whole = decimate(g, 150)
    monkeypatch.setattr(decimation, "CHUNK_LEAVES", 3)
    assert torch.equal(decimate(g, 150).positions, whole.positions)


def test_progress_counts_up_and_stops():
    calls = []
    decimate(cloud(300), 30, progress=lambda step, total, **_: calls.append((step, total)))
    steps, totals = zip(*calls, strict=True)
    assert set(totals) == {270} and steps[-1] == 270
    assert list(steps) == sorted(set(steps))

    def stop(step, total, **_):
        raise Cancelled

    with pytest.raises(Cancelled):
        decimate(cloud(300), 30, progress=stop)


def test_spread_is_the_exponential_integral():
    peaks = torch.tensor([1e-6, 0.01, 1.0, 3.0, 7.9, 8.1, 20.0])
    steps = torch.linspace(0, 1, 200_001, dtype=torch.float64)[1:]
    for peak, found in zip(peaks.double().tolist(), decimation._spread(peaks).tolist(), strict=True):
        integral = torch.trapezoid(-torch.expm1(-peak * steps) / steps, steps) + peak * float(steps[0])
        assert found == pytest.approx(float(integral) / -math.expm1(-peak), rel=1e-3)
