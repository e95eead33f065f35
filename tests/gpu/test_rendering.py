"""On a real GPU: the torch backend equals itself on the CPU, gsplat equals the torch backend."""

import pytest
import torch

from invert3d_core import rendering
from invert3d_core.cameras import Cameras
from invert3d_core.rendering import gsplat_backend, torch_backend
from invert3d_core.rendering.projection import Frame, Limits
from invert3d_core.rendering.rasterize import scene_of
from tests.unit.rendering.scenes import built_of, cloud, rig, tensors_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

GSPLAT_CAP = Limits(alpha_max=0.999)  # of release 1.5.3; newer ones cap at 0.99 as we do
CHANNELS = ("color", "depth", "alpha", "normal")


@pytest.fixture(scope="module")
def gsplat_cap():
    """Skip where gsplat does not work; else the limits under which the installed one must agree with torch."""
    reason = gsplat_backend.why_not(torch.device("cuda"))
    if reason:
        pytest.skip(reason)
    g = cloud(1, opacity=(1.0, 1.0), size=(2.0, 2.0), spread=0.0).to("cuda")
    cam = rig(1, 16, 16)
    _, alpha, _, _ = gsplat_backend.draw(scene_of(g, cam), Frame(16, 16, 0, 0.2, Limits()))
    return GSPLAT_CAP if float(alpha.max()) > 0.995 else Limits()


SCENES = {
    "small splats": (cloud(500), rig(3, 64, 48)),
    "spherical harmonics": (cloud(300, degree=3), rig(3, 64, 48)),
    "degree 4": (cloud(300, degree=4), rig(3, 64, 48)),
    "many layers": (cloud(2000, size=(0.05, 0.3)), rig(2, 64, 64)),
    "odd sizes": (cloud(300), rig(2, 37, 21)),
    "below a pixel": (cloud(500, size=(1e-5, 1e-3)), rig(2, 64, 64)),
    "larger than the picture": (cloud(20, size=(2.0, 10.0), opacity=(0.01, 0.3)), rig(2, 64, 64)),
}


def frame_of(g, cams, limits=Limits(), **options):  # noqa: B008
    return Frame(cams.width, cams.height, g.degree, 0.2, limits, **options)


def composited(g, cams, limits=Limits(), **options):  # noqa: B008
    return torch_backend.composite(scene_of(g, cams), frame_of(g, cams, limits, **options))


def away_from_rims(g, cams, limits, **options):
    """Where no threshold's decision hangs on rounding (C,H,W): a little more and a little less draw the same."""
    alphas = []
    for share in (1e-3, -1e-3):
        near_by = limits._replace(
            alpha_min=limits.alpha_min * (1 + share), transmittance_min=limits.transmittance_min * (1 + 10 * share)
        )
        alphas.append(composited(g, cams, near_by, **options).alpha)
    sure = (alphas[0] - alphas[1]).abs() < 1e-6
    assert float(sure.float().mean()) > 0.85, "the comparison must be of nearly all"
    return sure


def assert_agree(found, expected, sure, tolerance):
    """Within the tolerance where it is sure what to draw; elsewhere within two skipped splats."""
    error = (found - expected).abs()
    if error.ndim == 4:
        error = error.amax(-1)
    scale = max(1.0, float(expected.abs().max()))
    assert float(error[sure].max()) <= tolerance * scale
    assert float(error.max()) <= 2 / 255 * scale


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("name", SCENES)
def test_torch_on_the_gpu_is_torch_on_the_cpu(name, antialiased):
    g, cams = SCENES[name]
    options = {"normals": True, "antialiased": antialiased}
    here, there = composited(g, cams, **options), composited(g.to("cuda"), cams, **options)
    sure = away_from_rims(g, cams, Limits(), **options)
    for channel in CHANNELS:
        assert_agree(getattr(there, channel).cpu(), getattr(here, channel), sure, 1e-4)


def test_gradients_on_the_gpu_are_those_on_the_cpu():
    g, cams = cloud(300, degree=3), rig(2, 48, 48)
    found = []
    for device in ("cpu", "cuda"):
        leaves = [tensor.to(device).requires_grad_() for tensor in tensors_of(g)]
        drawn = rendering.rasterize(built_of(leaves), cams, backend="torch", normals=True)
        loss = drawn.color.square().sum() + drawn.depth.sum() + drawn.normals[..., 0].sum()
        found.append([gradient.cpu() for gradient in torch.autograd.grad(loss, leaves)])
    for first, second in zip(*found, strict=True):
        assert float(torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0)) > 0.9999
        assert float(first.norm() / second.norm()) == pytest.approx(1, abs=1e-3)


def test_tf32_and_autocast_do_not_blunt_it():
    g, cams = SCENES["spherical harmonics"]
    exact = composited(g.to("cuda"), cams).color
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            blunt = composited(g.to("cuda"), cams).color
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(blunt, exact, atol=1e-6, rtol=0)


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("name", SCENES)
def test_gsplat_draws_what_torch_draws(name, antialiased, gsplat_cap, record_property):
    g, cams = SCENES[name]
    g = g.to("cuda")
    options = {"normals": True, "antialiased": antialiased}
    expected = composited(g, cams, gsplat_cap, **options)
    color, alpha, depth, normal = gsplat_backend.draw(scene_of(g, cams), frame_of(g, cams, **options))
    sure = away_from_rims(g, cams, gsplat_cap, **options)
    error = (color - expected.color).abs().amax(-1)
    record_property("largest_difference_away_from_rims", float(error[sure].max()))
    record_property("largest_difference", float(error.max()))
    record_property("share_of_rims", float(1 - sure.float().mean()))
    for found, channel in ((color, "color"), (alpha, "alpha"), (depth * alpha, "depth"), (normal, "normal")):
        assert_agree(found, getattr(expected, channel), sure, 2e-3)


def gradients(g, cams, draw):
    leaves = [tensor.to("cuda").requires_grad_() for tensor in tensors_of(g)]
    drawn = draw(scene_of(built_of(leaves), cams), frame_of(g, cams, normals=True))
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(t.shape, generator=generator).to(t) for t in drawn]
    loss = sum((w * t).sum() for w, t in zip(weights, drawn, strict=True))
    assert isinstance(loss, torch.Tensor)
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("name", ["small splats", "spherical harmonics", "many layers"])
def test_gsplat_has_the_gradients_of_torch(name, gsplat_cap):
    g, cams = SCENES[name]

    def by_torch(scene, frame):
        drawn = torch_backend.composite(scene, frame._replace(limits=gsplat_cap))
        seen = drawn.alpha > 0
        depth = torch.where(seen, drawn.depth / torch.where(seen, drawn.alpha, 1), 0)
        return drawn.color, drawn.alpha, depth, drawn.normal

    for first, second in zip(gradients(g, cams, gsplat_backend.draw), gradients(g, cams, by_torch), strict=True):
        cosine = torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0)
        assert float(cosine) > 0.999
        assert float(first.norm() / second.norm()) == pytest.approx(1, abs=0.01)


def test_the_public_call_chooses_gsplat_and_agrees(gsplat_cap):
    g, cams = SCENES["many layers"]
    g = g.to("cuda")
    automatic, named, plain = (
        rendering.rasterize(g, cams, backend=name, normals=True) for name in ("auto", "gsplat", "torch")
    )
    assert torch.equal(automatic.color, named.color)
    bound = 0.016 if gsplat_cap == GSPLAT_CAP else 1e-3
    assert float((automatic.color - plain.color).abs().max()) <= bound
    assert torch.equal(automatic.depth_median, plain.depth_median)
    torch.testing.assert_close(automatic.normals.norm(dim=-1), (automatic.alpha > 0).float())
    solid = (plain.alpha > 0.5) & (automatic.alpha > 0.5)
    cosine = (automatic.normals * plain.normals).sum(-1)[solid]
    assert float(cosine.quantile(0.02)) > 0.99
    for index, one in enumerate(rendering.rasterize_each(g, cams, normals=True)):
        torch.testing.assert_close(one.color[0], automatic.color[index], atol=1e-5, rtol=0)


def test_cameras_may_be_anywhere_and_gradients_reach_them(gsplat_cap):
    g, cams = SCENES["small splats"]
    g = g.to("cuda")
    for place in ("cpu", "cuda"):
        moved = cams.to(place)
        c2w = moved.c2w.clone().requires_grad_()
        drawn = rendering.rasterize(g, Cameras(c2w, moved.fov_y_deg, cams.width, cams.height))
        drawn.color.square().sum().backward()
        assert drawn.color.device.type == "cuda"
        assert c2w.grad is not None and c2w.grad.device.type == place and float(c2w.grad.abs().sum()) > 0


def test_works_in_inference_mode(gsplat_cap):
    g, cams = SCENES["small splats"]
    with torch.inference_mode():
        inside = rendering.rasterize(g.to("cuda"), cams)
        assert inside.depth_median.shape == inside.depth.shape
    assert torch.equal(inside.color, rendering.rasterize(g.to("cuda"), cams).color)


def test_nothing_in_sight(gsplat_cap):
    g = cloud(50)
    away = built_of([g.positions + torch.tensor([0.0, 100.0, 0.0]), *tensors_of(g)[1:]]).to("cuda")
    drawn = rendering.rasterize(away, rig(2, 8, 8), background=(0.1, 0.2, 0.3), backend="gsplat")
    assert float(drawn.alpha.max()) == float(drawn.depth.max()) == float(drawn.depth_median.max()) == 0
    torch.testing.assert_close(drawn.color.cpu(), torch.tensor([0.1, 0.2, 0.3]).expand(2, 8, 8, 3))


def test_no_splats_on_the_gpu():
    drawn = rendering.rasterize(cloud(0).to("cuda"), rig(2, 8, 8))
    assert drawn.color.device.type == "cuda" and float(drawn.color.min()) == 1
