import pytest
import torch

from invert3d_core import cameras
from invert3d_core.errors import CameraError
from invert3d_core.lift3d.hull import seen_region, visual_hull
from tests.unit.lift3d.scenes import balls, rig, views


def test_the_region_is_where_the_axes_meet():
    target = torch.tensor([0.5, -1.0, 2.0])
    cams = cameras.orbit([0, 100, 220], [0, 20, -30], 3.0, 60, 32, 32, target=target)
    region = seen_region(cams)
    torch.testing.assert_close(region.center, target, atol=1e-5, rtol=0)
    assert region.radius == pytest.approx(3 * 3**-0.5, rel=1e-5)  # tan(60°/2)


def test_a_wide_picture_shows_more():
    cams = cameras.orbit([0, 90], 0, 2.0, 90, 64, 32)
    assert seen_region(cams).radius == pytest.approx(4, rel=1e-5)


def test_one_camera_looks_at_the_point_of_its_axis_nearest_to_the_origin():
    cams = cameras.orbit([0], 0, 2.0, 40, 16, 16, target=(0.3, 0.0, 0.0))
    torch.testing.assert_close(seen_region(cams).center, torch.tensor([0.3, 0, 0]), atol=1e-4, rtol=0)


def test_a_room_seen_from_within_is_refused():
    outward = cameras.orbit(cameras.azimuths(4), 0, 2.0, 40, 16, 16).moved(torch.eye(3))
    turned = outward.c2w.clone()
    turned[:, :3, 0] *= -1
    turned[:, :3, 2] *= -1
    with pytest.raises(CameraError, match="do not look at one thing"):
        seen_region(cameras.Cameras(turned, outward.fov_y_deg, 16, 16))


def test_the_hull_lies_on_the_object_and_its_normals_point_out():
    cams = cameras.concatenate([rig(8, 64, elevation) for elevation in (-30.0, 0.0, 40.0)])
    _, masks = views(balls(), cams)
    hull = visual_hull(masks > 0.5, cams, seen_region(cams))
    assert hull is not None
    offset = hull.points - torch.tensor([0.45, 0, 0]) * hull.points[:, :1].sign()
    distance = offset.norm(dim=-1)
    # Splats around 0.35 reach about 0.1 further, and a pixel is 0.05.
    assert float(distance.quantile(0.1)) > 0.4 and float(distance.quantile(0.9)) < 0.55
    outward = (torch.nn.functional.normalize(offset, dim=-1) * hull.normals).sum(-1)
    assert float(outward.median()) > 0.9
    torch.testing.assert_close(hull.normals.norm(dim=-1), torch.ones(len(hull.points)), atol=1e-4, rtol=0)


def test_silhouettes_that_do_not_fit_together_still_have_a_hull():
    """One view of four shows the object elsewhere: three agree."""
    cams = rig(4, 48)
    _, masks = views(balls(), cams)
    shifted = masks.clone()
    shifted[0] = 0
    shifted[0, 2:8, 2:8] = 1
    region = seen_region(cams)
    whole, torn = visual_hull(masks > 0.5, cams, region), visual_hull(shifted > 0.5, cams, region)
    assert whole is not None and torn is not None
    assert float(torn.points.norm(dim=-1).quantile(0.9)) < 1.2


def test_nothing_in_common_is_no_hull():
    cams = rig(4, 32)
    silhouettes = torch.zeros(4, 32, 32, dtype=torch.bool)
    assert visual_hull(silhouettes, cams, seen_region(cams)) is None
