import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invert3d_core import cameras
from invert3d_core.cameras.conversions import to_intrinsics, to_viewmats
from invert3d_core.errors import CameraError
from invert3d_core.splats import GaussianSplats

ANGLE = st.floats(-720, 720)
ELEVATION = st.floats(-90, 90)


def orbit(azimuth, elevation, radius: float | list[float] = 2.0, target=(0.0, 0.0, 0.0)):
    return cameras.orbit(azimuth, elevation, radius, 40, 32, 32, target)


@given(ANGLE, ELEVATION)
def test_an_orbit_repeats_after_a_full_turn(azimuth, elevation):
    torch.testing.assert_close(orbit(azimuth + 360, elevation).c2w, orbit(azimuth, elevation).c2w, atol=1e-5, rtol=0)


@given(ANGLE, ELEVATION, st.floats(0.01, 100))
def test_every_camera_looks_at_the_target_upright(azimuth, elevation, radius):
    target = torch.tensor([0.3, -1.0, 2.0])
    cams = orbit(azimuth, elevation, radius, target=target)
    expected = target + radius * cams.c2w[:, :3, 2]
    torch.testing.assert_close(cams.centers, expected, atol=1e-5 * radius + 1e-6, rtol=0)
    right, up = cams.c2w[0, :3, 0], cams.c2w[0, :3, 1]
    assert abs(float(right[1])) < 1e-6, "the horizon is level"
    assert float(up[1]) >= -1e-6, "and the right way up"


def test_named_azimuths():
    for azimuth, position in ((0, (0, 0, 2)), (90, (2, 0, 0)), (180, (0, 0, -2)), (270, (-2, 0, 0))):
        torch.testing.assert_close(orbit(azimuth, 0).centers[0], torch.tensor(position).float(), atol=1e-6, rtol=0)
    assert float(orbit(0, 30).centers[0, 1]) > 0, "positive elevation is above"


def test_poles_keep_the_horizon_of_their_azimuth():
    below_pole, pole = orbit([30, 30], [89.999, 90])
    torch.testing.assert_close(pole.c2w, below_pole.c2w, atol=1e-4, rtol=0)


def test_numbers_are_repeated():
    cams = orbit([0, 90, 180], 15, [1.0, 2.0, 3.0])
    assert len(cams) == 3
    torch.testing.assert_close(cams.centers.norm(dim=-1), torch.tensor([1.0, 2.0, 3.0]))
    assert len(orbit(0, 0)) == 1


@given(ANGLE, ANGLE, ELEVATION)
def test_turning_adds_to_the_azimuth(azimuth, by, elevation):
    turned = cameras.turn(orbit(azimuth, elevation), by)
    torch.testing.assert_close(turned.c2w, orbit(azimuth + by, elevation).c2w, atol=1e-5, rtol=0)


def test_azimuths_leave_the_end_out():
    assert cameras.azimuths(4, 90).tolist() == [90, 180, 270, 360]
    assert cameras.azimuths(3, -30, 180).tolist() == [-30, 30, 90]
    with pytest.raises(CameraError, match="count is 0"):
        cameras.azimuths(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [0, 1, 2], 1, 40, 8, 8), r"azimuths \(2,\), elevations \(3,\)"),
        ((0, 91, 1, 40, 8, 8), "elevation 91"),
        ((0, float("nan"), 1, 40, 8, 8), "elevation nan"),
        ((0, 0, 0, 40, 8, 8), "radius 0"),
        ((0, 0, 1, 40, 8, 8, (0, 0)), r"target \(2,\)"),
        ((0, 0, 1, 190, 8, 8), "fov_y_deg 190"),
    ],
)
def test_orbit_errors(arguments, message):
    with pytest.raises(CameraError, match=message):
        cameras.orbit(*arguments)


def cloud(positions, opacities: float | torch.Tensor = 0.9, scale=0.01):
    count = len(positions)
    return GaussianSplats(
        positions,
        torch.full((count, 3), scale),
        torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        torch.as_tensor(opacities).float().reshape(-1, 1).expand(count, 1).contiguous(),
        torch.zeros(count, 1, 3),
    )


def in_ball(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 3, generator=generator)
    return points / points.norm(dim=-1, keepdim=True) * torch.rand(count, 1, generator=generator) ** (1 / 3)


CENTER = torch.tensor([3.0, -1.0, 0.5])


def test_sphere_of_a_ball():
    center, radius = cameras.fit_sphere(cloud(2 * in_ball(4000) + CENTER))
    torch.testing.assert_close(center, CENTER, atol=0.05, rtol=0)
    assert radius == pytest.approx(2, abs=0.05)


def test_sphere_ignores_floaters_and_transparent_splats():
    generator = torch.Generator().manual_seed(1)
    clean = in_ball(4000) + CENTER
    floaters = 60 * torch.randn(60, 3, generator=generator)
    haze = 5 * torch.randn(3000, 3, generator=generator)
    positions = torch.cat([clean, floaters, haze])
    opacities = torch.cat([torch.full((4060,), 0.9), torch.full((3000,), 0.01)])
    center, radius = cameras.fit_sphere(cloud(positions, opacities))
    torch.testing.assert_close(center, CENTER, atol=0.05, rtol=0)
    assert radius == pytest.approx(1, abs=0.05)


def test_sphere_keeps_thin_long_parts():
    """A body with a thin neck that holds a twentieth of the splats and is three times as long as the body."""
    neck = torch.zeros(200, 3)
    neck[:, 1] = torch.linspace(1, 4, 200)
    center, radius = cameras.fit_sphere(cloud(torch.cat([in_ball(3800), neck])))
    assert float(center[1]) == pytest.approx(1.5, abs=0.1)
    assert radius == pytest.approx(2.5, abs=0.1)


def test_sphere_does_not_depend_on_order_or_unit():
    points = in_ball(500) * torch.tensor([1.0, 0.3, 0.1])
    center, radius = cameras.fit_sphere(cloud(points))
    shuffled = cameras.fit_sphere(cloud(points.flip(0)))
    torch.testing.assert_close(shuffled.center, center, atol=1e-5, rtol=0)
    assert shuffled.radius == pytest.approx(radius, rel=1e-5)
    larger = cameras.fit_sphere(cloud(1000 * points, scale=10.0))
    torch.testing.assert_close(larger.center, 1000 * center, atol=1e-2, rtol=1e-4)
    assert larger.radius == pytest.approx(1000 * radius, rel=1e-4)


def test_sphere_of_one_splat_and_of_none():
    center, radius = cameras.fit_sphere(cloud(CENTER[None], scale=0.2))
    assert torch.equal(center, CENTER) and radius == pytest.approx(0.2)
    assert cameras.fit_sphere(cloud(CENTER[None], 0.0, scale=0.2)).radius == pytest.approx(0.2), "all transparent"
    with pytest.raises(CameraError, match="no Gaussians"):
        cameras.fit_sphere(cloud(torch.zeros(0, 3)))


@given(st.floats(10, 120), st.integers(16, 400), st.integers(16, 400), st.floats(0.2, 1.0), st.floats(0.01, 50))
def test_the_sphere_s_silhouette_spans_the_fill(fov, width, height, fill, sphere_radius):
    distance = cameras.fit_radius(sphere_radius, fov, width, height, fill)
    assert distance > sphere_radius
    cams = cameras.orbit(0, 0, distance, fov, width, height)
    # The outermost ray touches the sphere where the angle at the touching point is right.
    angle = math.asin(sphere_radius / distance)
    along, across = sphere_radius * math.sin(angle), sphere_radius * math.cos(angle)
    shorter = 0 if width < height else 1
    point = torch.zeros(3)
    point[2] = along
    point[shorter] = across
    seen = to_intrinsics(cams)[0] @ (to_viewmats(cams)[0, :3, :3] @ point + to_viewmats(cams)[0, :3, 3])
    offset = abs(float(seen[shorter] / seen[2]) - (width, height)[shorter] / 2)
    assert 2 * offset / min(width, height) == pytest.approx(fill, abs=1e-3)


def test_a_fitted_view_shows_everything():
    points = in_ball(3000) * torch.tensor([0.2, 1.0, 0.2]) + CENTER
    center, radius = cameras.fit_sphere(cloud(points))
    cams = cameras.orbit(cameras.azimuths(8), 20, cameras.fit_radius(radius, 40, 100, 100), 40, 100, 100, center)
    seen = torch.einsum("cij,nj->cni", to_viewmats(cams)[:, :3, :3], points) + to_viewmats(cams)[:, None, :3, 3]
    pixels = torch.einsum("cij,cnj->cni", to_intrinsics(cams), seen)
    pixels = pixels[..., :2] / pixels[..., 2:]
    assert float(pixels.min()) > 0 and float(pixels.max()) < 100
    assert 0.7 < float(pixels[..., 1].max() - pixels[..., 1].min()) / 100 < 0.95


def test_views_begin_before_the_object_whatever_its_size():
    cams = cameras.orbit([0, 40], 0, [100.0, 6.0], 40, 8, 8, CENTER)
    assert cameras.near_plane(cams, CENTER) == 0.2
    small = cameras.orbit([0, 40], 0, [1.0, 0.6], 40, 8, 8, CENTER)
    assert cameras.near_plane(small, CENTER) == pytest.approx(0.03)
    assert cameras.near_plane(small, small.centers[0]) == 1e-4


@pytest.mark.parametrize("arguments", [(0, 40, 8, 8), (1, 180, 8, 8), (1, 40, 0, 8), (1, 40, 8, 8, 0)])
def test_fit_radius_errors(arguments):
    with pytest.raises(CameraError, match="expected"):
        cameras.fit_radius(*arguments)
