import torch

from invert3d_core import inversion
from invert3d_core.inversion.draws import draw_step, draw_validation, step_generator

SHAPE = (4, 2, 3, 3)


def draw(step=0, **changes):
    return draw_step(inversion.preset("recommended", **changes), step, [(0, 5), (-3, -1)], 2, SHAPE)


def same(a, b):
    return all(
        torch.equal(getattr(a, n), getattr(b, n)) for n in ("picks", "captions", "timesteps", "posterior", "noise")
    )


def test_draws_depend_on_seed_and_step_alone():
    state = torch.get_rng_state()
    assert same(draw(7), draw(7))
    assert not torch.equal(draw(7).noise, draw(8).noise)
    assert not torch.equal(draw(7).noise, draw(7, seed=1).noise)
    assert not torch.equal(draw(7).noise, draw(7).posterior)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_stream_is_a_shifted_copy_of_another():
    seeds = [(s, stream, k) for s in range(20) for stream in ("train", "validation") for k in range(20)]
    firsts = {torch.rand((), generator=step_generator(*key), dtype=torch.float64).item() for key in seeds}
    assert len(firsts) == len(seeds)


def test_ranges_are_inclusive_and_fully_used():
    draws = [draw(k, sets_per_step=8, min_timestep=10, max_timestep=13) for k in range(40)]
    picks = torch.cat([d.picks for d in draws])
    assert set(picks[:, 0].tolist()) == set(range(6))
    assert set(picks[:, 1].tolist()) == {-3, -2, -1}
    assert set(torch.cat([d.timesteps for d in draws]).flatten().tolist()) == {10, 11, 12, 13}
    assert set(torch.cat([d.captions for d in draws]).tolist()) == {0, 1}


def test_timesteps_are_shared_over_a_set_or_drawn_per_view():
    shared = draw(sets_per_step=50).timesteps
    assert shared.shape == (50, 4)
    assert bool((shared == shared[:, :1]).all())
    assert len(set(shared[:, 0].tolist())) > 40
    apart = draw(sets_per_step=50, shared_timestep=False).timesteps
    assert not bool((apart == apart[:, :1]).all(dim=1).any())


def test_validation_spreads_its_timesteps_over_the_range():
    config = inversion.preset("recommended", validation_sets=10, min_timestep=300, max_timestep=999)
    draws = draw_validation(config, [(0, 5)], 3, SHAPE)
    assert same(draws, draw_validation(config, [(0, 5)], 3, SHAPE))
    assert ((draws.timesteps[:, 0] - 300) // 70).tolist() == list(range(10))
    assert draws.captions.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert not torch.equal(draws.noise[0], draw_step(config, 0, [(0, 5)], 3, SHAPE).noise[0])
