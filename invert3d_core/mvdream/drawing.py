"""Drawing many prompts from the same noises, to compare what they say."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cameras import Cameras
from ..errors import ModelError
from ..progress import Progress, no_progress
from .model import MVDream
from .sampling import DdimStep, sample_latents


@torch.no_grad()
def draw_prompts(
    model: MVDream,
    prompts: Sequence[str],
    cams: Cameras,
    seeds: Sequence[int],
    guidance_scale: float,
    *,
    steps: int | None = None,
    batch: int = 16,
    autocast: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Tensor:  # (S,P,C,H,W,3)
    """Views of each of P prompts from each of S seeds' noise, (S,P,C,H,W,3) float32 in [0,1] on the CPU.

    A seed's noise is the same for every prompt, and that of `MVDream.sample` with this seed. Prompts are taken as they
    are: no suffix is added. cams: C cameras of one object. steps: None takes the model's own.
    batch: prompts drawn at once. autocast: a narrower type for the U-Net where the device has it, such as bfloat16.
    progress: called after each sampling step of each batch.

    Raises TokenError as `MVDream.encode_prompt` does, and ModelError without prompts or seeds.
    """
    if not prompts or not seeds:
        raise ModelError(f"{len(prompts)} prompts and {len(seeds)} seeds were given; expected at least one of each.")
    report = progress or no_progress
    views, vectors = len(cams), model.camera_vectors(cams)
    text = model.encode_prompt(list(prompts))  # (P,L,D)
    empty = model.encode_prompt("")
    starts = range(0, len(prompts), batch)
    rounds = len(seeds) * len(starts)
    done = 0

    def callback(step: DdimStep) -> None:
        report(done * step.total + step.index, rounds * step.total)

    rows = []
    for seed in seeds:
        noise = torch.randn((views, *model.latent_shape), generator=torch.Generator().manual_seed(seed))
        parts = []
        for start in starts:
            chosen = text[start : start + batch]
            count = len(chosen)
            with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
                latents = sample_latents(
                    model,
                    noise.repeat(count, 1, 1, 1).to(model.device),
                    chosen.repeat_interleave(views, 0),
                    empty,
                    vectors.repeat(count, 1),
                    views,
                    model.info.steps if steps is None else steps,
                    guidance_scale,
                    callback=callback,
                )
            parts.append(model.decode_latents(latents.float()).float().cpu().unflatten(0, (count, views)))
            done += 1
        rows.append(torch.cat(parts))
    return torch.stack(rows)
