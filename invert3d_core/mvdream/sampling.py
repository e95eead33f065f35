"""Noise schedule, DDIM and guidance, exactly as published with MVDream; other solvers through diffusers' schedulers.

Formulas: DDPM (Ho et al. 2020) for the schedule and the noising, DDIM (Song et al. 2021, equation 12) for the step,
DPM-Solver++ (Lu et al. 2022) and Euler (Karras et al. 2022) as diffusers has them, classifier-free guidance (Ho and
Salimans 2022), v-prediction (Salimans and Ho 2022), and the rescaling of guided predictions (Lin et al. 2023) in the
form of MVDream's reconstruction loss (Shi et al. 2023).
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import ModelError
from .memory import fitting, out_of_memory

logger = logging.getLogger("invert3d")

TRAINING_STEPS = 1000
"""Timesteps of the published noise schedule."""

SAMPLERS = ("ddim", "dpmpp_2m", "euler")
"""Names of the ways from noise to clean latents: the published DDIM, DPM-Solver++ of second order, and Euler."""


def alphas_cumprod(beta_start: float = 0.00085, beta_end: float = 0.012, steps: int = TRAINING_STEPS) -> Tensor:
    """Cumulative products of 1 − β, (steps,) float64, of the schedule that ldm calls "linear".

    β runs linearly in its square root: ``linspace(√start, √end)²`` (diffusers: "scaled_linear"). The defaults are
    those of MVDream and Stable Diffusion.
    """
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


@dataclass(frozen=True, eq=False)
class Schedule:
    """A noise schedule and what the U-Net predicts under it.

    alphas_cumprod: (1000,) float64 on the CPU. prediction_type: "epsilon" or "v_prediction".
    """

    alphas_cumprod: Tensor = field(default_factory=alphas_cumprod)  # (T,)
    prediction_type: str = "epsilon"


def add_noise(
    latents: Tensor,  # (B,...)
    noise: Tensor,  # (B,...)
    timesteps: Tensor | int,  # (B,), one for all, or an int
    alphas_cumprod: Tensor,  # (T,)
) -> Tensor:  # (B,...)
    """Latents at their timesteps: √ᾱ z + √(1−ᾱ) ε (Ho et al. 2020, equation 4).

    timesteps: 0-based indices into `alphas_cumprod`. For a step without waiting on a GPU, keep both there.
    """
    signal, sigma = _signal_and_noise(alphas_cumprod, timesteps, latents)
    return signal * latents + sigma * noise


def velocity(latents: Tensor, noise: Tensor, timesteps: Tensor | int, alphas_cumprod: Tensor) -> Tensor:
    """Target of v-prediction, √ᾱ ε − √(1−ᾱ) z (Salimans and Ho 2022, appendix D); arguments as in `add_noise`."""
    signal, sigma = _signal_and_noise(alphas_cumprod, timesteps, latents)
    return signal * noise - sigma * latents


def noise_from_velocity(
    velocity: Tensor,  # (B,...)
    noisy_latents: Tensor,  # (B,...)
    timesteps: Tensor | int,
    alphas_cumprod: Tensor,
) -> Tensor:  # (B,...)
    """The noise that a velocity prediction means: √ᾱ v + √(1−ᾱ) x_t; `noisy_latents` are the x_t it was made from."""
    signal, sigma = _signal_and_noise(alphas_cumprod, timesteps, noisy_latents)
    return signal * velocity + sigma * noisy_latents


def ddim_timesteps(steps: int) -> Tensor:
    """Timesteps of a DDIM run in the order they are taken, (n,) int64, largest first.

    The published sampler takes every c-th timestep, c = 1000 // steps, starting at 1. So n is `steps` where it divides
    1000 and more elsewhere (30 gives 31, 75 gives 77), and for some counts (3, 9, 27, 36, 101, 300 …) the first would
    be 1000, past the end of the schedule, where the published sampler fails: here it is 999.

    steps: 1 … 1000. Raises ModelError otherwise.
    """
    if not 1 <= steps <= TRAINING_STEPS:
        raise ModelError(f"{steps} sampling steps were asked for; expected 1 to {TRAINING_STEPS}.")
    timesteps = torch.arange(0, TRAINING_STEPS, TRAINING_STEPS // steps) + 1
    # With a stride of 1 the clamped 1000 meets the 999 that is there already.
    return timesteps.clamp(max=TRAINING_STEPS - 1).unique().flip(0)


@dataclass(frozen=True, eq=False)
class DdimStep:
    """What a callback of `ddim` or `solve` is told after each step."""

    index: int
    """Steps done, 1 ≤ index ≤ total."""
    total: int
    timestep: int
    """The timestep the step started from."""
    latents: Tensor
    """Latents after the step, (B,...)."""
    clean: Tensor
    """The step's estimate of the clean latents, (B,...)."""


def ddim(
    predict: Callable[[Tensor, int], Tensor],
    latents: Tensor,  # (B,...)
    steps: int,
    eta: float = 0.0,
    noise: Tensor | Sequence[Tensor] | torch.Generator | None = None,  # (n,B,...)
    callback: Callable[[DdimStep], None] | None = None,
    *,
    alphas_cumprod: Tensor | None = None,  # (1000,)
) -> Tensor:  # (B,...)
    """Clean latents from noise by DDIM (Song et al. 2021), step for step as the published sampler runs.

    predict: ``predict(latents, timestep) -> noise`` with the timestep as an int. latents: (B,…) pure noise; the result
    has their dtype. steps: see `ddim_timesteps`. eta: 0 is deterministic, 1 is as noisy as DDPM.
    noise: for eta above 0, the draws, one like the latents per step (the first for the largest timestep), or a CPU
    generator to draw them from. callback: called after every step; what it raises stops the run.
    alphas_cumprod: schedule; the published one when left out.

    Raises ModelError if eta is above 0 and there is no noise, or too few draws.
    """
    alphas = _published() if alphas_cumprod is None else alphas_cumprod
    timesteps = ddim_timesteps(steps).tolist()
    total = len(timesteps)
    if eta > 0 and not isinstance(noise, torch.Generator) and (noise is None or len(noise) < total):
        raise ModelError(
            f"DDIM with eta {eta} draws noise at each of its {total} steps, but "
            f"{'none' if noise is None else len(noise)} were given. Pass a torch.Generator, or ({total},…) draws."
        )
    # After the last step the published sampler is at ᾱ[0], not at 1.
    alpha_of = alphas.double().cpu().tolist()
    previous = [alpha_of[t] for t in timesteps[1:]] + [alpha_of[0]]
    for i, (timestep, alpha_prev) in enumerate(zip(timesteps, previous, strict=True)):
        alpha = alpha_of[timestep]
        predicted = predict(latents, timestep)
        clean = (latents - (1 - alpha) ** 0.5 * predicted) / alpha**0.5
        sigma = eta * ((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)) ** 0.5
        latents = alpha_prev**0.5 * clean + (1 - alpha_prev - sigma**2) ** 0.5 * predicted
        if eta > 0 and noise is not None:
            draw = torch.randn(latents.shape, generator=noise) if isinstance(noise, torch.Generator) else noise[i]
            latents = latents + sigma * draw.to(latents)
        if callback is not None:
            callback(DdimStep(i + 1, total, timestep, latents, clean))
    return latents


def solver_timesteps(steps: int) -> Tensor:
    """Timesteps of a run of `solve` in the order they are taken, (steps,) int64: evenly from 999 down ("trailing").

    Other than `ddim_timesteps`, they start where the noise is pure, and there are exactly `steps` of them.
    steps: 1 … 1000. Raises ModelError otherwise.
    """
    if not 1 <= steps <= TRAINING_STEPS:
        raise ModelError(f"{steps} sampling steps were asked for; expected 1 to {TRAINING_STEPS}.")
    places = torch.arange(steps, dtype=torch.float64) * (TRAINING_STEPS / steps)
    return (TRAINING_STEPS - places).round().long() - 1


def solve(
    sampler: str,
    predict: Callable[[Tensor, int], Tensor],
    latents: Tensor,  # (B,...)
    steps: int,
    callback: Callable[[DdimStep], None] | None = None,
    *,
    alphas_cumprod: Tensor | None = None,  # (1000,)
) -> Tensor:  # (B,...)
    """Clean latents from noise by a scheduler of diffusers; the arguments of `ddim`.

    sampler: "dpmpp_2m" is DPM-Solver++ (Lu et al. 2022; two-step, with one first-order step at each end), which needs
    about half of DDIM's steps; "euler" follows the same path as DDIM in the coordinates of Karras et al. 2022.
    Both take `solver_timesteps` and end at the clean latents, where DDIM ends at ᾱ[0].

    Raises ModelError for another name and for a number of steps out of range.
    """
    scheduler, timesteps = _scheduler(sampler), solver_timesteps(steps).tolist()
    alphas = (_published() if alphas_cumprod is None else alphas_cumprod).double().cpu()
    ratios = torch.cat([alphas[:1], alphas[1:] / alphas[:-1]])
    # Whatever the U-Net predicts, `predict` gives noise: the scheduler never sees another prediction type.
    solver: Any = scheduler(trained_betas=(1 - ratios).numpy(), prediction_type="epsilon", timestep_spacing="leading")
    solver.set_timesteps(timesteps=timesteps)
    alpha_of = alphas.tolist()
    # Noise of unit variance on the scale of the solver, which may be one where clean latents are not scaled down.
    state = latents * float(solver.init_noise_sigma)
    for i, (place, timestep) in enumerate(zip(solver.timesteps, timesteps, strict=True)):
        noisy = solver.scale_model_input(state, place)
        predicted = predict(noisy, timestep)
        state = solver.step(predicted, place, state, return_dict=False)[0].to(latents.dtype)
        if callback is not None:
            clean = (noisy - (1 - alpha_of[timestep]) ** 0.5 * predicted) / alpha_of[timestep] ** 0.5
            callback(DdimStep(i + 1, steps, timestep, state, clean))
    return state


def _scheduler(sampler: str) -> Any:
    import diffusers

    if sampler == "euler":
        return diffusers.EulerDiscreteScheduler
    if sampler == "dpmpp_2m":
        return diffusers.DPMSolverMultistepScheduler
    raise ModelError(f"There is no sampler {sampler!r}. Expected one of {', '.join(SAMPLERS)}.")


def guide(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of two noise predictions, negative + scale · (positive − negative)."""
    return negative + scale * (positive - negative)


def rescale_guided(
    guided: Tensor,  # (B,...)
    positive: Tensor,  # (B,...)
    latents: Tensor,  # (B,...)
    alpha_cumprod: float,
    rescale: float,
    num_frames: int = 1,
) -> Tensor:  # (B,...)
    """Guided noise whose clean estimate has its spread drawn back to that of the positive prediction.

    Strong guidance over-saturates: the spread of the clean estimate x̂ grows. With r = std(x̂ of `positive`) / std(x̂
    of `guided`), one r per object over its views, channels and pixels, x̂ becomes (φ r + 1 − φ) x̂ (MVDream's form of
    Lin et al. 2023), and the noise follows from it.

    latents: the x_t both predictions were made from. alpha_cumprod: ᾱ at the timestep. rescale: φ in [0,1]; 0 changes
    nothing. num_frames: views per object.
    """
    if rescale == 0:
        return guided
    signal, sigma = alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5
    clean = (latents - sigma * guided) / signal
    clean_positive = (latents - sigma * positive) / signal
    groups = latents.shape[0] // num_frames

    def spread(x: Tensor) -> Tensor:  # (B,...) -> (groups,1)
        return x.reshape(groups, -1).std(dim=1, keepdim=True) + 1e-8

    factor = rescale * spread(clean_positive) / spread(clean) + 1 - rescale
    clean = (clean.reshape(groups, -1) * factor).reshape(clean.shape)
    return (latents - signal * clean) / sigma


class NoisePredictor(Protocol):
    """What `sample_latents` needs of a model; `MVDream` is one. A `schedule` attribute is used where there is one."""

    def predict_noise(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text_embeddings: Tensor,
        cameras: Any = None,
        num_frames: int = 4,
    ) -> Tensor: ...


@torch.no_grad()
def sample_latents(
    model: NoisePredictor,
    latents: Tensor,  # (B,C,h,w)
    text_embeddings: Tensor,  # (B,L,D) or (1,L,D)
    negative_embeddings: Tensor | None,  # (B,L,D) or (1,L,D)
    cameras: Any,  # (B,16), Cameras or None
    num_frames: int,
    steps: int,
    guidance_scale: float,
    *,
    guidance_rescale: float = 0.0,
    eta: float = 0.0,
    noise: Tensor | Sequence[Tensor] | torch.Generator | None = None,
    sampler: str = "ddim",
    callback: Callable[[DdimStep], None] | None = None,
) -> Tensor:  # (B,C,h,w)
    """Latents of views with classifier-free guidance; by DDIM it is what MVDream's text-to-image script does.

    latents: pure noise, view-fastest (object 0's views first). text_embeddings, negative_embeddings: encoded prompts,
    one row for all views or one per view. cameras: as in `MVDream.predict_noise`; None with num_frames 1 is the 2D
    mode.
    guidance_scale: 1, or no negative embeddings, runs the positive half alone. guidance_rescale: see `rescale_guided`.
    eta, noise: of DDIM, see `ddim`. sampler: one of `SAMPLERS`, see `solve` for the others. callback: after each step.

    Raises ModelError if shapes disagree, for an unknown sampler, for numbers that are not finite or out of range, and
    for an eta above 0 with another than DDIM.
    """
    if sampler not in SAMPLERS:
        raise ModelError(f"There is no sampler {sampler!r}. Expected one of {', '.join(SAMPLERS)}.")
    if sampler != "ddim" and eta != 0:
        raise ModelError(f"eta is {eta}, which only the sampler ddim knows. Leave it at 0 for {sampler}.")
    if not math.isfinite(guidance_scale):
        raise ModelError(f"The guidance scale is {guidance_scale}; expected a finite number, such as 7.5.")
    if not 0 <= guidance_rescale <= 1:
        raise ModelError(f"The guidance rescale is {guidance_rescale}; expected 0 to 1.")
    schedule = getattr(model, "schedule", None) or Schedule()
    batch = latents.shape[0]
    text = _one_per_row(text_embeddings, batch, "text_embeddings")
    guided = negative_embeddings is not None and guidance_scale != 1
    if negative_embeddings is not None and guided:
        # The published sampler puts the unconditional half first.
        text = torch.cat([_one_per_row(negative_embeddings, batch, "negative_embeddings"), text])
        if isinstance(cameras, Tensor):
            if len(cameras) and batch % len(cameras) == 0:  # those of one object for all
                cameras = cameras.repeat(batch // len(cameras), 1)
            cameras = torch.cat([cameras, cameras])

    apart = False  # whether the halves of a guided step pass the U-Net one after the other

    def passed(x: Tensor, timestep: int, start: int, stop: int) -> Tensor:
        """The predictions for some rows of the whole batch."""
        rows = cameras[start:stop] if isinstance(cameras, Tensor) and len(cameras) == len(text) else cameras
        timesteps = torch.full((stop - start,), timestep, device=x.device)
        return model.predict_noise(x, timesteps, text[start:stop], rows, num_frames)

    def halves(x: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
        """The predictions without and with the prompt."""
        if apart:
            return passed(x, timestep, 0, batch), passed(x, timestep, batch, 2 * batch)
        negative, positive = passed(torch.cat([x, x]), timestep, 0, 2 * batch).chunk(2)
        return negative, positive

    def set_apart(reason: str) -> bool:
        nonlocal apart
        if apart or not guided:
            return False
        apart = True
        logger.warning(
            "Memory ran out (%s): the views with the prompt and those without now pass the U-Net one after the "
            "other. The result is the same, steps take longer.",
            reason,
        )
        return True

    def too_large(reason: str) -> ModelError:
        return ModelError(out_of_memory(f"{batch} views", reason, latents.device))

    def predict(x: Tensor, timestep: int) -> Tensor:
        if not guided:
            return fitting(lambda: passed(x, timestep, 0, batch), set_apart, too_large)
        negative, positive = fitting(lambda: halves(x, timestep), set_apart, too_large)
        return rescale_guided(
            guide(positive, negative, guidance_scale),
            positive,
            x,
            float(schedule.alphas_cumprod[timestep]),
            guidance_rescale,
            num_frames,
        )

    if sampler != "ddim":
        return solve(sampler, predict, latents, steps, callback, alphas_cumprod=schedule.alphas_cumprod)
    return ddim(predict, latents, steps, eta, noise, callback, alphas_cumprod=schedule.alphas_cumprod)


def _one_per_row(embeddings: Tensor, batch: int, name: str) -> Tensor:  # (1|B,L,D) -> (B,L,D)
    if embeddings.ndim != 3 or embeddings.shape[0] not in (1, batch):
        raise ModelError(
            f"{name} are {tuple(embeddings.shape)} for a batch of {batch} views; expected ({batch},L,D) or (1,L,D)."
        )
    return embeddings.expand(batch, -1, -1)


def _published() -> Tensor:
    return alphas_cumprod()


def _signal_and_noise(alphas: Tensor, timesteps: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
    """√ᾱ and √(1−ᾱ) per row, in the dtype and with the dimensions of `like`; the roots are taken in float64."""
    index = torch.as_tensor(timesteps, device=alphas.device)
    alpha = alphas[index].reshape(-1, *[1] * (like.ndim - 1))
    dtype = like.dtype
    # Cast before moving: some devices have no float64.
    return alpha.sqrt().to(dtype).to(like.device), (1 - alpha).sqrt().to(dtype).to(like.device)
