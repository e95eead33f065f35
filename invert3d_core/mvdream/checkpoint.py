"""Checkpoints: from a published MVDream file to networks, sizes read off the weights.

One file holds U-Net, VAE and text encoder. `LAYOUTS` lists how the known files name their parts; everything a file
holds must be known and everything a network needs must be there, or the error lists the keys.
"""

import hashlib
import logging
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ..errors import ModelError
from ..tokens import ENCODER_WIDTHS
from . import key_maps
from .metadata import PUBLISHED, ModelInfo, override, read_metadata
from .model import MVDream
from .networks import text_encoder_from_state_dict, unet_from_state_dict, vae_from_state_dict
from .sampling import Schedule, alphas_cumprod
from .tokenizer import find_tokenizer

__all__ = [
    "BUILT_IN",
    "LAYOUTS",
    "Layout",
    "detect_layout",
    "find_checkpoint",
    "load",
    "read_state_dict",
    "text_encoder_from_state_dict",
    "unet_from_state_dict",
    "vae_from_state_dict",
]

logger = logging.getLogger("invert3d")

BUILT_IN: Mapping[str, Path] = {"toy": Path(__file__).parents[1] / "toy"}
"""Models that come with the package, by name: folders with ``model.safetensors`` and ``tokenizer.json``."""

_ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_SCHEDULE_BUFFER = re.compile(r"betas|alphas_cumprod(_prev)?|(sqrt|log|posterior)_[a-z0-9_]+")


@dataclass(frozen=True)
class Layout:
    """How one kind of checkpoint file names its three parts.

    unet, vae, text: prefixes of their keys. text_kind: "clip" (transformers' names) or "open_clip". base: the published
    values to take where the file has no metadata, a key of `PUBLISHED`.
    """

    name: str
    unet: str
    vae: str
    text: str
    text_kind: str
    base: str

    @property
    def prefixes(self) -> tuple[str, str, str]:
        """The three prefixes: U-Net, VAE, text encoder."""
        return self.unet, self.vae, self.text


LAYOUTS: tuple[Layout, ...] = (
    Layout("sd-v1.5-4view", key_maps.UNET_PREFIX, key_maps.VAE_PREFIX, key_maps.TEXT_PREFIX, "clip", "clip_l"),
    Layout(
        "sd-v2.1-base-4view",
        key_maps.UNET_PREFIX,
        key_maps.VAE_PREFIX,
        key_maps.OPEN_CLIP_PREFIX,
        "open_clip",
        "clip_h",
    ),
)
"""Every checkpoint layout that `load` reads."""


def load(
    path_or_name: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> MVDream:
    """The multi-view diffusion model of a checkpoint, frozen and ready to sample.

    path_or_name: "toy" for the built-in model, a file in a layout of `LAYOUTS` (.safetensors; .pt and the like are read
        without running any code in them), or a folder that holds one such file.
    device: where the networks go; None takes CUDA where it works, else the CPU. dtype: float32 when None; float16 and
        bfloat16 halve the memory.
    metadata: fields of `ModelInfo` that replace what the file and the published values say.

    Raises ModelError if there is no such file, it cannot be read, its layout is unknown, keys are unknown, missing or
    of the wrong shape (listed), it is not a multi-view model, or no vocabulary is found.
    """
    path = find_checkpoint(path_or_name)
    # Weights made under a host's inference mode could not be trained through.
    with torch.inference_mode(False), torch.no_grad():
        state_dict, file_metadata = read_state_dict(path)
        layout = detect_layout(state_dict, path.name)
        _refuse_unknown_keys(state_dict, layout, path)
        info = read_metadata(file_metadata, _published_values(state_dict, layout), f"'{path}'")
        info = override(info, metadata or {})
        if info.base not in ENCODER_WIDTHS:
            info = replace(info, model_hash=_sha256(path))
        unet = unet_from_state_dict(state_dict, info.unet_heads, info.unet_norm_groups)
        if unet.config["class_embed_type"] is None:
            raise ModelError(
                f"'{path}' has no camera_embed weights: it is an ordinary Stable Diffusion checkpoint, not a "
                "multi-view model. Choose an MVDream checkpoint, such as sd-v1.5-4view.pt."
            )
        vae = vae_from_state_dict(state_dict, info.vae_norm_groups)
        text_encoder = text_encoder_from_state_dict(state_dict, info.text_heads, info.text_activation)
        tokenizer = find_tokenizer(
            path.parent,
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
        logger.info("Loaded %s from '%s' (layout %s).", info.title, path, layout.name)
        return model.to(device or _default_device(), dtype or torch.float32)


def find_checkpoint(path_or_name: str | os.PathLike[str]) -> Path:
    """The checkpoint file that a name, file or folder means; a folder's ``model.safetensors`` goes before other files.

    Raises ModelError if there is none, or several to choose from.
    """
    name = os.fspath(path_or_name)
    path = BUILT_IN.get(name, Path(name))
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelError(
            f"There is no model '{name}'. Expected a checkpoint file ({', '.join(_ENDINGS)}), a folder that holds "
            f"one, or a built-in model ({', '.join(BUILT_IN)})."
        )
    if (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    found = sorted(file for file in path.iterdir() if file.suffix in _ENDINGS and file.is_file())
    if len(found) == 1:
        return found[0]
    if name in BUILT_IN and not found:
        raise ModelError(
            f"The weights of the built-in model '{name}' are not in this copy of Invert3D ('{path}'). Get a copy that "
            "holds model.safetensors there, train them with tools/train_toy.sh, or choose an MVDream checkpoint."
        )
    what = f"holds {len(found)} ({', '.join(file.name for file in found[:5])})" if found else "holds none"
    raise ModelError(
        f"The folder '{path}' of model '{name}' {what} of the files that can be a checkpoint ({', '.join(_ENDINGS)}); "
        "expected one. Name the file itself, or restore it."
    )


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint file, mapped from disk; metadata is empty but for safetensors.

    Raises ModelError if the file cannot be read, or holds anything but named tensors.
    """
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt", device="cpu") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        code = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        if code:
            raise ModelError(
                f"'{path}' holds more than weights ({code[1]}): reading it would run code, so it is refused. "
                "Convert it to safetensors where you trust it, or get it from its publisher."
            ) from error
        reason = "" if type(error).__name__ == "UnpicklingError" else f" ({error})"  # torch's advice there is unsafe
        raise ModelError(
            f"'{path}' cannot be read as a checkpoint{reason}. It is of another kind, cut short or still downloading: "
            "compare its size with the source and fetch it again."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ModelError(f"'{path}' holds a {type(content).__name__}; expected a state dict, names with their tensors.")
    other = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if other:
        raise ModelError(
            f"'{path}' holds entries that are no tensors: {key_maps.list_keys(other)}. Expected weights alone."
        )
    return content, {}


def detect_layout(keys: Iterable[str], source: str) -> Layout:
    """The layout of `LAYOUTS` whose three parts all occur among the keys.

    source: the file's name, for messages. Raises ModelError if there is none, naming what was found and what is
    missing.
    """
    keys = list(keys)
    found = {p for layout in LAYOUTS for p in layout.prefixes if any(key.startswith(p) for key in keys)}
    for layout in LAYOUTS:
        if found.issuperset(layout.prefixes):
            return layout
    expected = "; ".join(f"{layout.name}: {', '.join(p + '*' for p in layout.prefixes)}" for layout in LAYOUTS)
    present = f"Only {', '.join(sorted(found))} are there" if found else "None of them is there"
    raise ModelError(
        f"'{source}' is in no layout that is known ({expected}). {present}; its {len(keys)} keys start with "
        f"{', '.join(sorted({key.split('.')[0] for key in keys})[:10]) or 'nothing'}. Choose an MVDream checkpoint "
        "that holds U-Net, VAE and text encoder."
    )


def _refuse_unknown_keys(state_dict: key_maps.StateDict, layout: Layout, path: Path) -> None:
    unknown = [key for key in state_dict if not key.startswith(layout.prefixes) and not _SCHEDULE_BUFFER.fullmatch(key)]
    if unknown:
        raise ModelError(
            f"'{path}' has unknown keys beside the three networks: {key_maps.list_keys(unknown)}. Expected the layout "
            f"{layout.name}; the file is of another model."
        )


def _published_values(state_dict: key_maps.StateDict, layout: Layout) -> ModelInfo:
    info = PUBLISHED[layout.base]
    table = layout.text + ("embeddings." if layout.text_kind == "clip" else "") + "token_embedding.weight"
    if table in state_dict and state_dict[table].shape[-1] == ENCODER_WIDTHS[layout.base]:
        return info
    # Tokens of an encoder of another width fit no published model.
    return replace(info, title="Unnamed multi-view model", base="custom")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
