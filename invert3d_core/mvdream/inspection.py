"""What a checkpoint is: its layout, base, licence, and what it can do, read off names and sizes."""

import os
from collections import Counter
from dataclasses import asdict
from typing import Any

import torch

from ..errors import ModelError
from ..tokens import ENCODER_WIDTHS
from .checkpoint import find_checkpoint, model_hash, networks_of
from .layouts import Checkpoint, open_checkpoint
from .metadata import ModelInfo

_READERS = {
    "clip_l": "CLIP ViT-L/14; Stable Diffusion 1.x reads the same tokens",
    "clip_h": "OpenCLIP ViT-H/14; Stable Diffusion 2.x reads the same tokens",
}


def inspect(path_or_name: str | os.PathLike[str], *, whole: bool = False) -> dict[str, Any]:
    """What a checkpoint is, for a report. Only names and sizes are read, but for the hash of a model of its own.

    path_or_name: as `load` takes it. whole: also say whether every weight that the networks need is there and no other.

    Raises ModelError as `open_checkpoint` does.
    """
    checkpoint = open_checkpoint(find_checkpoint(path_or_name))
    parts = {"unet": checkpoint.unet, "vae": checkpoint.vae, "text_encoder": checkpoint.text}
    counts = {name: sum(value.numel() for value in part.tensors.values()) for name, part in parts.items()}
    tensors = checkpoint.tensors
    info, layout = checkpoint.info, checkpoint.layout
    properties = {name: value for name, value in asdict(info).items() if name not in ("title", "model_hash")}
    return {
        "kind": "multi-view model",
        "title": info.title,
        "file": str(checkpoint.path),
        "bytes": checkpoint.bytes,
        # Tokens of an encoder that is no published one belong to these very weights.
        "sha256": None if info.base in ENCODER_WIDTHS else model_hash(checkpoint),
        "layout": layout.name,
        "layout_means": layout.description,
        "camera_weights": layout.camera,
        "azimuth_0_of_its_own_code": layout.azimuth_zero_deg,
        "base": _base(info, checkpoint),
        "licence": info.licence,
        "can": abilities(info),
        "tensors": len(tensors),
        "types": dtypes(checkpoint),
        "parameters": {**counts, "total": sum(counts.values())},
        **({"complete": _complete(checkpoint)} if whole else {}),
        "properties_from": checkpoint.stated,
        "properties": properties,
    }


def summary(path_or_name: str | os.PathLike[str]) -> str:
    """The same for a person, a few lines: title, layout, base, licence, what it can do."""
    checkpoint = open_checkpoint(find_checkpoint(path_or_name))
    info, layout = checkpoint.info, checkpoint.layout
    lines = [
        info.title,
        f"layout {layout.name}: {layout.description}",
        f"weights {' and '.join(dtypes(checkpoint))}, {checkpoint.bytes / 1e9:.2f} GB",
        f"base {_base(info, checkpoint)}",
        f"licence {info.licence}",
        *abilities(info),
    ]
    if layout.azimuth_zero_deg:
        lines.append(
            f"azimuth 0 of this layout's own code is MVDream's {layout.azimuth_zero_deg:g}; here it is as always"
        )
    return "\n".join(lines)


def abilities(info: ModelInfo) -> list[str]:
    """What a model can do, a phrase each."""
    low, high = info.elevation_range_deg
    return [
        f"views of an object from text, {info.image_size} × {info.image_size} pixels, four at a time as trained, "
        f"from {low:g}° to {high:g}° above the horizon",
        "single pictures from text, without cameras",
        f"by itself {info.steps} steps at guidance {info.guidance_scale:g}, predicting {info.prediction_type}",
        "learns tokens and reads them; reads no pictures",
    ]


def dtypes(checkpoint: Checkpoint) -> list[str]:
    """Types of the networks' weights, the most frequent first."""
    parts = (checkpoint.unet, checkpoint.vae, checkpoint.text)
    counts: Counter[torch.dtype] = Counter()
    for value in (value for part in parts for value in part.tensors.values() if value.is_floating_point()):
        counts[value.dtype] += value.numel()
    return [str(dtype).removeprefix("torch.") for dtype, _ in counts.most_common()]


def _base(info: ModelInfo, checkpoint: Checkpoint) -> str:
    tables = [v for k, v in checkpoint.text.tensors.items() if k.endswith("token_embedding.weight") and v.ndim == 2]
    width = f", width {tables[0].shape[-1]}" if tables else ""
    return (
        f"{info.base} ({_READERS.get(info.base, 'a text encoder of its own; no other model reads its tokens')}{width})"
    )


def _complete(checkpoint: Checkpoint) -> bool | str:
    try:
        networks_of(checkpoint, checkpoint.info)
    except ModelError as error:
        return f"no: {error}"
    return True
