"""What the model draws while it learns: held-out assets by their pseudo-tokens and by their captions, with scores."""

import torch
from torch import Tensor, nn

from invert3d_core.mvdream.sampling import ddim, guide, noise_from_velocity
from invert3d_core.toy.vocabulary import MAX_LENGTH

from .pool import VIEWS, Pool, camera_vectors
from .prompts import BEGIN, END, IDS, SLOT
from .training import Diffusion


def text_ids(captions: list[str], device) -> Tensor:
    """Word ids (B,48) of captions of known words."""
    rows = []
    for caption in captions:
        ids = [BEGIN, *(IDS[word] for word in caption.replace(",", " ,").split()), END]
        rows.append(ids + [END] * (MAX_LENGTH - len(ids)))
    return torch.tensor(rows, device=device)


def token_ids(count: int, slots: int, device) -> Tensor:
    """Ids (B,48) of "a P1…Pn"."""
    row = [BEGIN, IDS["a"], *range(SLOT, SLOT + slots), END]
    return torch.tensor([row + [END] * (MAX_LENGTH - len(row))] * count, device=device)


@torch.no_grad()
def draw_views(
    diffusion: Diffusion, vae: nn.Module, statistics: tuple[Tensor, Tensor], ids: Tensor, pool: Pool, spheres: Tensor,
    guidance_scale: float, steps: int = 25, seed: int = 0,
) -> Tensor:  # fmt: skip
    """Four views of each row (B,V,H,W,3) in [0,1] at the pool's cameras, by DDIM with guidance."""
    device, count = ids.device, len(ids)
    pseudo = diffusion.assets(pool.rows, pool.stretch, spheres)
    empty = text_ids([""] * count, device)
    context = torch.cat([diffusion.context(empty, pseudo), diffusion.context(ids, pseudo)])
    context = context.repeat_interleave(VIEWS, 0)
    cameras = camera_vectors(pool.azimuth, pool.elevation).flatten(0, 1)
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn((1, VIEWS, 8, 16, 16), generator=rng).to(device).expand(count, -1, -1, -1, -1).flatten(0, 1)

    def predict(latents: Tensor, timestep: int) -> Tensor:
        times = torch.full((2 * len(latents),), int(timestep), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            velocity = diffusion.unet(
                torch.cat([latents, latents]).float(),
                times,
                context.float(),
                class_labels=torch.cat([cameras, cameras]),
                cross_attention_kwargs={"num_frames": VIEWS},
            ).sample.float()
        without, with_text = velocity.chunk(2)
        guided = guide(with_text, without, guidance_scale)
        return noise_from_velocity(guided, latents, int(timestep), diffusion.alphas)

    latents = ddim(predict, noise, steps)
    mean, deviation = (tensor.view(1, -1, 1, 1) for tensor in statistics)
    images = vae.decode(latents.float() * deviation + mean).sample
    return (images.float() / 2 + 0.5).clamp(0, 1).movedim(1, -1).unflatten(0, (count, VIEWS))
