import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invert3d_core import cameras
from invert3d_core.cameras import Cameras, conversions
from invert3d_core.errors import CameraError

UNIT = st.floats(-1, 1)


@st.composite
def poses(draw):
    """Any pose: roll, positions away from the origin, near-identity and half-turn rotations."""
    q = torch.tensor([draw(UNIT) for _ in range(4)], dtype=torch.float64)
    q = q / q.norm() if q.norm() > 1e-3 else torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    w, x, y, z = q.tolist()
    c2w = torch.eye(4, dtype=torch.float64)
    c2w[:3, :3] = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )
    c2w[:3, 3] = 5 * torch.tensor([draw(UNIT) for _ in range(3)], dtype=torch.float64)
    return c2w


@given(poses(), st.floats(5, 120), st.sampled_from(["vertical", "smaller"]), st.sampled_from([(64, 48), (48, 64)]))
def test_camera_info_round_trip(pose, fov, side, size):
    cams = Cameras(pose[None], torch.tensor([fov]), size[0], size[1])
    infos = conversions.to_camera_info(cams, side)
    back = conversions.from_camera_info(infos, size[0], size[1], side)
    torch.testing.assert_close(back.c2w.double(), cams.c2w, atol=2e-6, rtol=0)
    assert float(back.fov_y_deg) == pytest.approx(fov, rel=1e-5)
    # Position and target alone say where the camera looks, too.
    position, target = (
        torch.tensor([infos[0][k][a] for a in "xyz"], dtype=torch.float64) for k in ("position", "target")
    )
    toward = torch.nn.functional.normalize(target - position, dim=0)
    torch.testing.assert_close(toward, cams.view_directions[0], atol=1e-6, rtol=0)


@given(poses(), st.floats(5, 120))
def test_opencv_round_trip_and_inverse(pose, fov):
    cams = Cameras(pose[None], torch.tensor([fov]), 40, 30)
    viewmats, intrinsics = conversions.to_viewmats(cams), conversions.to_intrinsics(cams)
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(viewmats @ cams.c2w @ flip, torch.eye(4, dtype=torch.float64)[None])
    back = conversions.from_viewmats(viewmats, intrinsics, 40, 30)
    torch.testing.assert_close(back.c2w, cams.c2w)
    torch.testing.assert_close(back.fov_y_deg, cams.fov_y_deg)


def test_values_are_plain_numbers():
    (info,) = conversions.to_camera_info(cameras.orbit(30, 20, 2, 40, 64, 64))
    leaves = [*info["position"].values(), *info["target"].values(), *info["quaternion"].values(), info["fov"]]
    assert {type(value) for value in leaves} == {float}
    assert info["quaternion"]["w"] >= 0


def test_fov_of_the_smaller_side():
    """In a picture half as wide as high the host's splat renderer reads fov as the horizontal angle."""
    cams = Cameras(torch.eye(4)[None], torch.tensor([90.0]), 32, 64)
    assert conversions.to_camera_info(cams, "vertical")[0]["fov"] == pytest.approx(90)
    assert conversions.to_camera_info(cams, "smaller")[0]["fov"] == pytest.approx(53.13010235)  # 2 atan(1/2)
    wide = cams.resized(64, 32)
    assert conversions.to_camera_info(wide, "smaller")[0]["fov"] == pytest.approx(90)


def test_what_a_camera_info_may_leave_out():
    info = {"position": {"x": 0, "y": 0, "z": 2}, "target": {"x": 0, "y": 0, "z": 0}}
    assert conversions.from_camera_info(info, 8, 8).fov_y_deg.tolist() == [35]
    zoomed = conversions.from_camera_info(info | {"fov": 90, "zoom": 2}, 8, 8)
    assert zoomed.fov_y_deg.tolist() == pytest.approx([53.13010235])
    unnormalised = info | {"quaternion": {"x": 0, "y": 0, "z": 0, "w": 7}}
    assert torch.equal(conversions.from_camera_info(unnormalised, 8, 8).c2w, cameras.orbit(0, 0, 2, 35, 8, 8).c2w)
    assert len(conversions.from_camera_info([info, info, info], 8, 8)) == 3


GOOD = {"position": {"x": 0, "y": 0, "z": 2}, "target": {"x": 0, "y": 0, "z": 0}}


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ([], "no camera_info"),
        ({}, "position is None"),
        (GOOD | {"position": {"x": 0, "y": "up", "z": 1}}, "camera_info 0: position"),
        ([GOOD, GOOD | {"cameraType": "orthographic"}], "camera_info 1: an orthographic"),
        (GOOD | {"target": GOOD["position"]}, "same point"),
        (GOOD | {"quaternion": dict.fromkeys("xyzw", 0)}, "no direction"),
        (GOOD | {"fov": 180}, "fov 180"),
        (GOOD | {"zoom": -1}, "zoom -1"),
        (GOOD | {"fov": "wide"}, "fov 'wide'"),
        (GOOD | {"zoom": [1]}, r"zoom \[1\]"),
        ([GOOD, None], "camera_info 1 is None, expected a dictionary"),
        ([[0, 1, 2]], r"camera_info 0 is \[0, 1, 2\]"),
    ],
)
def test_camera_info_errors(info, message):
    with pytest.raises(CameraError, match=message):
        conversions.from_camera_info(info, 8, 8)


def test_cameras_in_a_splat_s_frame_are_seen_as_in_the_hosts_viewer():
    """The viewer shows a point (x, y, z) of the file at (x, −y, −z), so a camera there stands there too."""
    placed = cameras.Orientation().into_splat_frame(cameras.orbit(30, 20, 2.0, 40, 8, 8), (0.5, 1.0, -2.0))
    (info,) = conversions.to_camera_info(placed)
    x, y, z = placed.centers[0].tolist()
    assert [info["position"][axis] for axis in "xyz"] == pytest.approx([x, -y, -z], abs=1e-6)
    again = cameras.Orientation().into_splat_frame(conversions.from_camera_info(info, 8, 8))
    torch.testing.assert_close(again.c2w, placed.c2w, atol=1e-6, rtol=0)


def test_a_model_is_not_shown_cameras_of_a_splat_s_frame():
    placed = cameras.Orientation().into_splat_frame(cameras.orbit(0, 0, 1.0, 40, 8, 8))
    with pytest.raises(CameraError, match="from_splat_frame"):
        conversions.to_mvdream(placed)


def test_fov_side_and_intrinsics_errors():
    cams = cameras.orbit(0, 0, 2, 40, 8, 8)
    with pytest.raises(CameraError, match="'vertical' or 'smaller'"):
        conversions.to_camera_info(cams, "diagonal")  # pyright: ignore[reportArgumentType]
    intrinsics = conversions.to_intrinsics(cams)
    intrinsics[:, 0, 2] += 1
    with pytest.raises(CameraError, match="principal point"):
        conversions.from_viewmats(conversions.to_viewmats(cams), intrinsics, 8, 8)
    with pytest.raises(CameraError, match=r"\(1, 3, 4\)"):
        conversions.from_viewmats(torch.zeros(1, 3, 4), intrinsics, 8, 8)


@given(st.floats(-360, 360), st.floats(-89, 89), st.floats(0.1, 50), st.floats(-360, 360))
def test_mvdream_vectors(azimuth, elevation, radius, front):
    near, far = (cameras.orbit(azimuth, elevation, r, 40, 8, 8) for r in (1.0, radius))
    vectors = conversions.to_mvdream(far)
    torch.testing.assert_close(vectors, conversions.to_mvdream(near), atol=1e-5, rtol=0)  # distance does not enter
    translation = vectors.view(4, 4)[:3, 3]
    assert float(translation.norm()) == pytest.approx(1, abs=1e-5)
    assert vectors[0, 12:].tolist() == [0, 0, 0, 1]
    there = conversions.to_mvdream(far, front_azimuth_deg=front)
    back = conversions.to_mvdream(cameras.turn(cameras.orbit(azimuth + front, elevation, 1.0, 40, 8, 8), 0))
    torch.testing.assert_close(there, back, atol=2e-5, rtol=0)


def test_conversions_are_differentiable():
    c2w = cameras.orbit(30, 20, 2, 40, 8, 8).c2w.requires_grad_()
    cams = Cameras(c2w, torch.tensor([40.0]), 8, 8)
    (conversions.to_viewmats(cams).sum() + conversions.to_mvdream(cams, 90).sum()).backward()
    assert c2w.grad is not None and c2w.grad[:, :3].abs().sum() > 0
