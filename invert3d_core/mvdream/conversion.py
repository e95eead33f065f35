"""Checkpoints written anew: one safetensors file as published, or a folder of stock diffusers networks.

Either says in its metadata what the weights do not show, so that nothing has to be guessed when it is read.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ..errors import ModelError
from ..files import write_atomically
from ..progress import Progress, no_progress
from ..tokens import ENCODER_WIDTHS
from . import key_maps
from .checkpoint import find_checkpoint, networks_of
from .layouts import INDEX, Checkpoint, open_checkpoint
from .metadata import METADATA_KEY, ModelInfo
from .tokenizer import Tokenizer, find_tokenizer, own_vocabulary
from .weights import ENDINGS, write_safetensors

_SPARE_BYTES = 16 << 20  # of configurations and vocabulary
_UNET_FILE = "diffusion_pytorch_model.safetensors"
_TEXT_FILE = "model.safetensors"


@dataclass(frozen=True)
class Conversion:
    """What was written: the layout of it, its size in bytes, and what a user should know, in words."""

    path: Path
    layout: str
    bytes: int
    notes: tuple[str, ...]


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    progress: Progress = no_progress,
) -> Conversion:
    """Write a checkpoint anew, whole or not at all.

    source: as `load` takes it. destination: a name that ends with .safetensors is one file in the published layout,
        with `own_vocabulary` beside it for a model that has one; any other is a folder of stock diffusers and
        transformers networks, which their ``from_pretrained`` reads.
    dtype: of the weights; None keeps theirs, and every bit of them. From a file to a file, every tensor of the source
    is kept, the unused ones of an OpenCLIP tower and of the schedule too.
    progress: a step for each tensor.

    Raises ModelError if the source is no whole text-to-views checkpoint, the destination exists already or has an
    ending that is not written, or the disk has no room for it. OSError when writing fails.
    """
    target = Path(destination)
    if target.suffix in ENDINGS and target.suffix != ".safetensors":
        raise ModelError(
            f"'{target}' would be a {target.suffix} file, which can hold code and is not written. Expected a name that "
            "ends with .safetensors, or a folder's."
        )
    if target.exists() and not (target.is_dir() and target.suffix != ".safetensors" and not any(target.iterdir())):
        raise ModelError(f"'{target}' exists already and is never written over. Choose another name, or remove it.")
    checkpoint = open_checkpoint(find_checkpoint(source))
    beside = own_vocabulary(target)
    own = target.suffix == ".safetensors" and checkpoint.info.base not in ENCODER_WIDTHS
    if own and beside.exists():
        raise ModelError(f"'{beside}', where the vocabulary goes, exists already. Choose another name, or remove it.")
    with torch.inference_mode(False), torch.no_grad():
        networks = networks_of(checkpoint, checkpoint.info)
        _require_room(target, checkpoint, dtype)
        target.parent.mkdir(parents=True, exist_ok=True)
        write = _write_file if target.suffix == ".safetensors" else _write_folder
        partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            layout, notes = write(checkpoint, networks, partial, dtype, progress)
            if target.is_dir():
                target.rmdir()  # it is empty; Windows replaces no folder
            if own:
                notes.append(_write_own_vocabulary(checkpoint, networks[2], beside))
            os.replace(partial, target)
            _sync(target.parent)
        except BaseException:
            if own:
                beside.unlink(missing_ok=True)
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            partial.unlink(missing_ok=True)
            raise
    files = [target, beside] if target.is_file() else target.rglob("*")
    return Conversion(target, layout, sum(file.stat().st_size for file in files if file.is_file()), tuple(notes))


Networks = tuple[Any, Any, Any]


def _write_file(
    checkpoint: Checkpoint, networks: Networks, path: Path, dtype: torch.dtype | None, progress: Progress
) -> tuple[str, list[str]]:
    info = checkpoint.info
    notes: list[str] = []
    rest: Mapping[str, Tensor] = {}
    if not checkpoint.layout.is_folder:
        layout, rest = checkpoint.layout.name, checkpoint.rest
        tensors = {key: value for key, value in checkpoint.tensors.items() if key not in rest}
    elif info.base == "clip_h":
        layout, info = "file-open-clip", replace(info, text_skip_last=0)
        notes.append("the text encoder's last block, which no view needs, is not in the folder and so not in the file")
        tensors = _published(networks, key_maps.text_to_open_clip, key_maps.OPEN_CLIP_PREFIX)
    else:
        layout = "file-clip"
        tensors = _published(networks, key_maps.text_to_ldm, key_maps.TEXT_PREFIX)
    everything = {**tensors, **rest}
    counted = _Counted(progress, len(everything))
    # The schedule's constants keep their precision.
    write_safetensors(path, everything, info.to_metadata(), dtype, counted, keep=rest.keys())
    _verify(path, everything)
    return layout, notes


def _published(
    networks: Networks, text_names: Callable[[key_maps.StateDict], dict[str, Tensor]], text_prefix: str
) -> dict[str, Tensor]:
    unet, vae, text_encoder = (network.state_dict() for network in networks)
    return (
        key_maps.with_prefix(key_maps.unet_to_ldm(unet), key_maps.UNET_PREFIX)
        | key_maps.with_prefix(key_maps.vae_to_ldm(vae), key_maps.VAE_PREFIX)
        | key_maps.with_prefix(text_names(text_encoder), text_prefix)
    )


def _write_folder(
    checkpoint: Checkpoint, networks: Networks, folder: Path, dtype: torch.dtype | None, progress: Progress
) -> tuple[str, list[str]]:
    info = checkpoint.info
    unet, vae, text_encoder = networks
    text_names = key_maps.with_prefix(key_maps.text_to_ldm(text_encoder.state_dict()), "text_model.")
    parts = {"unet": unet.state_dict(), "vae": vae.state_dict(), "text_encoder": text_names}
    counted = _Counted(progress, sum(map(len, parts.values())))
    folder.mkdir()
    for name, tensors in parts.items():
        (folder / name).mkdir()
        file = folder / name / (_TEXT_FILE if name == "text_encoder" else _UNET_FILE)
        write_safetensors(file, tensors, {"format": "pt"}, dtype, counted)
        _verify(file, tensors)
    unet.save_config(folder / "unet")
    vae.register_to_config(scaling_factor=info.scaling_factor)
    vae.save_config(folder / "vae")
    config = text_encoder.config
    config.bos_token_id, config.eos_token_id, config.pad_token_id = info.bos_id, info.eos_id, info.pad_id
    config.architectures = ["CLIPTextModel"]
    config.save_pretrained(folder / "text_encoder")
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", _scheduler_config(info))
    vocabulary, notes = _write_vocabulary(checkpoint, text_encoder, folder / "tokenizer")
    # The metadata of one file, as a JSON object.
    entry = json.loads(replace(info, text_skip_last=0).to_metadata()[METADATA_KEY])
    _write_json(
        folder / INDEX,
        {
            "_class_name": "MVDreamPipeline",
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            **({"tokenizer": ["transformers", "CLIPTokenizer"]} if vocabulary else {}),
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            METADATA_KEY: entry,
        },
    )
    open_checkpoint(folder)
    return "folder-diffusers", notes


def _scheduler_config(info: ModelInfo) -> dict[str, Any]:
    """What makes diffusers' DDIM the published sampler, for counts of steps that divide 1000."""
    return {
        "_class_name": "DDIMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": info.beta_start,
        "beta_end": info.beta_end,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": info.prediction_type,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }


def _tokenizer_of(checkpoint: Checkpoint, text_encoder: Any) -> Tokenizer | None:
    info = checkpoint.info
    try:
        return find_tokenizer(
            checkpoint.path,
            vocab_size=text_encoder.config.vocab_size,
            max_length=text_encoder.config.max_position_embeddings,
            bos_id=info.bos_id,
            eos_id=info.eos_id,
            pad_id=info.pad_id,
        )
    except ModelError:
        return None


def _write_own_vocabulary(checkpoint: Checkpoint, text_encoder: Any, file: Path) -> str:
    """Write the vocabulary of one file beside it; what is to be said about it."""
    tokenizer = _tokenizer_of(checkpoint, text_encoder)
    if tokenizer is None:
        return "no vocabulary was found: put its tokenizer.json beside it"
    write_atomically(file, tokenizer.backend.to_str().encode())
    return f"its vocabulary is in {file.name}, which goes with it"


def _write_vocabulary(checkpoint: Checkpoint, text_encoder: Any, folder: Path) -> tuple[bool, list[str]]:
    """Write the tokenizer where one is found; whether it is CLIP's, and what is to be said about it."""
    info = checkpoint.info
    tokenizer = _tokenizer_of(checkpoint, text_encoder)
    if tokenizer is None:
        return False, ["no vocabulary was found: put CLIP's vocab.json and merges.txt into its tokenizer folder"]
    folder.mkdir()
    backend = tokenizer.backend
    if type(backend.model).__name__ != "BPE":
        (folder / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
        return False, []
    backend.model.save(str(folder))  # vocab.json and merges.txt
    special = {name: backend.id_to_token(getattr(info, f"{name}_id")) for name in ("bos", "eos", "pad")}
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": text_encoder.config.max_position_embeddings,
            "unk_token": special["eos"],
            **{f"{name}_token": token for name, token in special.items()},
        },
    )
    return True, []


class _Counted:
    """Counts tensors for a progress callback."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.step = progress, total, 0
        progress(0, total)

    def __call__(self) -> None:
        self.step += 1
        self.progress(self.step, self.total)


def _verify(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read back what is where; a disk that lies about its room shows here."""
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ModelError(f"'{path}' could not be read back ({error}). Check the disk, and convert again.") from error
    if found != {key: tuple(value.shape) for key, value in tensors.items()}:
        raise ModelError(f"'{path}' does not hold what was written. Check the disk, and convert again.")


def _require_room(target: Path, checkpoint: Checkpoint, dtype: torch.dtype | None) -> None:
    wanted = _SPARE_BYTES + sum(
        value.numel() * (dtype.itemsize if dtype is not None and value.is_floating_point() else value.itemsize)
        for value in checkpoint.tensors.values()
    )
    place = next(folder for folder in target.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    if free < wanted:
        raise ModelError(
            f"'{place}' has {free / 1e9:.2f} GB free, and '{target.name}' takes {wanted / 1e9:.2f} GB. Make room, "
            "choose another disk, or half precision."
        )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sync(folder: Path) -> None:
    """Flush a folder's list of names, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
