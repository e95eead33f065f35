import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from invert3d_core import cameras, rendering
from invert3d_core.errors import RenderError
from invert3d_core.rendering import gsplat_backend
from invert3d_core.splats import GaussianSplats
from tests.unit.rendering.scenes import built_of, cloud, one, rig, tensors_of

G = cloud(120, degree=2)
ROOT = Path(__file__).resolve().parents[3]


def quaternion_product(a, b):
    w, x, y, z = a.unbind(-1)
    p, q, r, s = b.unbind(-1)
    return torch.stack(
        [
            w * p - x * q - y * r - z * s,
            w * q + x * p + y * s - z * r,
            w * r - x * s + y * p + z * q,
            w * s + x * r - y * q + z * p,
        ],
        -1,
    )


def turned(g, matrix, quaternion, center=(0, 0, 0)):
    """The splats after p -> matrix (p - center), for SH of degree 0."""
    return GaussianSplats(
        (g.positions - torch.tensor(center)) @ matrix.mT,
        g.scales,
        quaternion_product(quaternion.expand_as(g.rotations), g.rotations),
        g.opacities,
        g.sh,
    )


def a_turn():
    """A rotation as a matrix and as a quaternion."""
    w, x, y, z = quaternion = torch.nn.functional.normalize(torch.tensor([0.5, -0.3, 0.8, 0.1]), dim=0)
    matrix = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    return matrix, quaternion


def test_turning_splats_and_cameras_together_changes_nothing():
    g, cams = cloud(120), rig()
    matrix, quaternion = a_turn()
    moved = cams.moved(matrix.double())
    before, after = rendering.rasterize(g, cams), rendering.rasterize(turned(g, matrix, quaternion), moved)
    torch.testing.assert_close(after.color, before.color, atol=1e-4, rtol=0)
    torch.testing.assert_close(after.depth, before.depth, atol=1e-3, rtol=0)


HALF = 0.5**0.5


@pytest.mark.parametrize(
    ("up", "front", "quaternion"),  # of the rotation from the splat's frame to the asset's, by hand
    [
        ("-y", "-z", (0, 1, 0, 0)),
        ("+y", "+z", (1, 0, 0, 0)),
        ("+z", "-y", (HALF, -HALF, 0, 0)),
        ("+y", "+x", (HALF, 0, -HALF, 0)),
    ],
)
def test_moving_cameras_into_the_splat_frame_is_turning_the_splats(up, front, quaternion):
    g, cams, center = cloud(120), rig(), (0.2, -0.1, 0.3)
    orientation = cameras.Orientation(up, front)
    upright = turned(g, orientation.matrix().float().mT, torch.tensor(quaternion, dtype=torch.float32), center)
    expected = rendering.rasterize(upright, cams)
    found = rendering.rasterize(g, orientation.into_splat_frame(cams, center))
    torch.testing.assert_close(found.color, expected.color, atol=1e-4, rtol=0)


def test_the_order_of_splats_does_not_matter():
    order = torch.randperm(len(G.positions), generator=torch.Generator().manual_seed(0))
    shuffled = built_of(tensor[order] for tensor in tensors_of(G))
    torch.testing.assert_close(rendering.rasterize(shuffled, rig()).color, rendering.rasterize(G, rig()).color)


def test_a_batch_of_cameras_is_its_cameras():
    cams = rig(5)
    batch = rendering.rasterize(G, cams)
    for i, cam in enumerate(cams):
        torch.testing.assert_close(rendering.rasterize(G, cam).color[0], batch.color[i], atol=1e-6, rtol=0)


def test_shapes_and_types():
    cams = rig(3, 20, 12)
    drawn = rendering.rasterize(G, cams)
    assert drawn.color.shape == (3, 12, 20, 3)
    assert drawn.alpha.shape == drawn.depth.shape == drawn.depth_median.shape == (3, 12, 20)
    assert {t.dtype for t in (drawn.color, drawn.alpha, drawn.depth, drawn.depth_median)} == {torch.float32}
    assert float(drawn.alpha.min()) >= 0 and float(drawn.alpha.max()) <= 1
    assert drawn.depth_median is drawn.depth_median


def test_backgrounds_compose_as_alpha_over():
    cams = rig(2, 20, 12)
    generator = torch.Generator().manual_seed(0)
    black = rendering.rasterize(G, cams, background=(0, 0, 0))
    backgrounds = [
        (0.2, 0.4, 0.6),
        torch.tensor([0.2, 0.4, 0.6]),
        torch.rand(2, 3, generator=generator),
        torch.rand(12, 20, 3, generator=generator),
        torch.rand(1, 12, 20, 3, generator=generator),
        torch.rand(2, 12, 20, 3, generator=generator),
    ]
    for background in backgrounds:
        found = rendering.rasterize(G, cams, background)
        behind = torch.as_tensor(background)
        behind = behind[:, None, None] if behind.shape == (2, 3) else behind
        expected = black.color + (1 - black.alpha)[..., None] * behind
        torch.testing.assert_close(found.color, expected)
        assert torch.equal(found.alpha, black.alpha)
    assert torch.equal(rendering.rasterize(G, cams).color, rendering.rasterize(G, cams, (1, 1, 1)).color), "white"


def test_normals_are_drawn_when_asked_for():
    cams = rig(3, 20, 12)
    plain, drawn = rendering.rasterize(G, cams), rendering.rasterize(G, cams, normals=True)
    assert drawn.normals.shape == (3, 12, 20, 3)
    assert torch.equal(drawn.color, plain.color) and torch.equal(drawn.depth, plain.depth)
    seen = drawn.alpha > 0
    assert 0.1 < float(seen.float().mean()) < 1
    torch.testing.assert_close(drawn.normals[seen].norm(dim=-1), torch.ones(int(seen.sum())))
    assert float(drawn.normals[~seen].abs().max()) == 0
    with pytest.raises(RenderError, match="normals=True"):
        _ = plain.normals


def test_normals_turn_with_the_world():
    """They are seen from the camera: turning splats and cameras together changes nothing."""
    g, cams = cloud(120, size=(0.05, 0.2)), rig()
    matrix, quaternion = a_turn()
    before = rendering.rasterize(g, cams, normals=True)
    after = rendering.rasterize(turned(g, matrix, quaternion), cams.moved(matrix.double()), normals=True)
    sure = before.alpha > 0.05
    assert float((after.normals - before.normals)[sure].abs().quantile(0.99)) < 1e-3


def test_antialiasing_keeps_what_splats_below_a_pixel_cover():
    """Seen from twice as far, the picture is the average of four pixels; with the plain blur it grows."""
    g = cloud(400, size=(0.01, 0.03), opacity=(0.9, 1.0))
    near = cameras.orbit(0, 0, 6.0, 20, 128, 128)
    far = cameras.orbit(0, 0, 6.0, 20, 32, 32)
    errors = {}
    for antialiased in (False, True):
        fine, coarse = (rendering.rasterize(g, cams, antialiased=antialiased).alpha for cams in (near, far))
        average = torch.nn.functional.avg_pool2d(fine, 4)
        errors[antialiased] = float((coarse.mean() / average.mean()) - 1)
    assert errors[False] > 1.0 > 0.15 > abs(errors[True])


def test_renderings_one_by_one_are_those_of_the_batch():
    cams = rig(5, 20, 12)
    backgrounds = torch.rand(5, 12, 20, 3, generator=torch.Generator().manual_seed(0))
    colors = backgrounds[:, 0, 0]
    options = {"sh_degree": 1, "normals": True, "antialiased": True}
    for given, by_index in (
        (backgrounds, backgrounds),
        (colors, colors),
        (backgrounds[0], None),
        ((0.1, 0.2, 0.3), None),
        (colors.__getitem__, colors),
        (lambda index: backgrounds[index], backgrounds),
    ):
        whole = rendering.rasterize(G, cams, given if by_index is None else by_index, **options)
        parts = list(rendering.rasterize_each(G, cams, given, **options))
        assert len(parts) == 5
        for name in ("color", "alpha", "depth", "depth_median", "normals"):
            found = torch.cat([getattr(part, name) for part in parts])
            torch.testing.assert_close(found, getattr(whole, name), atol=2e-6, rtol=0)


def test_pictures_of_one_row_are_backgrounds_one_by_one():
    cams = rig(2, 5, 1)
    pictures = torch.rand(2, 1, 5, 3, generator=torch.Generator().manual_seed(0))
    parts = [part.color for part in rendering.rasterize_each(G, cams, pictures)]
    torch.testing.assert_close(torch.cat(parts), rendering.rasterize(G, cams, pictures).color)


def test_renderings_one_by_one_take_the_background_when_its_turn_comes():
    asked = []

    def background(index):
        asked.append(index)
        return (1.0, 0.0, 0.0)

    stream = rendering.rasterize_each(G, rig(3), background)
    assert asked == []
    for count in (1, 2, 3):
        next(stream)
        assert asked == list(range(count))
    assert next(stream, None) is None
    assert list(rendering.rasterize_each(G, rig(3)[:0])) == []


def test_each_camera_may_have_a_near_plane_of_its_own():
    cams, nears = rig(3), [0.2, 3.5, 1e3]
    parts = [part.alpha for part in rendering.rasterize_each(G, cams, near=nears)]
    for part, cam, near in zip(parts, cams, nears, strict=True):
        assert torch.equal(part, rendering.rasterize(G, cam, near=near).alpha)
    assert parts[0].any() and not parts[2].any()
    for wrong, match in (([0.2, 0.2], "2 distances for 3 cameras"), ([0.2, float("nan"), 0.2], "near is nan")):
        with pytest.raises(RenderError, match=match):
            rendering.rasterize_each(G, cams, near=wrong)


def test_renderings_one_by_one_have_gradients():
    cams = rig(3, 16, 16)
    leaf = G.opacities.clone().requires_grad_()
    g = GaussianSplats(G.positions, G.scales, G.rotations, leaf, G.sh)
    rendering.rasterize(g, cams).color.square().sum().backward()
    expected, leaf.grad = leaf.grad, None
    for drawn in rendering.rasterize_each(g, cams):
        drawn.color.square().sum().backward()
    assert expected is not None and leaf.grad is not None
    torch.testing.assert_close(leaf.grad, expected, atol=1e-5, rtol=1e-4)


def test_errors_come_before_the_first_picture():
    with pytest.raises(RenderError, match="sh_degree is 3"):
        rendering.rasterize_each(G, rig(), sh_degree=3)
    with pytest.raises(RenderError, match=r"background has shape \(2,\)"):
        rendering.rasterize_each(G, rig(), (1, 1))
    with pytest.raises(RenderError, match=r"background has shape \(2,\)"):
        next(rendering.rasterize_each(G, rig(), lambda index: (1, 1)))


MEASURE = """
import resource, sys, torch
from invert3d_core import cameras, rendering, splats

def peak():
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 2**20 if sys.platform == "darwin" else used / 2**10

count, size = 200_000, 256
generator = torch.Generator().manual_seed(0)
direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
g = splats.GaussianSplats(
    direction, torch.full((count, 3), 0.01), torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
    torch.full((count, 1), 0.5), torch.zeros(count, 16, 3))
cams = cameras.orbit(cameras.azimuths(6), 15, 3.5, 40, size, size)
next(rendering.rasterize_each(g, cams[:1]))  # what torch itself needs
before = peak()
pictures = sum(float(drawn.alpha.mean()) for drawn in rendering.rasterize_each(g, cams, normals=True))
print(pictures, peak() - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_memory_is_that_of_splats_and_one_picture():
    """A tenth of 2,000,000 splats at 1024²: within a tenth of 6 GB, and the further pictures need nothing."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, env=environment, check=True, cwd=ROOT
    )
    pictures, grown = map(float, run.stdout.split())
    assert pictures > 1
    assert grown < 200


def test_degree_0_is_the_first_coefficient():
    base = GaussianSplats(G.positions, G.scales, G.rotations, G.opacities, G.sh[:, :1])
    assert torch.equal(rendering.rasterize(G, rig(), sh_degree=0).color, rendering.rasterize(base, rig()).color)
    full = rendering.rasterize(G, rig()).color
    assert torch.equal(rendering.rasterize(G, rig(), sh_degree=2).color, full)
    assert float((rendering.rasterize(G, rig(), sh_degree=1).color - full).abs().max()) > 1e-2


def test_nothing_to_see_is_the_background():
    cams = rig(2, 8, 6)
    nothing = cloud(0)
    behind_cameras = one((0, 100, 0))
    too_near = rendering.rasterize(G, cams, background=(0.1, 0.2, 0.3), near=50)
    for drawn in (rendering.rasterize(g, cams, background=(0.1, 0.2, 0.3)) for g in (nothing, behind_cameras)):
        assert torch.equal(drawn.color, too_near.color)
        assert torch.equal(drawn.color, torch.tensor([0.1, 0.2, 0.3]).expand(2, 6, 8, 3))
        for picture in (drawn.alpha, drawn.depth, drawn.depth_median):
            assert torch.equal(picture, torch.zeros(2, 6, 8))
    assert rendering.rasterize(G, cams[:0]).color.shape == (0, 6, 8, 3)


def test_nothing_to_see_has_gradients_of_zero():
    g = one((0, 100, 0))
    leaf = g.positions.clone().requires_grad_()
    drawn = rendering.rasterize(GaussianSplats(leaf, g.scales, g.rotations, g.opacities, g.sh), rig())
    (drawn.color.sum() + drawn.depth.sum()).backward()
    assert leaf.grad is not None and torch.equal(leaf.grad, torch.zeros(1, 3))


def test_gradients_reach_cameras_and_background():
    c2w = rig().c2w.clone().requires_grad_()
    background = torch.full((3,), 0.5, requires_grad=True)
    cams = cameras.Cameras(c2w, torch.tensor(45.0), 16, 16)
    rendering.rasterize(G, cams, background).color.square().sum().backward()
    for gradient in (c2w.grad, background.grad):
        assert gradient is not None and gradient.isfinite().all() and gradient.abs().sum() > 0


def test_works_in_inference_mode_and_under_autocast():
    expected = rendering.rasterize(G, rig()).color
    with torch.inference_mode():
        assert torch.equal(rendering.rasterize(cloud(120, degree=2), rig()).color, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rendering.rasterize(G, rig()).color, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sh_degree": 3}, "sh_degree is 3.*degrees 0 to 2"),
        ({"sh_degree": -1}, "sh_degree is -1"),
        ({"near": 0}, "near is 0"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
        ({"backend": "gsplat"}, "gsplat backend cannot be used: it draws float32 splats on a CUDA device"),
        ({"background": (1, 1)}, r"background has shape \(2,\)"),
        ({"background": torch.zeros(5, 12, 20, 3)}, r"\(5, 12, 20, 3\).*\(2, 12, 20, 3\)"),
        ({"background": torch.zeros(2, 3, 12, 20)}, "resize"),
    ],
)
def test_errors_name_what_is_wrong(options, message):
    with pytest.raises(RenderError, match=message):
        rendering.rasterize(G, rig(2, 20, 12), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: tests/gpu covers it")
def test_a_gsplat_that_does_not_work_is_named_once_in_the_log(caplog):
    gsplat_backend._try.cache_clear()
    with caplog.at_level(logging.INFO, logger="invert3d"):
        reasons = [gsplat_backend.why_not(torch.device("cuda", 0)) for _ in range(3)]
    gsplat_backend._try.cache_clear()
    assert reasons[0] is not None and ("not installed" in reasons[0] or "test call failed" in reasons[0])
    assert len(set(reasons)) == 1
    assert [record.getMessage() for record in caplog.records] == [f"Drawing splats with torch: {reasons[0]}"]
