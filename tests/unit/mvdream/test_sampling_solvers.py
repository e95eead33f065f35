"""DPM-Solver++ and Euler next to DDIM."""

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from invert3d_core.cameras import orbit
from invert3d_core.errors import ModelError
from invert3d_core.mvdream import MVDream, sampling
from invert3d_core.mvdream.sampling import SAMPLERS, DdimStep, Schedule

ALPHAS = sampling.alphas_cumprod()
SOLVERS = [name for name in SAMPLERS if name != "ddim"]


def gaussian(x: Tensor, t: int) -> Tensor:
    """The exact noise prediction for data drawn from N(2, 0.5²)."""
    alpha = float(ALPHAS[t])
    return (1 - alpha) ** 0.5 * (x - alpha**0.5 * 2) / (alpha * 0.25 + 1 - alpha)


def exact_end(noise: Tensor) -> Tensor:
    """Where the probability flow leads from t = 999: quantiles stay quantiles."""
    alpha = float(ALPHAS[999])
    return 2 + 0.5 * (noise - alpha**0.5 * 2) / (alpha * 0.25 + 1 - alpha) ** 0.5


def test_timesteps_by_hand() -> None:
    assert sampling.solver_timesteps(4).tolist() == [999, 749, 499, 249]
    assert sampling.solver_timesteps(3).tolist() == [999, 666, 332]
    assert sampling.solver_timesteps(1000).tolist() == list(range(999, -1, -1))
    for steps in range(1, 1001):
        timesteps = sampling.solver_timesteps(steps)
        assert len(timesteps) == steps and timesteps[0] == 999 and timesteps[-1] >= 0
        assert steps == 1 or int(timesteps.diff().max()) < 0


@pytest.mark.parametrize("steps", [0, 1001])
@pytest.mark.parametrize("sampler", SOLVERS)
def test_step_counts_out_of_range(sampler: str, steps: int) -> None:
    with pytest.raises(ModelError, match=f"{steps} sampling steps .* 1 to 1000"):
        sampling.solve(sampler, lambda x, t: x, torch.zeros(1, 2), steps)


@pytest.mark.parametrize("steps", [1, 2, 20, 1000])
@pytest.mark.parametrize("sampler", SOLVERS)
def test_the_true_noise_leads_to_the_clean_latents(sampler: str, steps: int, draw: Any) -> None:
    """Law: predictions that all point at one clean tensor lead there, whatever the steps, and to no noise at all."""
    clean, noise = draw(2, 3), draw(2, 3)
    alphas = ALPHAS.tolist()
    seen: list[DdimStep] = []

    def predict(x: Tensor, t: int) -> Tensor:
        return (x - alphas[t] ** 0.5 * clean) / (1 - alphas[t]) ** 0.5

    out = sampling.solve(sampler, predict, sampling.add_noise(clean, noise, 999, ALPHAS), steps, seen.append)
    torch.testing.assert_close(out, clean, atol=2e-3, rtol=0)
    assert [(step.index, step.total) for step in seen] == [(i, steps) for i in range(1, steps + 1)]
    assert [step.timestep for step in seen] == sampling.solver_timesteps(steps).tolist()
    for step in seen:
        torch.testing.assert_close(step.clean, clean, atol=2e-3, rtol=0)
    assert torch.equal(seen[-1].latents, out)


def test_the_flow_of_a_gaussian_ends_where_it_should(draw: Any) -> None:
    """Noise of unit variance through a known probability flow: errors fall with the steps, the second order's are less.

    They halve and no more, since both take the last step, to no noise at all, by the first order.
    """
    noise = draw(2000).double()
    errors = {
        sampler: [
            float((sampling.solve(sampler, gaussian, noise, n) - exact_end(noise)).abs().mean()) for n in (10, 20, 40)
        ]
        for sampler in SOLVERS
    }
    for found in errors.values():
        assert found[0] > 1.6 * found[1] > 1.6**2 * found[2]
        assert found[2] < 0.04
    for second, first in zip(errors["dpmpp_2m"][1:], errors["euler"][1:], strict=True):
        assert second < 0.7 * first


@pytest.mark.parametrize("steps", [3, 25])
def test_euler_takes_ddims_path(steps: int, draw: Any) -> None:
    """Euler's step in the coordinates of the noise level is DDIM's, taken at Euler's timesteps."""
    alphas = [*ALPHAS[sampling.solver_timesteps(steps)].tolist(), 1.0]
    x = start = draw(50)
    for i, timestep in enumerate(sampling.solver_timesteps(steps).tolist()):
        noise = gaussian(x, timestep)
        clean = (x - (1 - alphas[i]) ** 0.5 * noise) / alphas[i] ** 0.5
        x = alphas[i + 1] ** 0.5 * clean + (1 - alphas[i + 1]) ** 0.5 * noise
    torch.testing.assert_close(sampling.solve("euler", gaussian, start, steps), x, atol=2e-5, rtol=1e-5)


class Velocity:
    """A model that predicts velocities, seen through `MVDream`'s promise to give noise."""

    def __init__(self) -> None:
        self.schedule = Schedule(ALPHAS, "v_prediction")

    def raw(self, x: Tensor, t: int) -> Tensor:
        return torch.tanh(x + 0.3) - 0.001 * t

    def predict_noise(self, latents: Tensor, timesteps: Tensor, *_: Any) -> Tensor:
        return sampling.noise_from_velocity(self.raw(latents, int(timesteps[0])), latents, timesteps, ALPHAS)


@pytest.mark.parametrize("sampler", SOLVERS)
def test_a_velocity_model_runs_as_under_diffusers_own_v_prediction(sampler: str, draw: Any) -> None:
    kinds: dict[str, Any] = {
        "euler": diffusers.EulerDiscreteScheduler,
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    }
    scheduler = kinds[sampler](
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="leading",
    )
    scheduler.set_timesteps(timesteps=sampling.solver_timesteps(12).tolist())
    model, start = Velocity(), draw(2, 4, 3, 3)
    x = start * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(model.raw(scheduler.scale_model_input(x, t), int(t)), t, x).prev_sample
    found = sampling.sample_latents(model, start, draw(1, 5, 6), None, None, 1, 12, 1.0, sampler=sampler)
    torch.testing.assert_close(found, x, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("sampler", SOLVERS)
def test_a_model_samples_by_it_with_guidance_and_equal_bits(sampler: str, model: MVDream) -> None:
    cams = orbit([0.0, 90.0, 180.0, 270.0], 15.0, 2.0, 40.0, 16, 16)
    before = torch.random.get_rng_state()
    seen: list[tuple[int, int]] = []

    def run(name: str, **options: Any) -> Tensor:
        return model.sample("a red cup", cams, steps=6, sampler=name, guidance_rescale=0.5, **options)

    first = run(sampler, progress=lambda step, total, **_: seen.append((step, total)))
    assert torch.equal(first, run(sampler)) and first.dtype == torch.float32
    assert seen == [(i, 6) for i in range(1, 7)]
    assert not torch.equal(first, run("ddim"))
    assert torch.equal(run("ddim"), model.sample("a red cup", cams, steps=6, guidance_rescale=0.5))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sampler", SOLVERS)
def test_latents_keep_their_dtype(sampler: str, dtype: torch.dtype, draw: Any) -> None:
    seen: list[torch.dtype] = []

    def predict(x: Tensor, t: int) -> Tensor:
        seen.append(x.dtype)
        return gaussian(x, t)

    out = sampling.solve(sampler, predict, draw(2, 3).to(dtype), 5)
    assert {out.dtype, *seen} == {dtype}


def test_what_cannot_be_asked_for(model: MVDream) -> None:
    with pytest.raises(ModelError, match=r"no sampler 'heun'. Expected one of ddim, dpmpp_2m, euler"):
        model.sample("a cup", None, steps=2, sampler="heun")
    with pytest.raises(ModelError, match=r"no sampler 'ddim'|no sampler 'heun'"):
        sampling.solve("heun", gaussian, torch.zeros(2), 3)
    with pytest.raises(ModelError, match="eta is 0.5, which only the sampler ddim knows"):
        model.sample("a cup", None, steps=2, sampler="euler", eta=0.5)
