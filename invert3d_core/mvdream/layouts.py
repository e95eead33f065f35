"""Layouts: how the checkpoints in the wild lay out one MVDream, told apart by the names of their tensors.

One file joins U-Net, VAE and text encoder under prefixes (Shi et al. 2023, github.com/bytedance/MVDream). A folder in
diffusers' manner has a subfolder for each; its converters disagree in the names of the U-Net and of the camera MLP.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import ModelError
from ..tokens import ENCODER_WIDTHS
from . import key_maps
from .metadata import METADATA_KEY, PUBLISHED, ModelInfo, override, read_metadata
from .weights import Weights, read_state_dict

INDEX = "model_index.json"
"""File of a folder that says what is in it; ours also holds the entry `METADATA_KEY` there."""

_SCHEDULE_BUFFERS = ("betas", "alphas_cumprod", "sqrt_", "log_", "posterior_")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_VARIANTS = ("", ".fp16", ".bf16")
_CAMERA_FOLDER = "camera_proj"


@dataclass(frozen=True)
class Layout:
    """How one kind of checkpoint names its parts.

    unet, vae, text: prefixes of their keys in one file; empty for a folder.
    text_kind: "clip" (transformers' names) or "open_clip". base: whose published values hold where nothing is stated
        and the text encoder's width says nothing, a key of `PUBLISHED`.
    camera: what the camera MLP is called. description: for people.
    azimuth_zero_deg: the azimuth, in MVDream's own counting, of what the layout's own code calls azimuth 0. The weights
        agree in all layouts; only numbers copied from that code's examples need it added.
    """

    name: str
    description: str
    camera: str
    unet: str = ""
    vae: str = ""
    text: str = ""
    text_kind: str = "clip"
    base: str = "clip_l"
    azimuth_zero_deg: float = 0.0

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder with a subfolder per network."""
        return not self.unet

    @property
    def prefixes(self) -> tuple[str, str, str]:
        """The three prefixes: U-Net, VAE, text encoder."""
        return self.unet, self.vae, self.text


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "file-clip",
        "one file as published, with CLIP's text encoder (sd-v1.5-4view)",
        "camera_embed",
        key_maps.UNET_PREFIX,
        key_maps.VAE_PREFIX,
        key_maps.TEXT_PREFIX,
    ),
    Layout(
        "file-open-clip",
        "one file as published, with OpenCLIP's text encoder (sd-v2.1-base-4view)",
        "camera_embed",
        key_maps.UNET_PREFIX,
        key_maps.VAE_PREFIX,
        key_maps.OPEN_CLIP_PREFIX,
        "open_clip",
        "clip_h",
    ),
)
"""The layouts of one file."""

FOLDER_LAYOUTS: tuple[Layout, ...] = (
    Layout("folder-ldm", "a folder whose U-Net has the published names", "camera_embed"),
    Layout(
        "folder-ldm-wrapped", "a folder whose U-Net has the published names behind a wrapper's", "unet.camera_embed"
    ),
    Layout("folder-diffusers", "a folder of stock diffusers networks", "class_embedding"),
    Layout("folder-camera-embedding", "a folder of diffusers networks", "camera_embedding"),
    Layout(
        "folder-camera-proj",
        "a folder of diffusers networks with the camera MLP in a folder of its own",
        "camera_proj",
        azimuth_zero_deg=90.0,
    ),
)
"""The layouts of a folder, by what the U-Net and its camera MLP are called."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint opened: its layout, and the weights of its parts, still mapped.

    path: the file, or the folder. main: the file that tells it from others: itself, or the U-Net's of a folder.
    unet, vae, text: of the parts, under the names of their files. rest: what a file holds beside them.
    info: what is known of the model, stated or published. stated: where from, for people.
    """

    path: Path
    main: Path
    layout: Layout
    unet: Weights
    vae: Weights
    text: Weights
    rest: Mapping[str, Tensor]
    info: ModelInfo
    stated: str

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of every file, the parts of a folder under their folder's name."""
        if not self.layout.is_folder:
            return {**self.unet.tensors, **self.vae.tensors, **self.text.tensors, **self.rest}
        parts = {"unet/": self.unet, "vae/": self.vae, "text_encoder/": self.text}
        return {prefix + key: value for prefix, part in parts.items() for key, value in part.tensors.items()}

    @property
    def bytes(self) -> int:
        """Size of the files that hold the weights."""
        files = {path for part in (self.unet, self.vae, self.text) for path, _ in part.files}
        return sum(path.stat().st_size for path in files)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint file, or a folder in diffusers' manner, and tell its layout; no weight is read yet.

    path: as `find_checkpoint` gives it, or the folder itself.
    Raises ModelError if files cannot be read or parts are missing, if the layout is unknown, or if it is no
    text-to-views model: an ordinary Stable Diffusion, or ImageDream, which wants a picture.
    """
    folder = path if path.is_dir() else folder_of(path)
    return _open_file(path) if folder is None else _open_folder(folder)


def is_folder_checkpoint(folder: Path) -> bool:
    """Whether a folder has the subfolders of a checkpoint in diffusers' manner with weights in them."""
    parts = (folder / "unet", folder / "vae", folder / "text_encoder")
    return all(part.is_dir() and _weights_files(part) for part in parts)


def folder_of(path: Path) -> Path | None:
    """The checkpoint folder whose U-Net a file is, None if it is no such file."""
    whole = path.parent.name == "unet" and is_folder_checkpoint(path.parent.parent)
    return path.parent.parent if whole else None


def files_of(path: Path) -> list[Path]:
    """All weights files of the checkpoint that a file stands for: itself, or those of the folder whose U-Net it is."""
    folder = folder_of(path)
    if folder is None:
        return [path]
    return [file for part in sorted(folder.iterdir()) if part.is_dir() for file in _weights_files(part)]


def unet_file(folder: Path) -> Path:
    """The first weights file of a checkpoint folder's U-Net."""
    return _weights_files(folder / "unet")[0]


def detect_layout(keys: Iterable[str], source: str) -> Layout:
    """The layout of `LAYOUTS` whose three parts all occur among the keys.

    source: the file's name, for messages. Raises ModelError if there is none, naming what was found and what is
    missing.
    """
    keys = list(keys)
    _refuse_imagedream(keys, source)
    found = {p for layout in LAYOUTS for p in layout.prefixes if any(key.startswith(p) for key in keys)}
    for layout in LAYOUTS:
        if found.issuperset(layout.prefixes):
            return layout
    expected = "; ".join(f"{layout.name}: {', '.join(p + '*' for p in layout.prefixes)}" for layout in LAYOUTS)
    present = f"Only {', '.join(sorted(found))} are there" if found else "None of them is there"
    raise ModelError(
        f"'{source}' is in no layout that is known ({expected}). {present}; its {len(keys)} keys start with "
        f"{', '.join(sorted({key.split('.')[0] for key in keys})[:10]) or 'nothing'}. Choose an MVDream checkpoint "
        "that holds U-Net, VAE and text encoder, or the folder of one in diffusers' manner."
    )


# One file


def _open_file(path: Path) -> Checkpoint:
    tensors, metadata = read_state_dict(path)
    layout = detect_layout(tensors, path.name)
    parts = [{key: value for key, value in tensors.items() if key.startswith(prefix)} for prefix in layout.prefixes]
    rest = {key: value for key, value in tensors.items() if not key.startswith(layout.prefixes)}
    unknown = [key for key in rest if not key.startswith(_SCHEDULE_BUFFERS) or "." in key]
    if unknown:
        raise ModelError(
            f"'{path}' has unknown keys beside the three networks: {key_maps.list_keys(unknown)}. Expected the layout "
            f"{layout.name}; the file is of another model."
        )
    if not any(key.startswith(layout.unet + layout.camera) for key in parts[0]):
        raise _no_cameras(path)
    files = ((path, ""),)
    unet, vae, text = (Weights(part, files) for part in parts)
    info = read_metadata(metadata, published_values(parts[2], layout), f"'{path}'")
    stated = "the file" if METADATA_KEY in metadata else f"what is published for {PUBLISHED[layout.base].title}"
    return Checkpoint(path, path, layout, unet, vae, text, rest, info, stated)


# A folder


def _open_folder(folder: Path) -> Checkpoint:
    unet, vae, text = (_read_part(folder / part) for part in ("unet", "vae", "text_encoder"))
    _refuse_imagedream(unet.tensors, folder.name)
    if (folder / _CAMERA_FOLDER).is_dir():
        camera = _read_part(folder / _CAMERA_FOLDER, _CAMERA_FOLDER + ".")
        unet = Weights({**unet.tensors, **camera.tensors}, unet.files + camera.files)
    named = (layout for layout in FOLDER_LAYOUTS if any(key.startswith(layout.camera + ".") for key in unet.tensors))
    layout = next(named, None)
    if layout is None:
        raise _no_cameras(folder)
    values, read = _stated_by_configs(folder)
    info = override(published_values(text.tensors, layout), values, f"The configuration of '{folder}'")
    index = _read_json(folder / INDEX)
    if METADATA_KEY in index:
        info = read_metadata({METADATA_KEY: json.dumps(index[METADATA_KEY])}, info, f"'{folder / INDEX}'")
        read = [INDEX]
    stated = f"{', '.join(read)} and what is published" if read else "what is published"
    return Checkpoint(folder, unet.files[0][0], layout, unet, vae, text, {}, info, stated)


def _read_part(folder: Path, prefix: str = "") -> Weights:
    files = _weights_files(folder)
    if not files:
        raise ModelError(
            f"'{folder}' holds no weights. Expected {_STEMS[0]}.safetensors, {_STEMS[1]}.safetensors or the like "
            "there: fetch the whole folder again."
        )
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors |= key_maps.with_prefix(read_state_dict(path)[0], prefix)
    return Weights(tensors, tuple((path, prefix) for path in files))


def _weights_files(folder: Path) -> tuple[Path, ...]:
    """The files that together hold the weights of a part: one, or the shards of an index; full precision first."""
    for variant in _VARIANTS:
        for ending in (".safetensors", ".bin"):
            for stem in _STEMS:
                whole = folder / f"{stem}{variant}{ending}"
                if whole.is_file():
                    return (whole,)
                indexes = {
                    folder / f"{stem}{ending}.index{variant}.json",
                    folder / f"{stem}{variant}{ending}.index.json",
                }
                for index in sorted(indexes):
                    if index.is_file():
                        return _shards(index)
    return ()


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index of shards names, all of them beside it."""
    table = _read_json(index).get("weight_map")
    names = set(table.values()) if isinstance(table, dict) else set()
    if not names or not all(isinstance(name, str) and name == os.path.basename(name) for name in names):
        raise ModelError(f"'{index}' names no files beside itself as 'weight_map'. Fetch the folder again.")
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise ModelError(f"'{index.parent}' lacks {', '.join(missing)}, named by '{index.name}'. Fetch them again.")
    return tuple(index.parent / name for name in sorted(names))


def _stated_by_configs(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Fields of `ModelInfo` that a folder's configurations state, and the files that stated any."""
    values: dict[str, Any] = {}
    read: list[str] = []

    def take(file: str, fields: Mapping[str, Any]) -> None:
        found = {name: value for name, value in fields.items() if value is not None}
        values.update(found)
        if found:
            read.append(file)

    unet = _read_json(folder / "unet" / "config.json")
    heads = unet.get("num_attention_heads") or unet.get("attention_head_dim")  # the second means heads, too
    if heads is None and isinstance(unet.get("num_heads"), int) and unet["num_heads"] > 0:
        heads = unet["num_heads"]
    width = unet.get("num_head_channels")
    if heads is None and isinstance(width, int) and width > 0 and isinstance(unet.get("channel_mult"), list):
        heads = [unet.get("model_channels", 0) * factor // width for factor in unet["channel_mult"]]
    take("unet/config.json", {"unet_heads": heads, "unet_norm_groups": unet.get("norm_num_groups")})
    vae = _read_json(folder / "vae" / "config.json")
    take(
        "vae/config.json",
        {"scaling_factor": vae.get("scaling_factor"), "vae_norm_groups": vae.get("norm_num_groups")},
    )
    text = _read_json(folder / "text_encoder" / "config.json")
    take(
        "text_encoder/config.json",
        {"text_heads": text.get("num_attention_heads"), "text_activation": text.get("hidden_act")},
    )
    schedule = _read_json(folder / "scheduler" / "scheduler_config.json")
    if schedule.get("beta_schedule") == "scaled_linear":  # the only one MVDream was trained with
        fields = ("beta_start", "beta_end", "prediction_type")
        take("scheduler/scheduler_config.json", {name: schedule.get(name) for name in fields})
    return values, read


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"'{path}' cannot be read as JSON ({error}). Restore the file.") from error
    if not isinstance(content, dict):
        raise ModelError(f"'{path}' is a JSON {type(content).__name__}; expected an object. Restore the file.")
    return content


# Shared


def published_values(text: Mapping[str, Tensor], layout: Layout) -> ModelInfo:
    """What is published for the text encoder whose weights these are; a base of its own for another width."""
    tables = [value for key, value in text.items() if key.endswith("token_embedding.weight") and value.ndim == 2]
    for base, info in PUBLISHED.items():
        if tables and tables[0].shape[-1] == ENCODER_WIDTHS[base]:
            return info
    # Tokens of an encoder of another width fit no published model.
    return replace(PUBLISHED[layout.base], title="Unnamed multi-view model", licence="unknown", base="custom")


def _no_cameras(path: Path) -> ModelError:
    return ModelError(
        f"'{path}' has no weights for cameras ({', '.join(('camera_embed', *key_maps.CAMERA_MODULES))}): it is an "
        "ordinary Stable Diffusion checkpoint, not a multi-view model. Choose an MVDream checkpoint, such as "
        "sd-v1.5-4view.pt."
    )


def _refuse_imagedream(keys: Iterable[str], source: str) -> None:
    marks = [key for key in keys if "image_embed." in key or key.endswith(("to_k_ip.weight", "to_v_ip.weight"))]
    if marks:
        raise ModelError(
            f"'{source}' is an ImageDream checkpoint ({marks[0]} and {len(marks) - 1} more weights read a picture): it "
            "draws views of a picture, not of a text. Choose an MVDream checkpoint, such as sd-v2.1-base-4view.pt."
        )
