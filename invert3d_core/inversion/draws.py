"""What chance decides in a step, as a function of the seed and the step alone.

There is no generator state to keep: a step's draws are the same whether the run got there at once, after an
interruption, or together with other tokens.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from .presets import InversionConfig


@dataclass(frozen=True)
class Draw:
    """The draws of S sets of F views: all on the CPU.

    picks: (S,·) int64, which views, as the view source understands it. captions: (S,) int64, index into the captions.
    timesteps: (S,F) int64. posterior, noise: (S,F,C,h,w) standard normal, of the VAE's draw and of the diffusion.
    """

    picks: Tensor
    captions: Tensor
    timesteps: Tensor
    posterior: Tensor
    noise: Tensor


def step_generator(seed: int, stream: str, step: int) -> torch.Generator:
    """A CPU generator for one step of one stream of draws ("train", "validation"); equal arguments, equal draws."""
    digest = hashlib.sha256(f"{seed}:{stream}:{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def draw_step(
    config: InversionConfig,
    step: int,
    pick_ranges: list[tuple[int, int]],
    captions: int,
    latent_shape: tuple[int, ...],  # (F,C,h,w)
) -> Draw:
    """Draws of a training step.

    pick_ranges: inclusive range of each number that picks a set of views; captions: how many there are.
    """
    generator = step_generator(config.seed, "train", step)
    sets, frames = config.sets_per_step, latent_shape[0]
    picks = _pick(generator, sets, pick_ranges)
    caption = torch.randint(captions, (sets,), generator=generator)
    columns = 1 if config.shared_timestep else frames
    timesteps = torch.randint(config.min_timestep, config.max_timestep + 1, (sets, columns), generator=generator)
    return Draw(
        picks,
        caption,
        timesteps.expand(sets, frames),
        torch.randn(sets, *latent_shape, generator=generator),
        torch.randn(sets, *latent_shape, generator=generator),
    )


def draw_validation(
    config: InversionConfig,
    pick_ranges: list[tuple[int, int]],
    captions: int,
    latent_shape: tuple[int, ...],  # (F,C,h,w)
) -> Draw:
    """Draws of every validation of a run: a shared timestep per set, evenly over the range, captions in turn."""
    generator = step_generator(config.seed, "validation", 0)
    sets, frames = config.validation_sets, latent_shape[0]
    picks = _pick(generator, sets, pick_ranges)
    span = config.max_timestep + 1 - config.min_timestep
    place = (torch.arange(sets) + torch.rand(sets, generator=generator)) / sets
    timesteps = (config.min_timestep + (place * span).floor().long()).clamp(max=config.max_timestep)
    return Draw(
        picks,
        torch.arange(sets) % captions,
        timesteps[:, None].expand(sets, frames),
        torch.randn(sets, *latent_shape, generator=generator),
        torch.randn(sets, *latent_shape, generator=generator),
    )


def _pick(generator: torch.Generator, sets: int, ranges: list[tuple[int, int]]) -> Tensor:  # (S,len(ranges))
    return torch.stack([torch.randint(low, high + 1, (sets,), generator=generator) for low, high in ranges], dim=1)
