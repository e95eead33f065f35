"""Names of weights: between the published MVDream checkpoint (ldm) and diffusers / transformers modules, both ways.

The maps hold for any number of levels, blocks per level and placement of attention: they read the structure off the
names. Nothing else is looked at, so every function here is pure. The published file joins the parts under three
prefixes (`UNET_PREFIX`, `VAE_PREFIX`, `TEXT_PREFIX` or `OPEN_CLIP_PREFIX`); `to_published` writes such a file's state
dict.

Text encoders are named as transformers 5 names them, without the leading ``text_model.`` that transformers 4 has
(`strip_text_model` removes it).
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..errors import ModelError

UNET_PREFIX = "model.diffusion_model."
UNET_WRAPPER = "unet."  # of a module that holds the ldm U-Net
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."
OPEN_CLIP_PREFIX = "cond_stage_model.model."

CAMERA_MODULES = ("class_embedding", "camera_embedding", "camera_proj")
"""What U-Nets with diffusers' names call the camera MLP ``linear_1``, ``linear_2``; ldm calls it ``camera_embed``."""

StateDict = Mapping[str, Tensor]
Modules = list[tuple[str, str, Mapping[str, str]]]
"""(ldm module, diffusers module, names of what is in it or `_SAME` if they agree), from which a map is made."""

_SAME: Mapping[str, str] = {}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_VAE_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
_OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OPEN_CLIP_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OPEN_CLIP_UNUSED = ("text_projection", "logit_scale")


# U-Net


def unet_keys_from_ldm(keys: Iterable[str]) -> dict[str, str]:
    """ldm key → diffusers key, for the U-Net keys (without prefix) that the ldm layout knows; others are left out."""
    keys = list(keys)
    return _rename(keys, _unet_modules(_ldm_unet_structure(keys)), from_ldm=True)


def unet_keys_to_ldm(keys: Iterable[str]) -> dict[str, str]:
    """diffusers key → ldm key, the inverse of `unet_keys_from_ldm`; unknown keys are left out."""
    keys = list(keys)
    return _rename(keys, _unet_modules(_diffusers_unet_structure(keys)), from_ldm=False)


def unet_from_ldm(state_dict: StateDict) -> dict[str, Tensor]:
    """State dict of an ldm U-Net (keys without prefix) under the names of `UNet2DConditionModel`.

    The camera MLP ``camera_embed`` becomes ``class_embedding``. Raises ModelError listing the keys the layout lacks.
    """
    return _convert(state_dict, unet_keys_from_ldm(state_dict), "the ldm U-Net layout")


def unet_to_ldm(state_dict: StateDict) -> dict[str, Tensor]:
    """State dict of a `UNet2DConditionModel` under ldm names, without prefix; the inverse of `unet_from_ldm`.

    Raises ModelError listing the keys that have no ldm name.
    """
    return _convert(state_dict, unet_keys_to_ldm(state_dict), "a diffusers U-Net with an ldm counterpart")


def unet_keys_to_diffusers(keys: Iterable[str]) -> dict[str, str]:
    """U-Net key of any known layout (without prefix) → `UNet2DConditionModel` key.

    ldm names are mapped, and those it does not know left out. diffusers' own names stay as they are; converters
    disagree only in what they call the camera MLP there (`CAMERA_MODULES`), which becomes ``class_embedding``.
    """
    keys = list(keys)
    if is_ldm_unet(keys):
        return unet_keys_from_ldm(keys)
    camera = re.compile(rf"({'|'.join(CAMERA_MODULES)})\.(linear_[12])\.")
    return {key: camera.sub(r"class_embedding.\2.", key, count=1) if camera.match(key) else key for key in keys}


def is_ldm_unet(keys: Iterable[str]) -> bool:
    """Whether U-Net keys (without prefix) are named as ldm names them."""
    return any(key.startswith(("input_blocks.", "middle_block.", "output_blocks.")) for key in keys)


# A U-Net's structure: for each down level and each up level one flag per block (has it attention), and whether the
# level ends in a resampling; for the middle, one flag per module (is it attention).
_Level = tuple[list[bool], bool]
_Structure = tuple[list[_Level], list[bool], list[_Level]]


def _ldm_unet_structure(keys: list[str]) -> _Structure:
    def attention(module: str) -> bool:
        return any(key.startswith(f"{module}.transformer_blocks.") for key in keys)

    down: list[_Level] = []
    blocks: list[bool] = []
    for n in range(1, _count(keys, r"input_blocks\.(\d{1,3})\.")):
        if any(key.startswith(f"input_blocks.{n}.0.op.") for key in keys):
            down.append((blocks, True))
            blocks = []
        else:
            blocks.append(attention(f"input_blocks.{n}.1"))
    down.append((blocks, False))

    middle = [attention(f"middle_block.{n}") for n in range(_count(keys, r"middle_block\.(\d{1,3})\."))]

    up: list[_Level] = []
    blocks = []
    for n in range(_count(keys, r"output_blocks\.(\d{1,3})\.")):
        blocks.append(attention(f"output_blocks.{n}.1"))
        if any(re.match(rf"output_blocks\.{n}\.[12]\.conv\.", key) for key in keys):
            up.append((blocks, True))
            blocks = []
    up.append((blocks, False))
    return down, middle, up


def _diffusers_unet_structure(keys: list[str]) -> _Structure:
    names = set(_modules_of(keys, 4))

    def levels(side: str, resampling: str) -> list[_Level]:
        found: list[_Level] = []
        for b in range(_count(keys, rf"{side}\.(\d{{1,3}})\.")):
            count = _count(keys, rf"{side}\.{b}\.resnets\.(\d{{1,3}})\.")
            blocks = [f"{side}.{b}.attentions.{i}" in names for i in range(count)]
            found.append((blocks, f"{side}.{b}.{resampling}.0" in names))
        return found

    # The middle is residual block, attention, residual block, …; ldm numbers them in one row.
    resnets = _count(keys, r"mid_block\.resnets\.(\d{1,3})\.")
    attentions = _count(keys, r"mid_block\.attentions\.(\d{1,3})\.")
    middle = [flag for i in range(resnets) for flag in ([False, True] if i < attentions else [False])]
    return levels("down_blocks", "downsamplers"), middle, levels("up_blocks", "upsamplers")


def _unet_modules(structure: _Structure) -> Modules:
    down, middle, up = structure
    modules: Modules = [
        ("time_embed.0", "time_embedding.linear_1", _SAME),
        ("time_embed.2", "time_embedding.linear_2", _SAME),
        ("camera_embed.0", "class_embedding.linear_1", _SAME),
        ("camera_embed.2", "class_embedding.linear_2", _SAME),
        ("input_blocks.0.0", "conv_in", _SAME),
        ("out.0", "conv_norm_out", _SAME),
        ("out.2", "conv_out", _SAME),
    ]
    n = 1
    for b, (blocks, downsampled) in enumerate(down):
        for i, attention in enumerate(blocks):
            modules.append((f"input_blocks.{n}.0", f"down_blocks.{b}.resnets.{i}", _RESNET))
            if attention:
                modules.append((f"input_blocks.{n}.1", f"down_blocks.{b}.attentions.{i}", _SAME))
            n += 1
        if downsampled:
            modules.append((f"input_blocks.{n}.0.op", f"down_blocks.{b}.downsamplers.0.conv", _SAME))
            n += 1
    for n, attention in enumerate(middle):
        kind, names = ("attentions", _SAME) if attention else ("resnets", _RESNET)
        modules.append((f"middle_block.{n}", f"mid_block.{kind}.{middle[:n].count(attention)}", names))
    n = 0
    for b, (blocks, upsampled) in enumerate(up):
        for i, attention in enumerate(blocks):
            modules.append((f"output_blocks.{n}.0", f"up_blocks.{b}.resnets.{i}", _RESNET))
            if attention:
                modules.append((f"output_blocks.{n}.1", f"up_blocks.{b}.attentions.{i}", _SAME))
            if upsampled and i == len(blocks) - 1:
                place = 2 if attention else 1
                modules.append((f"output_blocks.{n}.{place}.conv", f"up_blocks.{b}.upsamplers.0.conv", _SAME))
            n += 1
    return modules


# VAE


def vae_keys_from_ldm(keys: Iterable[str]) -> dict[str, str]:
    """ldm key → `AutoencoderKL` key, for the VAE keys (without prefix) that the ldm layout knows."""
    keys = list(keys)
    levels = _count(keys, r"decoder\.up\.(\d{1,3})\.")
    blocks = _count(keys, r"(?:encoder\.down|decoder\.up)\.\d+\.block\.(\d{1,3})\.")
    return _rename(keys, _vae_modules(levels, blocks), from_ldm=True)


def vae_keys_to_ldm(keys: Iterable[str]) -> dict[str, str]:
    """`AutoencoderKL` key → ldm key, the inverse of `vae_keys_from_ldm`."""
    keys = list(keys)
    levels = _count(keys, r"decoder\.up_blocks\.(\d{1,3})\.")
    blocks = _count(keys, r"(?:encoder\.down|decoder\.up)_blocks\.\d+\.resnets\.(\d{1,3})\.")
    return _rename(keys, _vae_modules(levels, blocks), from_ldm=False)


def vae_from_ldm(state_dict: StateDict) -> dict[str, Tensor]:
    """State dict of an ldm KL autoencoder (keys without prefix) under the names of `AutoencoderKL`.

    The 1×1 convolutions of the middle attention (C,C,1,1) become linear weights (C,C). Raises ModelError listing the
    keys the layout lacks.
    """
    mapped = _convert(state_dict, vae_keys_from_ldm(state_dict), "the ldm autoencoder layout")
    return {
        key: value.flatten(1) if _is_vae_projection(key) and value.shape[2:] == (1, 1) else value
        for key, value in mapped.items()
    }


def vae_to_diffusers(state_dict: StateDict) -> dict[str, Tensor]:
    """State dict of a KL autoencoder in any known layout (keys without prefix) under the names of `AutoencoderKL`.

    ldm names are mapped as `vae_from_ldm` does. diffusers before 0.13 had other names in the middle attention.
    """
    if is_ldm_vae(state_dict):
        return vae_from_ldm(state_dict)
    names = "|".join(_OLD_VAE_ATTENTION)
    old = re.compile(rf"(.+\.mid_block\.attentions\.0)\.({names})\.(weight|bias)")
    found = {key: old.fullmatch(key) for key in state_dict}
    return {(f"{m[1]}.{_OLD_VAE_ATTENTION[m[2]]}.{m[3]}" if m else key): state_dict[key] for key, m in found.items()}


def is_ldm_vae(keys: Iterable[str]) -> bool:
    """Whether VAE keys (without prefix) are named as ldm names them."""
    return any(key.startswith(("encoder.down.", "decoder.up.", "encoder.mid.", "decoder.mid.")) for key in keys)


def vae_to_ldm(state_dict: StateDict) -> dict[str, Tensor]:
    """State dict of an `AutoencoderKL` under ldm names, without prefix; the inverse of `vae_from_ldm`.

    Raises ModelError listing the keys that have no ldm name.
    """
    convolutions = {k: v[:, :, None, None] if _is_vae_projection(k) else v for k, v in state_dict.items()}
    return _convert(convolutions, vae_keys_to_ldm(state_dict), "an AutoencoderKL with an ldm counterpart")


def _is_vae_projection(diffusers_key: str) -> bool:
    return ".attentions." in diffusers_key and re.search(r"\.to_(q|k|v|out\.0)\.weight$", diffusers_key) is not None


def _vae_modules(levels: int, blocks: int) -> Modules:
    modules: Modules = [("quant_conv", "quant_conv", _SAME), ("post_quant_conv", "post_quant_conv", _SAME)]
    for side in ("encoder", "decoder"):
        modules += [
            (f"{side}.conv_in", f"{side}.conv_in", _SAME),
            (f"{side}.norm_out", f"{side}.conv_norm_out", _SAME),
            (f"{side}.conv_out", f"{side}.conv_out", _SAME),
            (f"{side}.mid.block_1", f"{side}.mid_block.resnets.0", _VAE_RESNET),
            (f"{side}.mid.block_2", f"{side}.mid_block.resnets.1", _VAE_RESNET),
            (f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0", _VAE_ATTENTION),
        ]
    for i in range(levels):
        # ldm numbers the decoder's levels by resolution, diffusers by the order in which they run.
        encoder, decoder = f"encoder.down_blocks.{i}", f"decoder.up_blocks.{levels - 1 - i}"
        for j in range(blocks):
            modules.append((f"encoder.down.{i}.block.{j}", f"{encoder}.resnets.{j}", _VAE_RESNET))
            modules.append((f"decoder.up.{i}.block.{j}", f"{decoder}.resnets.{j}", _VAE_RESNET))
        modules.append((f"encoder.down.{i}.downsample.conv", f"{encoder}.downsamplers.0.conv", _SAME))
        modules.append((f"decoder.up.{i}.upsample.conv", f"{decoder}.upsamplers.0.conv", _SAME))
    return modules


# Text encoders


def strip_text_model(state_dict: StateDict) -> dict[str, Tensor]:
    """The same state dict without the leading ``text_model.`` of transformers 4 and of published files."""
    return {key.removeprefix("text_model."): value for key, value in state_dict.items()}


def text_from_ldm(state_dict: StateDict) -> dict[str, Tensor]:
    """State dict of the published CLIP-L text encoder (keys without prefix) under the names of `CLIPTextModel`.

    The names agree but for ``text_model.``; ``position_ids``, a constant some versions store, is dropped.
    """
    return {key: value for key, value in strip_text_model(state_dict).items() if not key.endswith("position_ids")}


def text_to_ldm(state_dict: StateDict) -> dict[str, Tensor]:
    """State dict of a `CLIPTextModel` (of any transformers) as the published file names it after `TEXT_PREFIX`."""
    return text_from_ldm(state_dict)


def open_clip_keys_from_ldm(keys: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """OpenCLIP text key → the `CLIPTextModel` keys it holds: three for fused query, key and value, none if unused."""
    keys = list(keys)
    found = {key: (new,) for key, new in _rename(keys, _open_clip_modules(keys), from_ldm=True).items()}
    out: dict[str, tuple[str, ...]] = dict(found)
    for key in keys:
        fused = re.fullmatch(r"transformer\.resblocks\.(\d{1,3})\.attn\.in_proj_(weight|bias)", key)
        if fused:
            out[key] = tuple(f"encoder.layers.{fused[1]}.self_attn.{part}_proj.{fused[2]}" for part in "qkv")
        elif key == "positional_embedding":
            out[key] = ("embeddings.position_embedding.weight",)
        elif key in _OPEN_CLIP_UNUSED:
            out[key] = ()
    return out


def open_clip_keys_to_ldm(keys: Iterable[str]) -> dict[str, str]:
    """`CLIPTextModel` key → the OpenCLIP key that holds it, alone or fused; unknown keys are left out."""
    keys = list(keys)
    blocks = [f"transformer.resblocks.{i}." for i in range(_count(keys, r"encoder\.layers\.(\d{1,3})\."))]
    out = _rename(keys, _open_clip_modules(blocks), from_ldm=False)
    for key in keys:
        part = re.fullmatch(r"encoder\.layers\.(\d{1,3})\.self_attn\.[qkv]_proj\.(weight|bias)", key)
        if part:
            out[key] = f"transformer.resblocks.{part[1]}.attn.in_proj_{part[2]}"
        elif key == "embeddings.position_embedding.weight":
            out[key] = "positional_embedding"
    return out


def text_from_open_clip(state_dict: StateDict, skip_last: int = 1) -> dict[str, Tensor]:
    """State dict of an OpenCLIP text tower (keys without prefix) under the names of `CLIPTextModel`.

    skip_last: how many of the last blocks to leave out; MVDream's SD2.1 form uses the penultimate block's output, so 1.
    Raises ModelError listing the keys the layout lacks.
    """
    targets = open_clip_keys_from_ldm(state_dict)
    _refuse_unknown(state_dict, targets, "the OpenCLIP text layout")
    kept = _count(state_dict, r"transformer\.resblocks\.(\d{1,3})\.") - skip_last
    out: dict[str, Tensor] = {}
    for key, names in targets.items():
        block = re.match(r"transformer\.resblocks\.(\d{1,3})\.", key)
        if names and (block is None or int(block[1]) < kept):
            value = state_dict[key]
            if len(names) > 1 and (value.ndim == 0 or value.shape[0] % len(names) or not len(value)):
                raise ModelError(
                    f"wrong shapes: {key} is {tuple(value.shape)}; expected {len(names)} equal parts for query, key "
                    "and value. The file is of another model."
                )
            out.update(zip(names, value.chunk(len(names)) if len(names) > 1 else (value,), strict=True))
    return out


def text_to_open_clip(state_dict: StateDict) -> dict[str, Tensor]:
    """State dict of a `CLIPTextModel` under OpenCLIP names, the inverse of ``text_from_open_clip(…, skip_last=0)``.

    Raises ModelError listing the keys that have no OpenCLIP name.
    """
    state_dict = text_from_ldm(state_dict)
    names = open_clip_keys_to_ldm(state_dict)
    _refuse_unknown(state_dict, names, "a CLIPTextModel with an OpenCLIP counterpart")
    out = {new: state_dict[key] for key, new in names.items() if ".in_proj_" not in new}
    for new in {new for new in names.values() if ".in_proj_" in new}:
        (parts,) = open_clip_keys_from_ldm([new]).values()
        out[new] = torch.cat([state_dict[part] for part in parts])
    return out


def _open_clip_modules(keys: Iterable[str]) -> Modules:
    modules: Modules = [
        ("token_embedding", "embeddings.token_embedding", _SAME),
        ("ln_final", "final_layer_norm", _SAME),
    ]
    for i in range(_count(keys, r"transformer\.resblocks\.(\d{1,3})\.")):
        for ldm, name in _OPEN_CLIP_BLOCK.items():
            modules.append((f"transformer.resblocks.{i}.{ldm}", f"encoder.layers.{i}.{name}", _SAME))
    return modules


# The whole file


def to_published(unet: StateDict, vae: StateDict, text_encoder: StateDict) -> dict[str, Tensor]:
    """State dict of one published checkpoint (layout of ``sd-v1.5-4view``) from three module state dicts.

    unet: of a `UNet2DConditionModel`. vae: of an `AutoencoderKL`. text_encoder: of a `CLIPTextModel` of any
    transformers version. `checkpoint.load` reads the result back, once saved.
    Raises ModelError listing keys that have no published name.
    """
    return (
        with_prefix(unet_to_ldm(unet), UNET_PREFIX)
        | with_prefix(vae_to_ldm(vae), VAE_PREFIX)
        | with_prefix(text_to_ldm(text_encoder), TEXT_PREFIX)
    )


def with_prefix(state_dict: StateDict, prefix: str) -> dict[str, Tensor]:
    """The same state dict with a prefix before every key."""
    return {prefix + key: value for key, value in state_dict.items()}


def without_prefix(state_dict: StateDict, prefix: str) -> dict[str, Tensor]:
    """The entries whose keys start with the prefix, without it."""
    return {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}


def list_keys(keys: Iterable[str], limit: int = 10) -> str:
    """Keys as a message shows them: sorted, the first few, and how many there are."""
    found = sorted(keys)
    return f"{len(found)} ({', '.join(found[:limit])}{', …' if len(found) > limit else ''})"


# Shared


def _rename(keys: list[str], modules: Modules, from_ldm: bool) -> dict[str, str]:
    """Old key → new key for each key that lies in one of the modules."""
    table: dict[str, tuple[str, Mapping[str, str]]] = {}
    for ldm, diffusers, names in modules:
        if from_ldm:
            table[ldm] = (diffusers, names)
        else:
            table[diffusers] = (ldm, {value: key for key, value in names.items()})
    renamed: dict[str, str] = {}
    for key in keys:
        module = key
        while module not in table and "." in module:
            module = module.rpartition(".")[0]
        if module not in table or module == key:
            continue
        new, names = table[module]
        part, _, parameter = key[len(module) + 1 :].rpartition(".")
        if not names:
            renamed[key] = new + key[len(module) :]
        elif part in names:
            renamed[key] = f"{new}.{names[part]}.{parameter}"
    return renamed


def _convert(state_dict: StateDict, names: Mapping[str, str], layout: str) -> dict[str, Tensor]:
    _refuse_unknown(state_dict, names, layout)
    return {new: state_dict[key] for key, new in names.items()}


def _refuse_unknown(keys: Iterable[str], known: Iterable[str], layout: str) -> None:
    unknown = set(keys) - set(known)
    if unknown:
        raise ModelError(
            f"Keys that do not belong to {layout}: {list_keys(unknown)}. The weights are of another model or another "
            "layout; pass the part of the state dict that belongs to this network."
        )


def _count(keys: Iterable[str], pattern: str) -> int:
    """One more than the highest number the pattern finds at the start of a key; 0 when it finds none."""
    compiled = re.compile(pattern)
    return max((int(m[1]) + 1 for m in map(compiled.match, keys) if m), default=0)


def _modules_of(keys: Iterable[str], depth: int) -> Iterable[str]:
    return (".".join(key.split(".")[:depth]) for key in keys)
