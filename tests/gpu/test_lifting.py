"""On a real GPU: fits with gsplat's own strategies, and that they can be left and taken up."""

import pytest
import torch

from invert3d_core import lift3d, metrics
from invert3d_core.cameras import Cameras, concatenate
from invert3d_core.errors import TrainingError
from invert3d_core.lift3d import checkpoint
from invert3d_core.lift3d.gsplat_density import GsplatDensity
from invert3d_core.lift3d.hull import seen_region
from invert3d_core.lift3d.parameters import make_optimizers, start
from invert3d_core.lift3d.views import posed_views
from invert3d_core.progress import Cancelled
from invert3d_core.rendering import gsplat_backend
from tests.unit.lift3d.scenes import balls, rig, views

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

CHANGES = {
    "splats": 250,
    "max_splats": 500,
    "steps": 200,
    "refine_from": 20,
    "refine_until": 150,
    "refine_every": 20,
    "sh_degree": 1,
    "sh_every": 50,
}

LEAST_PSNR = {"fixed": 25, "adaptive": 40, "mcmc": 24}  # mcmc's noise is not over after so few steps


@pytest.fixture(scope="module")
def gsplat_works():
    reason = gsplat_backend.why_not(torch.device("cuda"))
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def seen():
    cams = concatenate([rig(6, 64, elevation) for elevation in (-20.0, 30.0)])
    images, masks = views(balls(), cams)
    return images.to("cuda"), masks.to("cuda"), cams


def held_out_psnr(result):
    held = rig(3, 64, elevation=10.0, start=20.0)
    truth = views(balls(), held)[0]
    return float(metrics.psnr(views(result.splats.to("cpu"), held)[0][None], truth[None]))


@pytest.mark.parametrize("density", ["fixed", "adaptive", "mcmc"])
def test_each_density_finds_a_known_splat_again(seen, gsplat_works, density):
    images, masks, cams = seen
    config = lift3d.preset("mcmc" if density == "mcmc" else "recommended", **CHANGES, density=density)
    before = torch.get_rng_state(), torch.cuda.get_rng_state()
    result = lift3d.fit_splats(images, masks, cams, config)
    assert result.splats.device.type == "cuda" and result.splats.degree == 1
    assert held_out_psnr(result) > LEAST_PSNR[density]
    count = len(result.splats)
    if density == "fixed":
        assert count == 250
    else:
        assert 250 < count <= 500
    after = torch.get_rng_state(), torch.cuda.get_rng_state()
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True)), "global generators are left alone"


def stepped(seen, config, unit=1.0, step=20, faint=0):
    """The splats of a start, in a unit, before and after what gsplat's strategies do in one step that moves nothing."""
    images, masks, cams = seen
    c2w = cams.c2w.clone()
    c2w[:, :3, 3] *= unit
    taken = posed_views(images, masks, Cameras(c2w, cams.fov_y_deg, cams.width, cams.height))
    region = seen_region(taken.cameras)
    params = start(taken, region, config, torch.Generator().manual_seed(0))
    optimizers = make_optimizers(params, config)
    with torch.no_grad():
        params["opacities"][:faint] = -8
    density = GsplatDensity(config, region.radius, 0.2, lambda step: torch.Generator().manual_seed(step))
    drawn = density.draw(params, taken.cameras[[0, 1]], torch.ones(2, 3, device="cuda"), 0)
    (drawn.color.square().sum() + sum(value.sum() * 0 for value in params.values())).backward()
    for optimizer in optimizers.values():
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
    before = {name: value.detach().clone() for name, value in params.items()}
    density.changed(params, optimizers, step, config.position_rate * region.radius)
    return before, params, optimizers


def test_opacities_are_reset(seen, gsplat_works):
    changes = CHANGES | {"refine_from": 100, "reset_every": 20}
    before, params, optimizers = stepped(seen, lift3d.preset("recommended", **changes))
    highest = 2 * lift3d.FitConfig.prune_opacity
    assert float(before["opacities"].sigmoid().min()) > highest
    torch.testing.assert_close(params["opacities"].detach().sigmoid(), torch.full((250,), highest, device="cuda"))
    assert not optimizers["opacities"].state[params["opacities"]]["exp_avg"].any()


def test_there_are_never_more_splats_than_there_may_be(seen, gsplat_works):
    """The first step that refines is the first of all, so that no earlier pulls say how many will grow."""
    changes = CHANGES | {"refine_from": 0, "max_splats": 260, "grow_gradient": 1e-9}
    before, params, optimizers = stepped(seen, lift3d.preset("recommended", **changes))
    assert len(before["means"]) == 250
    assert {len(value) for value in params.values()} == {260}
    for name, value in params.items():
        assert optimizers[name].state[value]["exp_avg"].shape == value.shape


def test_how_far_splats_wander_does_not_depend_on_the_unit(seen, gsplat_works):
    config = lift3d.preset("mcmc", **CHANGES | {"refine_from": 100})
    moves = []
    for unit in (1.0, 64.0):  # a power of two rounds nothing
        before, params, _ = stepped(seen, config, unit, faint=50)
        moves.append((params["means"].detach() - before["means"])[:50] / unit)
    assert float(moves[0].norm(dim=-1).max()) > 1e-5
    torch.testing.assert_close(moves[1], moves[0], atol=1e-6, rtol=1e-2)


@pytest.mark.parametrize("density", ["adaptive", "mcmc"])
def test_a_cancelled_fit_goes_on(seen, gsplat_works, tmp_path, density):
    """Its atomics add up in any order on a GPU: as good, not bit for bit the same."""
    images, masks, cams = seen
    config = lift3d.preset("mcmc" if density == "mcmc" else "recommended", **CHANGES, density=density)
    path = tmp_path / "fit.safetensors"

    def cancel(step, total, *, metrics=None, preview=None):
        if metrics is not None and step == 70:
            raise Cancelled

    with pytest.raises(Cancelled):
        lift3d.fit_splats(images, masks, cams, config, checkpoint=path, progress=cancel)
    assert checkpoint.peek(path) == (70, False)
    result = lift3d.fit_splats(images, masks, cams, config, checkpoint=path)
    assert len(result.losses) == 200 and checkpoint.peek(path) == (200, True)
    assert held_out_psnr(result) > LEAST_PSNR[density]


def test_without_gsplat_the_plain_version_works_on_the_gpu(seen, monkeypatch):
    images, masks, cams = seen
    monkeypatch.setattr(gsplat_backend, "why_not", lambda device: "it is switched off for a test")
    config = lift3d.preset("recommended", **CHANGES | {"steps": 60})
    result = lift3d.fit_splats(images, masks, cams, config)
    assert 250 < len(result.splats) <= 500 and result.losses[-1] < 0.5 * result.losses[0]
    with pytest.raises(TrainingError, match="switched off for a test"):
        lift3d.fit_splats(images, masks, cams, lift3d.preset("mcmc", **CHANGES))


def test_views_are_judged_on_the_gpu_as_on_the_cpu(seen):
    images, _, cams = seen
    few = [0, 1, 3, 4]
    there = lift3d.view_consistency(images[few], cams[few])
    here = lift3d.view_consistency(images[few].cpu(), cams[few])
    assert there == pytest.approx(here, abs=1.0)
