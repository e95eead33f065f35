import math

import pytest
import torch

from invert3d_core.lift3d.density import PlainDensity, screen_pull
from invert3d_core.lift3d.parameters import make_optimizers, splats_of, start
from invert3d_core.lift3d.views import posed_views
from invert3d_core.rendering import rasterize
from invert3d_core.splats import GaussianSplats
from tests.unit.lift3d.scenes import balls, rig, tiny, views
from tests.unit.rendering.scenes import one


def between():
    pass


def generator(step):
    return torch.Generator().manual_seed(step)


def started(config):
    cams = rig()
    taken = posed_views(*views(balls(), cams), cams)
    params = start(taken, seen(cams), config, generator(0))
    optimizers = make_optimizers(params, config)
    for name, value in params.items():  # moments to be carried along, all different
        value.grad = torch.arange(value.numel(), dtype=torch.float32).view(value.shape) * 1e-3 + 1
        optimizers[name].step()
    return params, optimizers


def seen(cams):
    from invert3d_core.lift3d.hull import seen_region

    return seen_region(cams)


def refine(config, pulls, step=4):
    """What one refinement makes of splats with these pulls: parameters and optimisers."""
    params, optimizers = started(config)
    density = PlainDensity(config, 1.0, 0.2, generator, between)
    density.stats = {"grad2d": pulls.clone(), "count": torch.ones(len(pulls))}
    density.changed(params, optimizers, step, 1e-3)
    return params, optimizers, density


def test_the_pull_on_the_screen_is_the_gradient_by_the_place_there():
    """Moving a picture by a pixel and moving the splat in space, both through the rasteriser itself."""
    cam = rig(1, 64, elevation=20.0, start=30.0)
    g = one((0.2, 0.1, -0.1), scale=0.08, opacity=0.9, rgb=(0.9, 0.2, 0.4))
    weights = torch.randn(1, 64, 64, 3, generator=generator(0))
    position = g.positions.clone().requires_grad_()
    moving = GaussianSplats(position, g.scales, g.rotations, g.opacities, g.sh)
    picture = rasterize(moving, cam).color
    (gradient,) = torch.autograd.grad((picture * weights).sum(), position)

    with torch.no_grad():
        slopes = []
        for axis in (2, 1):  # the picture's columns, then rows
            ahead, behind = (picture.roll(step, axis) for step in (1, -1))
            slopes.append(float(((ahead - behind) / 2 * weights).sum()) * 32)
    assert float(screen_pull(g.positions, gradient, cam)) == pytest.approx(math.hypot(*slopes), rel=0.05)


def test_only_faint_splats_go_when_nothing_pulls():
    config = tiny()
    params, _ = started(config)
    faint = params["opacities"].detach().sigmoid() < 0.02
    assert not faint.any()
    params, optimizers = started(config)
    with torch.no_grad():
        params["opacities"][:7] = -8
    density = PlainDensity(config, 1.0, 0.2, generator, between)
    density.stats = {"grad2d": torch.zeros(60), "count": torch.ones(60)}
    before = {name: value.detach().clone() for name, value in params.items()}
    moments = optimizers["means"].state[params["means"]]["exp_avg"].clone()
    density.changed(params, optimizers, 4, 1e-3)
    for name, value in params.items():
        assert torch.equal(value, before[name][7:]), name
        assert optimizers[name].param_groups[0]["params"] == [value]
    assert torch.equal(optimizers["means"].state[params["means"]]["exp_avg"], moments[7:])
    assert density.stats == {}


def test_small_splats_are_cloned_and_large_ones_split():
    pulls = torch.zeros(60)
    pulls[[3, 5]] = 1.0
    before, _ = started(tiny())
    cloned, optimizers, _ = refine(tiny(split_scale=100.0), pulls)
    assert len(cloned["means"]) == 62
    assert torch.equal(cloned["means"][60:], before["means"][[3, 5]])
    assert not optimizers["means"].state[cloned["means"]]["exp_avg"][60:].any()

    split, optimizers, _ = refine(tiny(split_scale=1e-6), pulls)
    assert len(split["means"]) == 62
    others = [i for i in range(60) if i not in (3, 5)]
    assert torch.equal(split["means"][:58], before["means"][others])
    halves = split["scales"][58:].exp() / before["scales"][[3, 5, 3, 5]].exp()
    torch.testing.assert_close(halves, torch.full((4, 3), 1 / 1.6))
    away = (split["means"][58:] - before["means"][[3, 5, 3, 5]]).norm(dim=-1)
    assert float(away.detach().min()) > 0 and float(away.detach().max()) < 5 * float(
        before["scales"].detach().exp().max()
    )
    assert torch.equal(split["sh0"][58:], before["sh0"][[3, 5, 3, 5]])


def test_at_the_limit_the_most_pulled_ones_grow():
    pulls = torch.linspace(1, 2, 60)
    before, _ = started(tiny())
    params, _, _ = refine(tiny(max_splats=64, split_scale=100.0), pulls)
    assert len(params["means"]) == 64
    assert torch.equal(params["means"][60:].sort(0).values, before["means"][56:].sort(0).values)
    assert len(refine(tiny(max_splats=60, split_scale=100.0), pulls)[0]["means"]) == 60


def test_nothing_changes_outside_the_steps_of_refinement():
    pulls = torch.ones(60)
    for step in (2, 3, 5, 12):
        params, _, density = refine(tiny(), pulls, step)
        assert len(params["means"]) == 60
        assert bool(density.stats) == (step <= 10)


def test_the_last_step_of_refinement_is_the_one_before_its_end():
    """As published: a reset at the very end would leave a splat that shows nothing."""
    config = tiny(refine_until=4, reset_every=4)
    params, _, _ = refine(config, torch.ones(60))
    assert len(params["means"]) == 60 and float(params["opacities"].detach().sigmoid().min()) > 0.2
    assert len(refine(tiny(refine_until=5), torch.ones(60))[0]["means"]) > 60


def test_opacities_are_reset():
    params, optimizers, _ = refine(tiny(reset_every=4, grow_gradient=10.0), torch.zeros(60))
    torch.testing.assert_close(params["opacities"].detach().sigmoid(), torch.full((60,), 0.04))
    state = optimizers["opacities"].state[params["opacities"]]
    assert not state["exp_avg"].any() and not state["exp_avg_sq"].any()
    assert optimizers["means"].state[params["means"]]["exp_avg"].any()


def test_pulls_are_those_of_each_view_alone():
    """A splat that the second of two views alone sees is counted once, with the pull that it has there."""
    config = tiny()
    params, optimizers = started(config)
    cams = rig(2)
    density = PlainDensity(config, 1.0, 0.2, generator, between)
    drawn = density.draw(params, cams, torch.ones(2, 3), 0)
    drawn.color[1].sum().div(2).backward()
    density.changed(params, optimizers, 1, 1e-3)
    found = density.stats["grad2d"]
    assert set(density.stats["count"].tolist()) <= {0.0, 1.0} and float(density.stats["count"].sum()) > 5

    alone = params["means"].detach().clone().requires_grad_()
    picture = rasterize(splats_of(params, alone), cams[1], near=0.2).color
    (gradient,) = torch.autograd.grad(picture.sum(), alone)
    torch.testing.assert_close(found, screen_pull(alone.detach(), gradient, cams[1]), atol=1e-4, rtol=1e-4)
