"""Drawing many prompts at once with the toy model, and the tables that the toy benchmarks print."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from invert3d_core.cameras import Cameras
from invert3d_core.mvdream import MVDream, drawing
from invert3d_core.toy.scoring import SAMPLING_STEPS

VIEWS = 4


def draw_prompts(
    model: MVDream, prompts: Sequence[str], cams: Cameras, seeds: Sequence[int], guidance_scale: float
) -> Tensor:
    """Views of each prompt from each seed's noise, (S,P,4,H,W,3) on the CPU; the U-Net in bfloat16 on a GPU."""
    cuda = model.device.type == "cuda"
    autocast, batch = (torch.bfloat16, 128) if cuda else (None, 16)
    return drawing.draw_prompts(
        model, prompts, cams, seeds, guidance_scale, steps=SAMPLING_STEPS, batch=batch, autocast=autocast
    )


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
