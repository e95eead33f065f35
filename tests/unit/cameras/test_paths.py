import math

import pytest
import torch

from invert3d_core import cameras
from invert3d_core.cameras import conversions, paths
from invert3d_core.errors import CameraError
from invert3d_core.rotations import rotation_matrices


def ring(count, radius=2.0, elevation=10.0):
    return cameras.orbit(cameras.azimuths(count), elevation, radius, 40, 64, 48)


def off_target(cams):
    """Degrees between where the cameras look and where the origin is."""
    towards = -cams.centers / cams.centers.norm(dim=-1, keepdim=True)
    return torch.rad2deg(torch.acos((towards * cams.view_directions).sum(-1).clamp(-1, 1)))


def test_frames_of_a_film():
    assert paths.frame_count(4, 24) == 96
    assert paths.frame_count(0.001, 24) == 1
    for seconds, fps, message in ((0, 24, "positive"), (1, math.nan, "positive"), (1e9, 24, "100,000")):
        with pytest.raises(CameraError, match=message):
            paths.frame_count(seconds, fps)


@pytest.mark.parametrize("easing", paths.EASINGS)
def test_easing_rests_where_it_says(easing):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    share = paths.ease(t, easing)
    assert share[0] == 0 and share[-1] == 1
    assert (share.diff() > 0).all()
    start, end = (float(step) * 1000 for step in (share.diff()[0], share.diff()[-1]))
    assert (start < 0.01) == (easing in ("in", "in-out"))
    assert (end < 0.01) == (easing in ("out", "in-out"))


def test_turntable_is_the_orbit_and_closes():
    cams = paths.turntable(8, 2.0, 40, 64, 48, elevation_deg=10)
    torch.testing.assert_close(cams.c2w, ring(8).c2w)
    back = paths.turntable(8, 2.0, 40, 64, 48, elevation_deg=10, turns=-1, start_deg=90)
    torch.testing.assert_close(back.c2w, ring(8)[[2, 1, 0, 7, 6, 5, 4, 3]].c2w, atol=1e-6, rtol=0)


def test_spiral_reaches_both_ends():
    cams = paths.spiral(31, (4.0, 1.0), (60.0, 20.0), 64, 48, elevation_deg=(-30, 70), turns=2, start_deg=45)
    first = cameras.orbit(45, -30, 4.0, 60, 64, 48)
    last = cameras.orbit(45 + 720, 70, 1.0, 20, 64, 48)
    for found, expected in ((cams[0], first), (cams[-1], last)):
        torch.testing.assert_close(found.c2w, expected.c2w, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.fov_y_deg, expected.fov_y_deg)
    assert cams[15].centers.norm() == pytest.approx(2.0), "half way the distance has changed by half of the factor"
    assert off_target(cams).max() < 0.1


def test_keyframes_pass_through_the_keys_at_their_times():
    keys = ring(5)
    cams = paths.keyframes(keys, 41, times=[0, 1, 3, 4, 10])
    torch.testing.assert_close(cams[[0, 4, 12, 16, 40]].c2w, keys.c2w, atol=1e-6, rtol=0)
    assert (cams.width, cams.height, cams.frame) == (64, 48, "asset")
    assert cams.c2w.dtype == torch.float32


def test_closed_keyframes_of_a_ring_stay_on_it():
    cams = paths.keyframes(ring(8), 64, closed=True)
    torch.testing.assert_close(cams[::8].c2w, ring(8).c2w, atol=1e-6, rtol=0)
    assert (cams.centers.norm(dim=-1) / 2 - 1).abs().max() < 1e-5
    assert off_target(cams).max() < 0.1
    steps = (cams.centers - cams.centers.roll(1, 0)).norm(dim=-1)
    assert steps.max() / steps.min() < 1.001, "even speed, over the seam too"


def test_straight_lines_cut_the_corners():
    cams = paths.keyframes(ring(4), 8, closed=True, smooth=False, pivot=None)
    middle = (ring(4).centers[0] + ring(4).centers[1]) / 2
    torch.testing.assert_close(cams.centers[1], middle)


@pytest.mark.parametrize("rolled", [False, True])
@pytest.mark.parametrize("pivot", ["auto", None])
def test_neither_position_nor_direction_has_a_kink_at_a_key(pivot, rolled):
    keys = cameras.orbit([0, 50, 60, 200], [0, 40, -10, 20], [2, 3, 1, 2], 40, 8, 8)
    if rolled:
        keys.c2w[1] = keys.c2w[1] @ roll(25)
    cams = paths.keyframes(keys.to(dtype=torch.float64), 6001, times=[0, 1, 4, 6], pivot=pivot)
    torch.testing.assert_close(cams[[0, 1000, 4000, 6000]].c2w.float(), keys.c2w, atol=1e-5, rtol=0)
    for moving in (cams.centers, cams.view_directions, cams.c2w[:, :3, 1]):
        speed = moving.diff(dim=0)
        assert (speed.diff(dim=0).norm(dim=-1).max() / speed.norm(dim=-1).max()) < 0.01


def test_cameras_that_look_at_one_thing_swing_round_it():
    """Two keys on opposite sides: the straight way leads through the object with the camera turned away."""
    keys = cameras.orbit([20, 190], [10, 50], [3.0, 1.5], 40, 8, 8, target=(1.0, 2.0, 3.0))
    cams = paths.keyframes(keys, 21)
    offset = torch.tensor([1.0, 2.0, 3.0]) - cams.centers
    distance = offset.norm(dim=-1)
    assert distance.min() > 1.49 and distance.max() < 3.01
    assert ((offset / distance[:, None] * cams.view_directions).sum(-1) > 0.9999).all()
    straight = paths.keyframes(keys, 21, pivot=None).centers
    assert (torch.tensor([1.0, 2.0, 3.0]) - straight).norm(dim=-1).min() < 1.2
    # Cameras side by side that look the same way have nothing in common to swing round.
    row = cameras.Cameras(torch.eye(4).repeat(3, 1, 1), torch.tensor(40.0), 8, 8)
    row.c2w[:, 0, 3] = torch.tensor([0.0, 1.0, 2.0])
    torch.testing.assert_close(paths.keyframes(row, 5).centers[:, 0], torch.tensor([0, 0.5, 1, 1.5, 2]))


def roll(degrees):
    matrix, angle = torch.eye(4), math.radians(degrees)
    matrix[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return matrix


@pytest.mark.parametrize("up", ["+y", "-z", "+x"])
def test_upright_cameras_stay_upright_whatever_is_up(up):
    keys = cameras.orbit([20, 190, 260], [10, 70, -90], [3.0, 1.5, 2.0], 40, 8, 8)
    stands = cameras.Orientation(up, "+y" if up != "+y" else "+z")
    cams = paths.keyframes(stands.into_splat_frame(keys), 31)
    axis = torch.tensor(cameras.cameras.AXES[up])
    assert (cams.c2w[:, :3, 0] @ axis).abs().max() < 1e-5, "the right side stays level"
    assert (cams.c2w[:, :3, 1] @ axis).min() > -1e-5
    torch.testing.assert_close(stands.from_splat_frame(cams[[0, 15, 30]]).c2w, keys.c2w, atol=1e-5, rtol=0)
    tilted = cameras.Cameras(keys.c2w @ roll(5), keys.fov_y_deg, 8, 8)
    torch.testing.assert_close(paths.keyframes(tilted, 31)[15].c2w, tilted[1].c2w, atol=1e-5, rtol=0)


def test_cameras_that_face_each_other_go_round_upright():
    keys = cameras.orbit([20, 200], [20, 60], 2.0, 40, 8, 8)
    cams = paths.keyframes(keys, 11)
    assert cams.c2w[:, 1, 0].abs().max() < 1e-5
    assert (cams.centers.norm(dim=-1) - 2).abs().max() < 1e-4
    torch.testing.assert_close(cams[[0, 10]].c2w, keys.c2w, atol=1e-5, rtol=0)


def test_a_closed_path_goes_all_the_way_round():
    cams = paths.keyframes(ring(3), 36, closed=True)
    torch.testing.assert_close(cams.c2w, ring(36).c2w, atol=1e-5, rtol=0)


def test_a_pivot_of_one_s_own():
    keys = ring(2).moved(torch.eye(3), torch.tensor([0.0, 5.0, 0.0]))
    cams = paths.keyframes(keys, 9, pivot=(0.0, 5.0, 0.0))
    assert ((cams.centers - torch.tensor([0.0, 5.0, 0.0])).norm(dim=-1) - 2).abs().max() < 1e-5


def test_easing_at_every_key_makes_the_camera_rest_there():
    frames = paths.keyframes(ring(3).to(dtype=torch.float64), 2001, easing="in-out", ease_at="keys")
    speed = frames.centers.diff(dim=0).norm(dim=-1)
    assert speed[[0, 999, 1000, 1999]].max() < 0.02 * speed.max()
    ends = paths.keyframes(ring(3).to(dtype=torch.float64), 2001, easing="in-out")
    speed = ends.centers.diff(dim=0).norm(dim=-1)
    assert speed[[0, 1999]].max() < 0.02 * speed.max() < speed[1000]


def test_lens_changes_by_even_factors():
    keys = cameras.Cameras(torch.eye(4).repeat(2, 1, 1), torch.tensor([90.0, 30.0]), 8, 8)
    focal = conversions.to_intrinsics(paths.keyframes(keys.to(dtype=torch.float64), 5))[:, 0, 0]
    torch.testing.assert_close(focal[1:] / focal[:-1], torch.full((4,), float((focal[4] / focal[0]) ** 0.25)).double())


def test_rotations_take_the_short_way_at_even_speed():
    turned = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    half = math.radians(-100) / 2
    turned[1, :3, :3] = rotation_matrices(torch.tensor([math.cos(half), 0, 0, math.sin(half)]).double())
    cams = paths.keyframes(cameras.Cameras(turned, torch.tensor(40.0), 8, 8), 11)
    angles = torch.rad2deg(torch.atan2(cams.c2w[:, 1, 0], cams.c2w[:, 0, 0]))
    torch.testing.assert_close(angles, torch.linspace(0, -100, 11, dtype=torch.float64))


@pytest.mark.parametrize("pivot", ["auto", None])
@pytest.mark.parametrize("degrees", [0, 25])
@pytest.mark.parametrize("closed", [False, True])
def test_the_camera_stands_still_between_equal_keys(closed, degrees, pivot):
    """A pause is made of one key twice; a spline alone would swing out and back again."""
    keys = cameras.orbit([0, 80, 80, 120], [0, 30, 30, 20], [2, 3, 3, 1], 40, 8, 8)
    keys = cameras.Cameras(keys.c2w @ roll(degrees), keys.fov_y_deg, 8, 8)
    count = 4 if closed else 3
    cams = paths.keyframes(keys, 10 * count + (not closed), closed=closed, pivot=pivot)
    torch.testing.assert_close(cams[list(range(10, 21))].c2w, keys[[1] * 11].c2w, atol=1e-6, rtol=0)
    assert (cams.centers[:10] - cams.centers[1:11]).norm(dim=-1).min() > 0.01, "and moves elsewhere"
    if closed:  # the pause may lie across the seam
        turned = paths.keyframes(keys[[2, 3, 0, 1]], 40, closed=True, pivot=pivot)
        torch.testing.assert_close(turned.c2w, cams.c2w.roll(-20, 0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("pivot", ["auto", None])
def test_a_short_step_after_a_long_one_is_not_overshot(pivot):
    keys = cameras.orbit([-170, 0, 5, 175], 0, 2.0, 40, 8, 8)
    cams = paths.keyframes(keys.to(dtype=torch.float64), 301, pivot=pivot)
    azimuths = torch.rad2deg(torch.atan2(cams.c2w[:, 0, 2], cams.c2w[:, 2, 2]))
    assert (azimuths.diff() > 0).all()
    torch.testing.assert_close(azimuths[[100, 200]], torch.tensor([0.0, 5.0]).double(), atol=1e-4, rtol=0)


def test_one_key_and_one_frame():
    assert len(paths.keyframes(ring(4)[:1], 3)) == 3
    assert len(paths.keyframes(ring(4)[:1], 3, closed=True)) == 3
    torch.testing.assert_close(paths.keyframes(ring(4), 1).c2w, ring(4)[0].c2w)
    assert len(paths.spiral(1, 2.0, 40, 8, 8)) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paths.turntable(0, 2.0, 40, 8, 8), "path of 0 frames"),
        (lambda: paths.turntable(10**9, 2.0, 40, 8, 8), "1,000,000,000 frames"),
        (lambda: paths.turntable(4, 2.0, 40, 8, 8, easing="bouncy"), "easing is 'bouncy'"),  # pyright: ignore
        (lambda: paths.spiral(4, (2.0, 0.0), 40, 8, 8), "positive distances"),
        (lambda: paths.spiral(4, 2.0, (40.0, 180.0), 8, 8), "between 0"),
        (lambda: paths.keyframes(ring(4)[:0], 4), "no cameras to move through"),
        (lambda: paths.keyframes(ring(4), 0), "path of 0 frames"),
        (lambda: paths.keyframes(ring(4), 100_001), "path of 100,001 frames"),
        (lambda: paths.keyframes(ring(4), 4, times=[0, 1]), "2 times for 4 keys"),
        (lambda: paths.keyframes(ring(3), 4, times=[0, 1, 1]), "do not increase"),
        (lambda: paths.keyframes(ring(3), 4, times=[0, 1, math.nan]), "do not increase"),
        (lambda: paths.keyframes(ring(3), 4, ease_at="middle"), "ease_at is 'middle'"),  # pyright: ignore
        (lambda: paths.keyframes(ring(3), 4, ease_at="keys"), "rests at no key; choose in-out"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(CameraError, match=message):
        call()
