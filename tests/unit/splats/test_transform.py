"""Splats moved, turned and scaled: a camera that moves along sees the same picture."""

import pytest
import torch

from invert3d_core import cameras
from invert3d_core.cameras import Orientation
from invert3d_core.errors import CameraError
from invert3d_core.rendering import rasterize
from invert3d_core.splats.edit import from_angles, merge, normalize, select, transform
from tests.unit.rendering.scenes import built_of, cloud, one, tensors_of

TURN = from_angles(40, -70, 115)
SHIFT = torch.tensor([0.4, -1.2, 3.0])


def moved_along(cams, rotation, shift, scale):
    """The cameras after the same similarity: turned, and their positions scaled."""
    moved = cams.moved(rotation.double())
    c2w = moved.c2w.clone()
    c2w[:, :3, 3] = c2w[:, :3, 3] * scale + shift
    return cameras.Cameras(c2w, moved.fov_y_deg, moved.width, moved.height)


@pytest.mark.parametrize("degree", range(5))
def test_a_camera_that_moves_along_sees_the_same_picture(degree):
    g = cloud(150, degree=degree, seed=degree)
    cams = cameras.orbit([20, 200], [10, -35], 3, 45, 40, 32)
    scale = 1.7
    before = rasterize(g, cams)
    after = rasterize(transform(g, TURN, SHIFT, scale), moved_along(cams, TURN, SHIFT, scale))
    torch.testing.assert_close(after.color, before.color, rtol=0, atol=2e-4)
    torch.testing.assert_close(after.alpha, before.alpha, rtol=0, atol=2e-4)
    torch.testing.assert_close(after.depth, before.depth * scale, rtol=0, atol=2e-3)
    if degree:  # the picture does depend on the turn of the colours
        plain = transform(g, TURN, SHIFT, scale)
        unturned = built_of([*tensors_of(plain)[:4], g.sh])
        lazy = rasterize(unturned, moved_along(cams, TURN, SHIFT, scale))
        assert (lazy.color - before.color).abs().max() > 0.02


def assert_same(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found.positions, expected.positions, rtol=0, atol=tolerance)
    torch.testing.assert_close(found.covariances(), expected.covariances(), rtol=0, atol=tolerance)
    torch.testing.assert_close(found.opacities, expected.opacities)
    torch.testing.assert_close(found.sh, expected.sh, rtol=0, atol=tolerance)


def test_motions_compose_and_undo():
    g, other = cloud(60, degree=4), from_angles(-10, 25, 80)
    assert_same(transform(transform(g, TURN), other), transform(g, other @ TURN))
    there = transform(g, TURN, SHIFT, 2.5)
    back = transform(there, TURN.T, -(TURN.T.float() @ SHIFT) / 2.5, 1 / 2.5)
    assert_same(back, g)
    assert_same(transform(g), g, 0)


def test_center_stays_where_it_is():
    center = (0.3, 0.1, -0.2)
    moved = transform(one(center), TURN, scale=3.0, center=center)
    torch.testing.assert_close(moved.positions, torch.tensor([center]))
    torch.testing.assert_close(moved.scales, torch.full((1, 3), 0.3))
    shifted = transform(one(center), TURN, (1, 0, 0), 3.0, center)
    torch.testing.assert_close(shifted.positions, torch.tensor([[1.3, 0.1, -0.2]]))


def test_gradients_go_through_splats_and_motion():
    g = cloud(4, degree=1)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors_of(g)]
    shift, scale = SHIFT.clone().requires_grad_(), torch.tensor(1.5, requires_grad=True)
    rotation = TURN.clone().requires_grad_()
    moved = transform(built_of(leaves), rotation, shift, scale)
    different = [(tensor * torch.arange(1.0, tensor.numel() + 1).view_as(tensor)).sum() for tensor in tensors_of(moved)]
    torch.stack(different).sum().backward()
    for tensor in (*leaves, shift, scale, rotation):
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0


def test_none_is_moved_to_none():
    nothing = select(cloud(3, degree=1), torch.zeros(3, dtype=torch.bool))
    assert len(transform(nothing, TURN, SHIFT, 2.0)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.0}, "scale is 0, expected a positive number"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"rotation": 2 * TURN}, "not a rotation .*take scale and mirroring out of it first"),
        ({"rotation": torch.diag(torch.tensor([1.0, 1, -1]))}, r"determinant -1"),
        ({"rotation": torch.eye(4)}, r"has shape \(4, 4\), expected \(3,3\)"),
        ({"translation": (1.0, 2.0)}, r"translation \(1.0, 2.0\) and center .*expected three finite numbers each"),
        ({"center": (0.0, float("inf"), 0.0)}, "expected three finite numbers each"),
    ],
)
def test_impossible_motions(arguments, message):
    with pytest.raises(ValueError, match=f"transform: .*{message}"):
        transform(cloud(2), **arguments)


# --------------------------------------------------------------------------------------------------------- normalize


def figure(comment=""):
    """A standing thing in the frame of trained splats: y down, front −z; 2 high, the nose in front, and a floater."""
    body = cloud(1500, seed=3, degree=1, size=(0.004, 0.01), opacity=(0.5, 1.0), spread=1.0)
    stretched = built_of([body.positions * torch.tensor([0.4, 1.0, 0.4]), *tensors_of(body)[1:]])
    nose = select(merge([one((0.0, 0.3, -0.8), 0.02)] * 60), torch.arange(60))
    far = one((50.0, 3.0, -20.0), 0.01, opacity=0.3)
    g = transform(merge([stretched, nose, far]), translation=(7.0, 5.0, -3.0))
    return type(g)(*tensors_of(g), comment=comment)


def test_size_and_middle():
    g = normalize(figure(), radius=2.5)
    sphere = cameras.fit_sphere(g)
    assert sphere.radius == pytest.approx(2.5, rel=1e-3)
    assert sphere.center.norm() < 1e-2
    assert_same(normalize(g, radius=2.5), g, 2e-2)  # again changes nothing


@pytest.mark.parametrize("target", [None, Orientation("+y", "+z"), Orientation("+z", "-x")])
def test_stands_on_the_ground(target):
    g = normalize(figure(), radius=1.0, place="ground", target=target)
    axes = (target or Orientation()).matrix().float()
    standing = g.positions[:1500] @ axes  # right, up, front
    heights = standing[:, 1].sort().values
    assert abs(heights[1]) < 0.03 and heights[0] > -0.03
    assert heights[-1] == pytest.approx(2, abs=0.1)
    assert standing[:, [0, 2]].mean(0).abs().max() < 0.2


def test_up_and_front_are_turned_and_stated():
    g = normalize(figure('made by a scanner\nup="-y" front="-z" units: m'), target=Orientation("+y", "+z"))
    assert g.comment == 'made by a scanner\nunits: m\nup="+y" front="+z"'
    assert g.stated_axes == ("+y", "+z")
    nose = g.positions[1500:1560].mean(0)
    assert nose[2] > 0.4  # in front
    assert nose[1] < -0.1  # below the middle, as 0.3 along y was down
    # What a node that follows the comment draws is the same before and after.
    before = figure('up="-y" front="-z"')
    radius = cameras.fit_sphere(before).radius
    cams = cameras.orbit([30], 20, 3.5 * radius, 40, 48, 48)
    pictures = []
    for h in (before, normalize(before, radius=None, target=Orientation("+y", "+z"))):
        assert h.stated_axes is not None
        placed = Orientation(*h.stated_axes).into_splat_frame(cams, cameras.fit_sphere(h).center)
        pictures.append(rasterize(h, placed).color)
    torch.testing.assert_close(pictures[0], pictures[1], rtol=0, atol=1e-3)
    assert pictures[0].std() > 0.05


def test_what_lies_far_from_the_origin_keeps_its_digits():
    """As in maps: a thing of 1000 units, a million units away. Beside the origin float32 has digits to spare."""
    near = cloud(400, spread=1000)
    near = built_of([near.positions.round(), near.scales, *tensors_of(near)[2:]])
    far = built_of([near.positions + 1e6, *tensors_of(near)[1:]])
    for place in ("center", "ground"):
        found, expected = normalize(far, 1.0, place), normalize(near, 1.0, place)
        torch.testing.assert_close(found.positions, expected.positions, rtol=0, atol=2e-4)


def test_orientation_given_wins_over_the_comment():
    g = normalize(figure('up="+x" front="+z"'), orientation=Orientation("-y", "-z"), target=Orientation("+y", "+z"))
    assert g.positions[1500:1560].mean(0)[2] > 0.4


def test_kept_as_it_is():
    g = figure("a comment")
    same = normalize(g, radius=None, place="keep")
    assert_same(same, g, 0)
    assert same.comment == "a comment"
    doubled = normalize(g, radius=2 * cameras.fit_sphere(g).radius, place="keep")
    torch.testing.assert_close(doubled.positions, 2 * g.positions, rtol=1e-4, atol=1e-4)


def test_impossible_wishes():
    with pytest.raises(ValueError, match="radius is 0, expected a positive number or None"):
        normalize(figure(), radius=0)
    with pytest.raises(ValueError, match="place is 'top', expected 'center', 'ground' or 'keep'"):
        normalize(figure(), place="top")  # pyright: ignore[reportArgumentType]
    point = one(scale=0.0)
    with pytest.raises(ValueError, match="single point, which has no radius to change"):
        normalize(point)
    assert normalize(point, radius=None).positions.tolist() == [[0, 0, 0]]
    with pytest.raises(CameraError, match="no Gaussians"):
        normalize(select(figure(), torch.zeros(1561, dtype=torch.bool)))
