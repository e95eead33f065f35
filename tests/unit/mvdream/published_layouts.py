"""Checkpoints as their converters write them, from one model's state dicts (diffusers' names)."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from invert3d_core.mvdream import key_maps

State = Mapping[str, Tensor]


def save(state: State, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {key: value.contiguous().clone() for key, value in state.items()}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(plain, path)
    else:
        torch.save(plain, path)


def renamed_camera(unet: State, name: str) -> dict[str, Tensor]:
    return {key.replace("class_embedding.", f"{name}."): value for key, value in unet.items()}


UNETS: Mapping[str, Callable[[State], dict[str, Tensor]]] = {
    "folder-ldm": key_maps.unet_to_ldm,
    "folder-ldm-wrapped": lambda unet: key_maps.with_prefix(key_maps.unet_to_ldm(unet), "unet."),
    "folder-diffusers": dict,
    "folder-camera-embedding": lambda unet: renamed_camera(unet, "camera_embedding"),
    "folder-camera-proj": lambda unet: {k: v for k, v in unet.items() if not k.startswith("class_embedding.")},
}
"""What each layout's U-Net folder holds."""


def write_folder(
    folder: Path,
    layout: str,
    unet: State,
    vae: State,
    text: State,
    configs: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    variant: str = "",
    ending: str = ".safetensors",
) -> Path:
    """A folder in a layout of `UNETS`. text: of a CLIPTextModel. configs: path in the folder → what it holds."""

    def cast(state: State) -> dict[str, Tensor]:
        return {key: value.to(dtype) for key, value in state.items()}

    file = f"diffusion_pytorch_model{variant}{ending}"
    save(cast(UNETS[layout](unet)), folder / "unet" / file)
    if layout == "folder-camera-proj":
        camera = key_maps.without_prefix(unet, "class_embedding.")
        save(cast(camera), folder / "camera_proj" / file)
    save(cast(vae), folder / "vae" / file)
    stem = "model" if ending == ".safetensors" else "pytorch_model"
    text = key_maps.with_prefix(key_maps.strip_text_model(text), "text_model.")
    save(cast(text), folder / "text_encoder" / f"{stem}{variant}{ending}")
    for name, content in (configs or {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder
