"""Drawing many prompts at once with the toy model, and the tables that the toy benchmarks print."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from invert3d_core.cameras import Cameras
from invert3d_core.mvdream import MVDream
from invert3d_core.mvdream.sampling import sample_latents

VIEWS = 4
STEPS = 25


@torch.no_grad()
def draw_prompts(
    model: MVDream, prompts: Sequence[str], cams: Cameras, seeds: Sequence[int], guidance_scale: float, batch: int = 16
) -> Tensor:
    """Four views of each prompt from each seed's noise, (S,P,4,H,W,3) on the CPU; one noise serves all prompts."""
    vectors = model.camera_vectors(cams)
    text = model.encode_prompt(list(prompts))  # (P,L,D)
    empty = model.encode_prompt([""])
    rows = []
    for seed in seeds:
        noise = torch.randn((VIEWS, *model.latent_shape), generator=torch.Generator().manual_seed(seed))
        parts = []
        for start in range(0, len(prompts), batch):
            chosen = text[start : start + batch]
            count = len(chosen)
            with torch.autocast("cuda", torch.bfloat16, enabled=model.device.type == "cuda"):
                latents = sample_latents(
                    model,
                    noise.repeat(count, 1, 1, 1).to(model.device),
                    chosen.repeat_interleave(VIEWS, 0),
                    empty,
                    vectors.repeat(count, 1),
                    VIEWS,
                    STEPS,
                    guidance_scale,
                )
            parts.append(model.decode_latents(latents.float()).float().cpu().unflatten(0, (count, VIEWS)))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [f"### {title}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def save_sheet(path: Path, rows: Sequence[Sequence[Tensor]]) -> None:
    """Pictures of equal size, one list per row: each (4,H,W,3) becomes four side by side."""
    from PIL import Image

    lines = [torch.cat([torch.cat(list(views), 1) for views in row], 1) for row in rows]
    picture = (torch.cat(lines).clamp(0, 1) * 255).round().byte().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=92)
