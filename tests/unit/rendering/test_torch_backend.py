import math

import pytest
import torch

from invert3d_core import cameras, rendering
from invert3d_core.rendering import projection, tiles, torch_backend
from invert3d_core.rendering.projection import Frame, Limits, Scene
from invert3d_core.rendering.rasterize import scene_of
from invert3d_core.splats import GaussianSplats
from tests.unit.rendering import brute_force
from tests.unit.rendering.scenes import built_of, cloud, one, rig, tensors_of, together


def flattened(g):
    return GaussianSplats(g.positions, g.scales * torch.tensor([1.0, 1.0, 0.0]), g.rotations, g.opacities, g.sh)


NAMES = ("color", "normal", "depth", "alpha", "depth_median")

SCENES = {
    "small splats": (cloud(80), rig()),
    "spherical harmonics": (cloud(60, degree=3), rig()),
    "spherical harmonics of degree 4": (cloud(60, degree=4), rig()),
    "opaque, many layers": (cloud(150, size=(0.2, 0.6), opacity=(0.7, 1.0)), rig()),
    "hardly visible": (cloud(60, opacity=(0.0, 0.02)), rig()),
    "needles": (cloud(60, size=(0.0003, 1.5)), rig()),
    "below a pixel": (cloud(80, size=(1e-5, 1e-3)), rig()),
    "larger than the picture": (cloud(20, size=(2.0, 40.0), opacity=(0.01, 0.3)), rig()),
    "camera inside": (cloud(100, spread=2.0), rig(radius=0.5, fov=100)),
    "odd sizes": (cloud(60), rig(width=37, height=21)),
    "one column": (cloud(60), rig(width=1, height=50)),
    "flat splats": (flattened(cloud(60)), rig()),
}


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("name", SCENES)
def test_it_draws_what_brute_force_draws(name, antialiased):
    g, cams = SCENES[name]
    expected = brute_force.draw(g, cams, g.degree, antialiased=antialiased)
    frame = Frame(cams.width, cams.height, g.degree, 0.2, Limits(), normals=True, antialiased=antialiased)
    drawn = torch_backend.composite(scene_of(g, cams), frame)
    stable = expected["stable"]
    assert stable.float().mean() > 0.95
    if name != "below a pixel" or not antialiased:  # which leaves nothing of them
        assert expected["alpha"].max() > 0.01, "the scene must show something"
    for key in NAMES:
        found = getattr(drawn, key).double()
        tolerance = 2e-5 * max(1.0, float(expected[key].abs().max()))
        assert float((found - expected[key])[stable].abs().max()) <= tolerance, key


@pytest.mark.parametrize("degree", range(5))
def test_the_degree_that_is_asked_for(degree):
    g, cams = cloud(60, degree=4), rig()
    expected = brute_force.draw(g, cams, degree)
    found = rendering.rasterize(g, cams, (0, 0, 0), sh_degree=degree).color.double()
    assert float((found - expected["color"])[expected["stable"]].abs().max()) <= 5e-5


def divide(monkeypatch, entries=200):
    """Bounds so small that everything comes in several parts."""
    for module, name, bound in (
        (tiles, "ENTRIES_AT_ONCE", {"cpu": entries, "other": entries}),
        (projection, "COMBINATIONS_AT_ONCE", {"cpu": 70, "other": 70}),
        (torch_backend, "ROWS_AT_ONCE", {"cpu": 150, "other": 150}),
        (torch_backend, "TILES_AT_ONCE", {"cpu": 3, "other": 3}),
        (torch_backend, "ROUND", 8),
    ):
        monkeypatch.setattr(module, name, bound)


@pytest.mark.parametrize("threads", [1, 3])
def test_memory_bounds_and_threads_do_not_change_the_picture(monkeypatch, threads):
    g, cams = cloud(100, size=(0.05, 0.5)), rig(3, 45, 37)
    leaves = [t.clone().requires_grad_() for t in tensors_of(g)]

    def draw():
        drawn = rendering.rasterize(built_of(leaves), cams, normals=True)
        loss = drawn.color.square().sum() + drawn.normals[..., 0].sum()
        return drawn, torch.autograd.grad(loss, leaves)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole, gradients = draw()
        divide(monkeypatch)
        torch.set_num_threads(threads)
        divided, again = draw()
    finally:
        torch.set_num_threads(before)
    for name in ("color", "alpha", "depth", "depth_median", "normals"):
        torch.testing.assert_close(getattr(divided, name), getattr(whole, name), atol=2e-6, rtol=1e-6)
    for first, second in zip(gradients, again, strict=True):
        torch.testing.assert_close(second, first, atol=1e-5 * float(first.abs().max()), rtol=1e-4)


def test_the_number_of_threads_does_not_change_a_bit(monkeypatch):
    g, cams = cloud(150, size=(0.05, 0.3)), rig(2, 40, 40)
    divide(monkeypatch, entries=400)
    leaves = [t.clone().requires_grad_() for t in tensors_of(g)]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            drawn = rendering.rasterize(built_of(leaves), cams)
            results.append([drawn.color, *torch.autograd.grad(drawn.color.square().sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(first, other) for first, other in zip(results[0], others, strict=True))


def test_works_in_inference_mode_with_threads(monkeypatch):
    g, cams = cloud(150, size=(0.05, 0.3)), rig(2, 40, 40)
    divide(monkeypatch, entries=400)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch.inference_mode():
            inside = rendering.rasterize(g, cams).color
        assert torch.equal(inside, rendering.rasterize(g, cams).color)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("m", "n", "p"), [(32, 3, 64), (5, 32, 64), (32, 64, 3), (3, 64, 3), (32, 5, 64), (2, 2, 2)])
def test_products_as_a_gpu_forms_them(m, n, p):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(7, m, n, generator=generator), torch.randn(7, n, p, generator=generator)
    torch.testing.assert_close(torch_backend._product_by_elements(a, b), a @ b)
    torch.testing.assert_close(torch_backend._product_by_elements(a, b[0]), a @ b[0])


def test_the_way_of_a_gpu_draws_the_same(monkeypatch):
    g, cams = SCENES["small splats"]

    def picture_and_gradients():
        leaves = [t.clone().requires_grad_() for t in tensors_of(g)]
        drawn = rendering.rasterize(built_of(leaves), cams)
        return drawn.color, torch.autograd.grad(drawn.color.square().sum() + drawn.depth.sum(), leaves)

    expected, gradients = picture_and_gradients()
    monkeypatch.setattr(torch_backend, "_product", torch_backend._product_by_elements)
    found, others = picture_and_gradients()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for other, gradient in zip(others, gradients, strict=True):
        torch.testing.assert_close(other, gradient, atol=1e-5 * float(gradient.abs().max()), rtol=1e-4)


def double_scene(count, seed):
    g, cams = cloud(count, seed, degree=1, size=(0.1, 0.4), opacity=(0.2, 0.9)), rig(2, 9, 7)
    tensors = [t.double() for t in scene_of(g, cams)]
    return [t.requires_grad_() for t in tensors], Frame(9, 7, 1, 0.2, Limits(alpha_min=0, transmittance_min=0))


@pytest.mark.parametrize("antialiased", [False, True])
def test_gradients_of_everything_by_finite_differences(antialiased):
    """Splats and cameras; without the thresholds, whose jumps have no derivative."""
    leaves, frame = double_scene(5, 3)
    frame = frame._replace(normals=True, antialiased=antialiased)

    def pictures(*tensors):
        drawn = torch_backend.composite(Scene(*tensors), frame)
        return drawn.color, drawn.depth, drawn.alpha, drawn.normal

    assert torch.autograd.gradcheck(pictures, leaves, fast_mode=True, atol=1e-6, rtol=1e-4)


def test_gradients_with_thresholds_by_finite_differences():
    """Away from its jumps the thresholded picture has the derivative that is given."""
    leaves, frame = double_scene(40, 4)
    frame = frame._replace(limits=Limits(alpha_min=0.05, transmittance_min=0.05))
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 7, 9, 3, generator=generator).double()

    def loss(tensors):
        return (torch_backend.composite(Scene(*tensors), frame).color * weight).sum()

    gradients = torch.autograd.grad(loss(leaves), leaves)
    directions = [torch.randn(leaf.shape, generator=generator).double() for leaf in leaves]
    step = 1e-9  # so small that no decision flips
    with torch.no_grad():
        ahead, behind = (loss([x + s * d for x, d in zip(leaves, directions, strict=True)]) for s in (step, -step))
    expected = sum(float((gradient * d).sum()) for gradient, d in zip(gradients, directions, strict=True))
    assert float(ahead - behind) / (2 * step) == pytest.approx(expected, rel=1e-4)


def test_only_the_gradients_that_are_asked_for():
    g, cams = cloud(20), rig()
    sh = g.sh.clone().requires_grad_()
    drawn = rendering.rasterize(GaussianSplats(g.positions, g.scales, g.rotations, g.opacities, sh), cams)
    drawn.color.sum().backward()
    assert sh.grad is not None and sh.grad.abs().sum() > 0
    assert not drawn.depth_median.requires_grad
    assert g.positions.grad is None


def test_same_call_same_bits():
    g, cams = cloud(200), rig()
    first, second = (rendering.rasterize(g, cams) for _ in range(2))
    assert torch.equal(first.color, second.color) and torch.equal(first.depth, second.depth)


def test_splats_without_an_area_have_finite_gradients_when_antialiased():
    g = cloud(30)
    edge_on = GaussianSplats(
        g.positions,
        torch.tensor([0.1, 0.0, 0.0]).expand(30, 3),  # lines: no area from anywhere
        g.rotations,
        g.opacities,
        g.sh,
    )
    together_with_others = together(edge_on, g)
    leaves = [t.clone().requires_grad_() for t in tensors_of(together_with_others)]
    drawn = rendering.rasterize(built_of(leaves), rig(), antialiased=True)
    gradients = torch.autograd.grad(drawn.color.sum(), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert torch.equal(drawn.color, rendering.rasterize(g, rig(), antialiased=True).color), "lines cover nothing"


def test_one_antialiased_splat_by_hand():
    g, cams = one(scale=0.05, opacity=0.8), cameras.orbit(0, 0, 4.0, 90, 33, 33)
    drawn = rendering.rasterize(g, cams, antialiased=True)
    variance = (16.5 / 4 * 0.05) ** 2  # px²; focal length 16.5 px, distance 4
    assert float(drawn.alpha[0, 16, 16]) == pytest.approx(0.8 * variance / (variance + 0.3), abs=1e-6)


def test_a_normal_by_hand():
    """A disc that faces up and towards the viewer, seen from the front, from behind and from the side."""
    half = math.radians(45) / 2
    disc = one()
    tilted = GaussianSplats(
        disc.positions,
        torch.tensor([[0.3, 0.3, 0.01]]),
        torch.tensor([[math.cos(half), -math.sin(half), 0, 0]]),  # z axis -> (0, 1, 1) / √2
        disc.opacities,
        disc.sh,
    )
    cams = cameras.orbit([0, 180, 90], 0, 4.0, 40, 9, 9)
    drawn = rendering.rasterize(tilted, cams, normals=True)
    found = drawn.normals[:, 4, 4]
    diagonal = 0.5**0.5
    expected = torch.tensor([[0, diagonal, diagonal], [0, -diagonal, diagonal]])
    torch.testing.assert_close(found[:2], expected, atol=1e-5, rtol=0)
    # From the side the disc is seen edge on: either face is as near.
    torch.testing.assert_close(found[2].abs(), torch.tensor([diagonal, diagonal, 0]), atol=1e-5, rtol=0)
    assert float((found.norm(dim=-1) - 1).abs().max()) < 1e-5
    assert torch.equal(drawn.normals[drawn.alpha == 0], torch.zeros(int((drawn.alpha == 0).sum()), 3))


def test_one_splat_by_hand():
    g, cams = one(scale=0.2, opacity=0.8, rgb=(1.0, 0.5, 0.0)), cameras.orbit(0, 0, 4.0, 90, 32, 32)
    drawn = rendering.rasterize(g, cams, background=(0, 0, 0))
    variance = (16 / 4 * 0.2) ** 2 + 0.3  # focal length 16 px, distance 4
    alpha = 0.8 * math.exp(-(0.5**2 + 2.5**2) / 2 / variance)  # pixel (16, 18) lies (0.5, 2.5) from the middle
    assert float(drawn.alpha[0, 18, 16]) == pytest.approx(alpha, abs=1e-6)
    assert drawn.color[0, 18, 16].tolist() == pytest.approx([alpha, alpha / 2, 0], abs=1e-6)
    assert float(drawn.depth[0, 18, 16]) == pytest.approx(4, abs=1e-5)
    radius = math.sqrt(2 * variance * math.log(0.8 * 255))  # where alpha falls to 1/255
    x, y = torch.meshgrid(torch.arange(32) - 15.5, torch.arange(32) - 15.5, indexing="xy")
    assert torch.equal(drawn.alpha[0] > 0, x.square() + y.square() <= radius**2)


def test_alpha_is_capped_and_depth_is_of_the_first_half():
    front, back = one((0, 0, 1), 3.0, 0.4, (1.0, 0, 0)), one((0, 0, -1), 3.0, 1.0, (0, 1.0, 0))
    cams = cameras.orbit(0, 0, 4.0, 5, 4, 4)
    drawn = rendering.rasterize(together(back, front), cams, background=(0, 0, 0))
    middle = (0, 2, 2)
    near, far = 0.4, 0.6 * 0.99
    assert float(drawn.alpha[middle]) == pytest.approx(near + far, abs=1e-3)
    assert drawn.color[middle].tolist() == pytest.approx([near, far, 0], abs=1e-3)
    assert float(drawn.depth[middle]) == pytest.approx((3 * near + 5 * far) / (near + far), abs=1e-3)
    assert float(drawn.depth_median[middle]) == pytest.approx(5)
    assert float(rendering.rasterize(front, cams).depth_median[middle]) == 0, "more than half of the light is left"
