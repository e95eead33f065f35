"""Checkpoints: from a published MVDream, in whatever layout it is found, to networks, sizes read off the weights.

`layouts` tells the layouts apart. Everything a checkpoint holds must be known and everything a network needs must be
there, or the error lists the keys.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelError
from ..tokens import ENCODER_WIDTHS
from . import known_models
from .layouts import (
    LAYOUTS,
    Checkpoint,
    Layout,
    detect_layout,
    is_folder_checkpoint,
    open_checkpoint,
    unet_file,
)
from .metadata import ModelInfo, override
from .model import MVDream
from .networks import text_encoder_from_state_dict, unet_from_state_dict, vae_from_state_dict
from .sampling import Schedule, alphas_cumprod
from .tokenizer import find_tokenizer
from .weights import ENDINGS, read_state_dict

__all__ = [
    "BUILT_IN",
    "LAYOUTS",
    "Layout",
    "detect_layout",
    "find_checkpoint",
    "load",
    "model_hash",
    "networks_of",
    "read_state_dict",
    "text_encoder_from_state_dict",
    "unet_from_state_dict",
    "vae_from_state_dict",
]

logger = logging.getLogger("invert3d")

BUILT_IN: Mapping[str, Path] = {"toy": Path(__file__).parents[1] / "toy"}
"""Models that come with the package, by name: folders with ``model.safetensors`` and ``tokenizer.json``."""


def load(
    path_or_name: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> MVDream:
    """The multi-view diffusion model of a checkpoint, frozen and ready to sample.

    path_or_name: "toy" for the built-in model; a file as published (.safetensors; .pt and the like are read without
        running any code in them); a folder that holds one such file; or a folder in diffusers' manner, in any layout
        of `layouts`.
    device: where the networks go; None takes CUDA where it works, else the CPU. dtype: float32 when None; float16 and
        bfloat16 halve the memory. Weights that are in that dtype and stay on the CPU are mapped from their file.
    metadata: fields of `ModelInfo` that replace what the file and the published values say.

    Raises ModelError if there is no such checkpoint, it cannot be read, its layout is unknown, keys are unknown,
    missing or of the wrong shape (listed), it is not a multi-view model of text, or no vocabulary is found.
    """
    path = find_checkpoint(path_or_name)
    # Weights made under a host's inference mode could not be trained through.
    with torch.inference_mode(False), torch.no_grad():
        checkpoint = open_checkpoint(path)
        info = override(checkpoint.info, metadata or {})
        if info.base not in ENCODER_WIDTHS:
            info = replace(info, model_hash=model_hash(checkpoint))
        place = torch.device(device or _default_device())
        unet, vae, text_encoder = networks_of(checkpoint, info, place, dtype or torch.float32)
        tokenizer = find_tokenizer(
            checkpoint.path if checkpoint.layout.is_folder else path,
            vocab_size=text_encoder.config.vocab_size,
            max_length=text_encoder.config.max_position_embeddings,
            bos_id=info.bos_id,
            eos_id=info.eos_id,
            pad_id=info.pad_id,
        )
        for module in (unet, vae, text_encoder):
            module.requires_grad_(False)
        schedule = Schedule(alphas_cumprod(info.beta_start, info.beta_end), info.prediction_type)
        model = MVDream(unet, vae, text_encoder, tokenizer, schedule, info)
        logger.info("Loaded %s from '%s' (%s).", info.title, checkpoint.path, checkpoint.layout.name)
        return model.to(place)


def networks_of(
    checkpoint: Checkpoint, info: ModelInfo, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[Any, Any, Any]:
    """U-Net, VAE and text encoder of an opened checkpoint; every weight is used, and every one needed is there.

    dtype: None keeps that of each weight. Raises ModelError listing unknown and missing keys and wrong shapes of all
    three.
    """
    makers: tuple[Callable[[], Any], ...] = (
        lambda: unet_from_state_dict(checkpoint.unet.to(device, dtype), info.unet_heads, info.unet_norm_groups),
        lambda: vae_from_state_dict(checkpoint.vae.to(device, dtype), info.vae_norm_groups),
        lambda: text_encoder_from_state_dict(
            checkpoint.text.to(device, dtype), info.text_heads, info.text_activation, info.text_skip_last
        ),
    )
    networks, problems = [], []
    for make in makers:
        try:
            networks.append(make())
        except ModelError as error:
            problems.append(str(error))
    if problems:
        raise ModelError(" ".join(problems))
    unet, vae, text_encoder = networks
    return unet, vae, text_encoder


def find_checkpoint(path_or_name: str | os.PathLike[str]) -> Path:
    """The file that stands for the checkpoint which a name, a file or a folder means.

    In a folder, ``model.safetensors`` goes before other files. For a folder in diffusers' manner it is the weights file
    of its U-Net, which `load` takes for the whole folder.

    Raises ModelError if there is none, or several to choose from.
    """
    name = os.fspath(path_or_name)
    path = BUILT_IN.get(name, Path(name))
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelError(
            f"There is no model '{name}'. Expected a checkpoint file ({', '.join(ENDINGS)}), a folder that holds "
            f"one, or a built-in model ({', '.join(BUILT_IN)}). {known_models.where_to_get(name)}"
        )
    if is_folder_checkpoint(path):
        return unet_file(path)
    if (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    found = sorted(file for file in path.iterdir() if file.suffix in ENDINGS and file.is_file())
    if len(found) == 1:
        return found[0]
    if name in BUILT_IN and not found:
        raise ModelError(
            f"The weights of the built-in model '{name}' are not in this copy of Invert3D ('{path}'). Get a copy that "
            "holds model.safetensors there, train them with tools/train_toy.sh, or choose an MVDream checkpoint."
        )
    what = f"holds {len(found)} ({', '.join(file.name for file in found[:5])})" if found else "holds none"
    raise ModelError(
        f"The folder '{path}' of model '{name}' {what} of the files that can be a checkpoint ({', '.join(ENDINGS)}); "
        "expected one, or the subfolders unet, vae and text_encoder with weights in each. Name the file itself, or "
        "restore it."
    )


def model_hash(checkpoint: Checkpoint) -> str:
    """SHA-256 of a checkpoint's weights: of the file, or of a folder's files one after another."""
    if not checkpoint.layout.is_folder:
        return _sha256((checkpoint.path,))
    return _sha256(file for part in (checkpoint.unet, checkpoint.vae, checkpoint.text) for file, _ in part.files)


def _sha256(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
