from typing import Any

import pytest
import torch
from torch import Tensor

from invert3d_core.errors import ModelError
from invert3d_core.mvdream import sampling
from invert3d_core.mvdream.sampling import DdimStep

ALPHAS = sampling.alphas_cumprod()


def test_noise_and_velocity_are_two_ways_to_say_the_same(draw: Any) -> None:
    clean, noise, t = draw(3, 4, 2, 2).double(), draw(3, 4, 2, 2).double(), torch.tensor([1, 500, 999])
    noisy = sampling.add_noise(clean, noise, t, ALPHAS)
    velocity = sampling.velocity(clean, noise, t, ALPHAS)
    torch.testing.assert_close(sampling.noise_from_velocity(velocity, noisy, t, ALPHAS), noise)
    a = ALPHAS[t].reshape(3, 1, 1, 1)
    torch.testing.assert_close(a.sqrt() * noisy - (1 - a).sqrt() * velocity, clean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_noising_keeps_the_dtype(dtype: torch.dtype, draw: Any) -> None:
    clean, noise = draw(2, 3, 4).to(dtype), draw(2, 3, 4).to(dtype)
    out = sampling.add_noise(clean, noise, torch.tensor([10, 900]), ALPHAS)
    assert out.dtype == dtype
    exact = sampling.add_noise(clean.double(), noise.double(), torch.tensor([10, 900]), ALPHAS)
    torch.testing.assert_close(out.double(), exact, atol=5e-2, rtol=0)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_step_counts_out_of_range(steps: int) -> None:
    with pytest.raises(ModelError, match=f"{steps} sampling steps .* 1 to 1000"):
        sampling.ddim_timesteps(steps)


def test_timesteps_by_hand() -> None:
    assert sampling.ddim_timesteps(4).tolist() == [751, 501, 251, 1]
    assert sampling.ddim_timesteps(6).tolist() == [997, 831, 665, 499, 333, 167, 1]
    assert sampling.ddim_timesteps(3).tolist() == [999, 667, 334, 1]
    assert sampling.ddim_timesteps(1000)[:2].tolist() == [999, 998]


@pytest.mark.parametrize("steps", [1, 3, 10, 30, 1000])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_with_the_true_noise_ends_at_the_clean_latents(steps: int, eta: float, draw: Any) -> None:
    """Law: predictions that all point at one clean tensor lead there, but for the noise of ᾱ[0] that the end keeps."""
    clean, noise = draw(2, 3).double(), draw(2, 3).double()
    start = sampling.add_noise(clean, noise, int(sampling.ddim_timesteps(steps)[0]), ALPHAS)
    alphas = ALPHAS.tolist()

    def predict(x: Tensor, t: int) -> Tensor:
        return (x - alphas[t] ** 0.5 * clean) / (1 - alphas[t]) ** 0.5

    seen: list[DdimStep] = []
    generator = torch.Generator().manual_seed(3)
    out = sampling.ddim(predict, start, steps, eta, generator if eta else None, seen.append)
    assert [step.index for step in seen] == list(range(1, len(seen) + 1))
    assert {step.total for step in seen} == {len(seen)} == {len(sampling.ddim_timesteps(steps))}
    for step in seen:
        torch.testing.assert_close(step.clean, clean)
    if eta == 0:
        torch.testing.assert_close(out, sampling.add_noise(clean, noise, 0, ALPHAS))
    else:
        assert (out - clean).abs().max() < 6 * (1 - alphas[0]) ** 0.5 + 1e-3


def test_ddim_draws_from_its_generator_alone(draw: Any) -> None:
    start = draw(2, 3)
    before = torch.random.get_rng_state()

    def run() -> Tensor:
        return sampling.ddim(lambda x, t: 0.1 * x, start, 5, 0.5, torch.Generator().manual_seed(7))

    generator = torch.Generator().manual_seed(7)
    draws = [torch.randn(2, 3, generator=generator) for _ in range(5)]
    assert torch.equal(run(), run())
    assert torch.equal(run(), sampling.ddim(lambda x, t: 0.1 * x, start, 5, 0.5, draws))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("noise", [None, torch.zeros(4, 2, 3)])
def test_ddim_wants_noise_for_every_step(noise: Tensor | None) -> None:
    with pytest.raises(ModelError, match=r"each of its 5 steps, but (none|4) were given"):
        sampling.ddim(lambda x, t: x, torch.zeros(2, 3), 5, 1.0, noise)


def test_a_callback_stops_the_run(draw: Any) -> None:
    class Stop(BaseException):
        pass

    calls: list[int] = []

    def callback(step: DdimStep) -> None:
        calls.append(step.index)
        if step.index == 2:
            raise Stop

    with pytest.raises(Stop):
        sampling.ddim(lambda x, t: 0 * x, draw(1, 2), 10, callback=callback)
    assert calls == [1, 2]


def test_guidance_at_0_and_1(draw: Any) -> None:
    positive, negative = draw(2, 3).double(), draw(2, 3).double()
    torch.testing.assert_close(sampling.guide(positive, negative, 1.0), positive)
    assert torch.equal(sampling.guide(positive, negative, 0.0), negative)
    torch.testing.assert_close(sampling.guide(positive, negative, 3.0), 3 * positive - 2 * negative)


def test_rescaling_restores_the_spread_of_the_clean_estimate(draw: Any) -> None:
    positive, negative, x = draw(4, 3, 2, 2).double(), draw(4, 3, 2, 2).double(), draw(4, 3, 2, 2).double()
    alpha = 0.3
    guided = sampling.guide(positive, negative, 7.5)

    def clean(noise: Tensor) -> Tensor:
        return (x - (1 - alpha) ** 0.5 * noise) / alpha**0.5

    assert sampling.rescale_guided(guided, positive, x, alpha, 0.0) is guided
    full = sampling.rescale_guided(guided, positive, x, alpha, 1.0, num_frames=2)
    for views in (slice(0, 2), slice(2, 4)):
        # One factor for all views of an object: the direction of the estimate does not change.
        ratio = clean(full)[views] / clean(guided)[views]
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
        torch.testing.assert_close(clean(full)[views].std(), clean(positive)[views].std())
    ratios = [float((clean(full) / clean(guided))[i].mean()) for i in (0, 2)]
    assert abs(ratios[0] - ratios[1]) > 1e-3
    half = sampling.rescale_guided(guided, positive, x, alpha, 0.5, num_frames=2)
    torch.testing.assert_close(clean(half), (clean(full) + clean(guided)) / 2)


class Recorder:
    """A model that records its calls and predicts from text and latents."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def predict_noise(
        self, latents: Tensor, timesteps: Tensor, text_embeddings: Tensor, cameras: Any = None, num_frames: int = 4
    ) -> Tensor:
        self.calls.append((latents.clone(), timesteps, text_embeddings, cameras, num_frames))
        return 0.1 * latents + text_embeddings.mean(dim=(1, 2)).reshape(-1, 1, 1, 1)


def test_halves_of_a_guided_batch(draw: Any) -> None:
    model, x, positive, negative, cameras = Recorder(), draw(4, 2, 3, 3), draw(1, 5, 6), draw(1, 5, 6), draw(4, 16)
    sampling.sample_latents(model, x, positive, negative, cameras, 4, 5, 3.0)
    latents, timesteps, text, camera, frames = model.calls[0]
    assert len(model.calls) == 5 and frames == 4
    assert torch.equal(latents, torch.cat([x, x])) and timesteps.tolist() == [801] * 8
    assert torch.equal(text[:4], negative.expand(4, -1, -1)) and torch.equal(text[4:], positive.expand(4, -1, -1))
    assert torch.equal(camera, torch.cat([cameras, cameras]))


def test_guidance_scale_1_runs_the_prompt_alone(draw: Any) -> None:
    x, positive, negative = draw(2, 2, 3, 3), draw(1, 5, 6), draw(1, 5, 6)
    alone, with_negative = Recorder(), Recorder()
    expected = sampling.sample_latents(alone, x, positive, None, None, 1, 5, 7.5)
    found = sampling.sample_latents(with_negative, x, positive, negative, None, 1, 5, 1.0)
    assert torch.equal(found, expected)
    assert len(with_negative.calls[0][0]) == 2


def test_embeddings_of_another_batch_are_refused(draw: Any) -> None:
    with pytest.raises(ModelError, match=r"text_embeddings are \(3, 5, 6\) for a batch of 4 views"):
        sampling.sample_latents(Recorder(), draw(4, 2, 3, 3), draw(3, 5, 6), None, None, 4, 5, 1.0)
