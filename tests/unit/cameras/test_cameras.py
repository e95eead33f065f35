import itertools

import pytest
import torch

from invert3d_core import cameras
from invert3d_core.cameras import Cameras, Orientation
from invert3d_core.errors import CameraError


def rig(count=4, size=32):
    return cameras.orbit(cameras.azimuths(count, 10), 20, 2.0, 40, size, size)


def test_takes_numbers_and_keeps_dtype():
    c2w = torch.eye(4, dtype=torch.float64)[None].repeat(3, 1, 1)
    cams = Cameras(c2w, 40, 64, 48)  # pyright: ignore[reportArgumentType]
    assert cams.fov_y_deg.tolist() == [40, 40, 40]
    assert cams.fov_y_deg.dtype == cams.c2w.dtype == torch.float64
    assert cams.to(dtype=torch.float32).c2w.dtype == torch.float32
    assert (cams.resized(10, 20).width, cams.resized(10, 20).height) == (10, 20)
    for longer, expected in ((32, (32, 24)), (100, (100, 75)), (1, (1, 1))):
        assert (cams.scaled(longer).width, cams.scaled(longer).height) == expected
    assert cams.resized(48, 64).scaled(32).width == 24
    with pytest.raises(CameraError, match="longer side is 0, expected at least 1 pixel"):
        cams.scaled(0)


def test_indexing_is_that_of_a_batch():
    cams = rig(5)
    assert len(cams) == 5
    slices = ((slice(1, 4), [1, 2, 3]), ([3, 0], [3, 0]), ([], []))
    for index, expected in ((2, [2]), (-1, [4]), (torch.tensor(3), [3]), *slices):
        assert torch.equal(cams[index].c2w, cams.c2w[expected])
        assert torch.equal(cams[index].fov_y_deg, cams.fov_y_deg[expected])
    assert torch.equal(cams[cams.fov_y_deg > 90].c2w, cams.c2w[:0])
    assert [len(cam) for cam in cams] == [1] * 5
    with pytest.raises(IndexError, match="camera 5 of a batch of 5"):
        cams[5]


def test_concatenation_undoes_splitting():
    cams = rig(5)
    joined = cameras.concatenate([cams[:2], cams[2:].to(dtype=torch.float64)])
    assert torch.equal(joined.c2w, cams.c2w) and joined.c2w.dtype == torch.float32
    with pytest.raises(CameraError, match="no cameras"):
        cameras.concatenate([])
    with pytest.raises(CameraError, match=r"\(16, 16\), \(32, 32\)"):
        cameras.concatenate([cams, cams.resized(16, 16)])


def test_frame_says_where_cameras_stand():
    around = rig()
    placed = Orientation().into_splat_frame(around, (1.0, 2.0, 3.0))
    assert (around.frame, placed.frame) == ("asset", "splat")
    assert Orientation("+z", "-y").into_splat_frame(placed) is placed
    assert placed[1].frame == placed.resized(8, 8).frame == placed.to(dtype=torch.float64).frame == "splat"
    assert Orientation().from_splat_frame(placed).frame == "asset"
    assert cameras.concatenate([placed, placed]).frame == "splat"
    with pytest.raises(CameraError, match="Join cameras of one kind"):
        cameras.concatenate([around, placed])
    with pytest.raises(CameraError, match="frame is 'world'"):
        Cameras(around.c2w, around.fov_y_deg, 8, 8, "world")  # pyright: ignore[reportArgumentType]


def test_view_directions_and_centers():
    cams = rig()
    torch.testing.assert_close(cams.view_directions, -cams.centers / 2)


def wrong(change):
    c2w = torch.eye(4)[None].repeat(2, 1, 1)
    change(c2w)
    return c2w


def set_at(*index, value):
    return lambda c2w: c2w.__setitem__(index, value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.eye(4), 40, 8, 8), r"shape \(4, 4\).*c2w\[None\]"),
        ((torch.zeros(2, 3, 4), 40, 8, 8), r"\(2, 3, 4\)"),
        ((wrong(lambda c: None), [40, 50, 60], 8, 8), r"fov_y_deg has shape \(3,\)"),
        ((wrong(set_at(1, 0, 3, value=float("nan"))), 40, 8, 8), "camera 1 holds NaN"),
        ((wrong(lambda c: None), [40, 180], 8, 8), "camera 1 has fov_y_deg 180"),
        ((wrong(lambda c: None), 0, 8, 8), "camera 0 has fov_y_deg 0"),
        ((wrong(set_at(1, 0, 0, value=2.0)), 40, 8, 8), "camera 1 is not a rotation"),
        ((wrong(set_at(0, 0, 0, value=-1.0)), 40, 8, 8), "determinant -1"),
        ((wrong(set_at(0, 3, 0, value=0.5)), 40, 8, 8), "last row"),
        ((wrong(lambda c: None), 40, 0, 8), "width is 0"),
        ((wrong(lambda c: None), 40, 8, 8.5), "height is 8.5"),
    ],
)
def test_errors_name_what_is_wrong(arguments, message):
    with pytest.raises(CameraError, match=message):
        Cameras(*arguments)


AXES = ["+x", "-x", "+y", "-y", "+z", "-z"]
ORIENTATIONS = [(u, f) for u, f in itertools.product(AXES, AXES) if u[1] != f[1]]


@pytest.mark.parametrize(("up", "front"), ORIENTATIONS)
def test_orientation_is_a_rotation_that_puts_up_and_front_where_it_says(up, front):
    matrix = Orientation(up, front).matrix()
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3, dtype=torch.float64))
    assert float(torch.linalg.det(matrix)) == pytest.approx(1)
    for column, axis in ((1, up), (2, front)):
        expected = torch.zeros(3, dtype=torch.float64)
        expected["xyz".index(axis[1])] = 1.0 if axis[0] == "+" else -1.0
        assert torch.equal(matrix[:, column], expected)


def test_the_default_orientation_is_the_hosts_viewer():
    assert torch.equal(Orientation().matrix(), torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)))
    assert torch.equal(Orientation("y", "z").matrix(), torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize(("up", "front"), ORIENTATIONS[::5])
def test_splat_frame_and_back(up, front):
    cams, center, orientation = rig(), (0.5, -2.0, 3.0), Orientation(up, front)
    moved = orientation.into_splat_frame(cams, center)
    torch.testing.assert_close(orientation.from_splat_frame(moved, center).c2w, cams.c2w, atol=1e-6, rtol=0)
    # They look at the centre, from the same distance, with the file's up axis upwards.
    distance = (torch.tensor(center) - moved.centers).norm(dim=-1)
    torch.testing.assert_close(distance, torch.full((4,), 2.0))
    torch.testing.assert_close(moved.view_directions, (torch.tensor(center) - moved.centers) / 2, atol=1e-6, rtol=0)
    assert (moved.c2w[:, :3, 1] @ orientation.matrix().float()[:, 1] > 0.9).all()


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("up=+y front=+z", ("+y", "+z")),
        ('toy asset, up="+y", front="+z"', ("+y", "+z")),
        ("made by hand\nUP: -Z\nFront: x", ("-z", "+x")),
        ("up=+y", None),
        ("up=+y front=-y", None),
        ("update=+y frontier=+z", None),
        ("", None),
        (None, None),
    ],
)
def test_orientation_from_a_comment(comment, expected):
    found = Orientation.from_comment(comment)
    assert (found and (found.up, found.front)) == expected
    written = Orientation("-x", "+y").stated_in(comment or "")
    assert Orientation.from_comment(written) == Orientation("-x", "+y")
    assert Orientation("-x", "+y").stated_in(written) == written


def test_the_rest_of_a_comment_stays():
    written = Orientation("+z", "-y").stated_in('made by hand\nUP: -Z\nFront: x\nin 2024, up="+y", update=+y')
    assert written == 'made by hand\nin 2024, , update=+y\nup="+z" front="-y"'


def test_another_axis_where_one_is_named():
    stated = Orientation("+z", "-y")
    assert stated.with_axes() == stated
    assert stated.with_axes("auto", "+x") == Orientation("+z", "+x")
    assert stated.with_axes("-z") == Orientation("-z", "-y")
    with pytest.raises(CameraError, match="lie on one axis"):
        stated.with_axes(up="+y")


@pytest.mark.parametrize(
    ("up", "front", "message"), [("w", "+z", "up is 'w'"), ("+y", "up", "front is 'up'"), ("+y", "-y", "perpendicular")]
)
def test_orientation_errors(up, front, message):
    with pytest.raises(CameraError, match=message):
        Orientation(up, front)
