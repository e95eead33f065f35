"""Networks from state dicts: sizes read off the weights, every key accounted for.

Modules are made without memory (on the meta device) and take the tensors over, so a full-size network costs no more
than its weights. What no weight shows (numbers of heads, groups of norms, activation) is an argument.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ..errors import ModelError
from ..tokens import ENCODER_WIDTHS
from . import key_maps
from .attention import make_multiview
from .metadata import METADATA_KEY

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

logger = logging.getLogger("invert3d")

ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)
FileNames = Callable[[Iterable[str]], Mapping[str, str]]
"""From a network's own keys to what the file calls them, for messages."""


def unet_from_state_dict(
    state_dict: key_maps.StateDict,
    num_attention_heads: int | Sequence[int] | None = None,
    norm_groups: int = 32,
) -> "UNet2DConditionModel":
    """The multi-view U-Net of a state dict in any known layout, sizes read off the weights.

    state_dict: names of the published file (ldm) or of diffusers, with the published prefix (other keys are then left
        alone), behind a wrapper's ``unet.``, or without. Its tensors are taken over, not copied, in their dtype.
    num_attention_heads: one number or one per level, highest resolution first, which no weight shows. None takes the
        published rule: heads of width 64 with linear projections (SD2.1), 8 heads with convolutions (SD1.5).
    norm_groups: groups of the group norms.
    Returns a stock `UNet2DConditionModel` after `make_multiview`, in eval mode.

    Raises ModelError listing unknown and missing keys and wrong shapes.
    """
    from diffusers import UNet2DConditionModel

    file_prefix, part = _part(state_dict, key_maps.UNET_PREFIX, key_maps.UNET_WRAPPER)
    names = key_maps.unet_keys_to_diffusers(part)
    unmapped = [file_prefix + key for key in part if key not in names]
    weights = {new: part[key] for key, new in names.items()}
    with _telling(unmapped, "U-Net"):
        config = _unet_config(weights, num_attention_heads, norm_groups)

    def file_names(keys: Iterable[str]) -> Mapping[str, str]:
        keys = list(keys)
        original = {key: key for key in keys}
        if key_maps.is_ldm_unet(part):
            original = key_maps.unet_keys_to_ldm(keys)
        original |= {new: key for key, new in names.items()}
        return {key: file_prefix + name for key, name in original.items()}

    return make_multiview(_build(lambda: UNet2DConditionModel(**config), weights, file_names, "U-Net", unmapped))


def vae_from_state_dict(state_dict: key_maps.StateDict, norm_groups: int = 32) -> "AutoencoderKL":
    """The VAE of a state dict in any known layout, sizes read off the weights; see `unet_from_state_dict`.

    Raises ModelError listing unknown and missing keys and wrong shapes.
    """
    from diffusers import AutoencoderKL

    file_prefix, part = _part(state_dict, key_maps.VAE_PREFIX)
    ldm = key_maps.is_ldm_vae(part)
    known = key_maps.vae_keys_from_ldm(part) if ldm else part
    unmapped = [file_prefix + key for key in part if key not in known]
    weights = key_maps.vae_to_diffusers({key: part[key] for key in known})
    with _telling(unmapped, "VAE"):
        config = _vae_config(weights, norm_groups)

    def file_names(keys: Iterable[str]) -> Mapping[str, str]:
        keys = list(keys)
        original = key_maps.vae_keys_to_ldm(keys) if ldm else {key: key for key in keys}
        return {key: file_prefix + new for key, new in original.items()}

    return _build(lambda: AutoencoderKL(**config), weights, file_names, "VAE", unmapped)


def text_encoder_from_state_dict(
    state_dict: key_maps.StateDict,
    num_attention_heads: int | None = None,
    activation: str | None = None,
    skip_last: int = 1,
) -> "CLIPTextModel":
    """The text encoder of a state dict in a published layout: CLIP as transformers names it, or an OpenCLIP text tower.

    state_dict: with one of the published prefixes (other keys are then left alone) or without.
    num_attention_heads: None takes heads of width 64, as every published CLIP has.
    activation: "quick_gelu" or "gelu"; None takes that of CLIP-L, or of OpenCLIP where the names are OpenCLIP's.
    skip_last: last blocks of an OpenCLIP tower to leave out; MVDream uses the penultimate block's output.
    The encoder's `last_hidden_state` is what the U-Net is conditioned on.

    Raises ModelError listing unknown and missing keys and wrong shapes.
    """
    open_clip = any(key.endswith("positional_embedding") for key in state_dict)
    if open_clip:
        file_prefix, part = _part(state_dict, key_maps.OPEN_CLIP_PREFIX)
        known = key_maps.open_clip_keys_from_ldm(part)
        weights = key_maps.text_from_open_clip({key: part[key] for key in known}, skip_last)
    else:
        file_prefix, part = _part(state_dict, key_maps.TEXT_PREFIX, "text_model.")
        known = part
        weights = key_maps.text_from_ldm(part)
    unmapped = [file_prefix + key for key in part if key not in known]

    def file_names(keys: Iterable[str]) -> Mapping[str, str]:
        plain = {key.removeprefix("text_model."): key for key in keys}
        named = key_maps.open_clip_keys_to_ldm(plain) if open_clip else {key: key for key in plain}
        return {plain[key]: file_prefix + name for key, name in named.items()}

    activation = activation or ("gelu" if open_clip else "quick_gelu")
    with _telling(unmapped, "text encoder"):
        config = _text_config(weights, num_attention_heads, activation)
    return _text_encoder(config, weights, file_names, unmapped)


# Sizes


def _unet_config(weights: key_maps.StateDict, heads: int | Sequence[int] | None, norm_groups: int) -> dict[str, Any]:
    """Arguments of `UNet2DConditionModel` that fit the weights (diffusers' names)."""

    def count(pattern: str) -> int:
        return len({m[1] for m in (re.match(pattern, key) for key in weights) if m})

    levels = count(r"down_blocks\.(\d+)\.")
    channels = tuple(_size(weights, f"down_blocks.{b}.resnets.0.conv1.weight", 0, "U-Net") for b in range(levels))
    down_attention = [count(rf"down_blocks\.{b}\.attentions\.(\d+)\.") > 0 for b in range(levels)]
    up_attention = [count(rf"up_blocks\.{b}\.attentions\.(\d+)\.") > 0 for b in range(levels)]
    depth = max(1, count(r"mid_block\.attentions\.0\.transformer_blocks\.(\d+)\."))
    linear = _weight(weights, "mid_block.attentions.0.proj_in.weight", "U-Net").ndim == 2
    context = _size(weights, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1, "U-Net")
    camera = "class_embedding.linear_1.weight"
    return {
        "sample_size": 32,
        "in_channels": _size(weights, "conv_in.weight", 1, "U-Net"),
        "out_channels": _size(weights, "conv_out.weight", 0, "U-Net"),
        "block_out_channels": channels,
        "layers_per_block": tuple(count(rf"down_blocks\.{b}\.resnets\.(\d+)\.") for b in range(levels)),
        "down_block_types": tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in down_attention),
        "up_block_types": tuple("CrossAttnUpBlock2D" if has else "UpBlock2D" for has in up_attention),
        "transformer_layers_per_block": depth,
        "cross_attention_dim": context,
        # diffusers calls the number of heads attention_head_dim.
        "attention_head_dim": _unet_heads(heads, channels, linear, context),
        "use_linear_projection": linear,
        "time_embedding_dim": _size(weights, "time_embedding.linear_1.weight", 0, "U-Net"),
        "norm_num_groups": norm_groups,
        "class_embed_type": "projection" if camera in weights else None,
        "projection_class_embeddings_input_dim": _size(weights, camera, 1, "U-Net") if camera in weights else None,
    }


def _unet_heads(
    heads: int | Sequence[int] | None, channels: Sequence[int], linear: bool, context: int
) -> tuple[int, ...]:
    """Heads per level: as given, else by the published rule of the form that the projections show."""
    if heads is None:
        per_level = tuple(c // 64 if c % 64 == 0 else 0 for c in channels) if linear else (8,) * len(channels)
        if context not in ENCODER_WIDTHS.values():
            logger.warning(
                "The number of attention heads is not in the weights; %s is assumed for a U-Net whose text width is "
                "%d. Say it in the file's metadata (unet_heads in '%s').",
                "8" if not linear else "width 64",
                context,
                METADATA_KEY,
            )
    else:
        per_level = (heads,) * len(channels) if isinstance(heads, int) else tuple(heads)
    if len(per_level) != len(channels) or any(h < 1 or c % h for h, c in zip(per_level, channels, strict=True)):
        raise ModelError(
            f"A U-Net with {', '.join(map(str, channels))} channels cannot have {', '.join(map(str, per_level))} "
            "attention heads. The number is not in the weights: pass num_attention_heads, one number or one per level, "
            f"or write unet_heads into the file's '{METADATA_KEY}' metadata."
        )
    return per_level


def _vae_config(weights: key_maps.StateDict, norm_groups: int) -> dict[str, Any]:
    """Arguments of `AutoencoderKL` that fit the weights."""
    levels = len({m[1] for m in (re.match(r"encoder\.down_blocks\.(\d+)\.", key) for key in weights) if m})
    blocks = {m[1] for m in (re.match(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.", key) for key in weights) if m}
    channels = tuple(_size(weights, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 0, "VAE") for i in range(levels))
    return {
        "in_channels": _size(weights, "encoder.conv_in.weight", 1, "VAE"),
        "out_channels": _size(weights, "decoder.conv_out.weight", 0, "VAE"),
        "latent_channels": _size(weights, "decoder.conv_in.weight", 1, "VAE"),
        "block_out_channels": channels,
        "layers_per_block": len(blocks),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": norm_groups,
    }


def _text_config(weights: key_maps.StateDict, heads: int | None, activation: str) -> "CLIPTextConfig":
    """A configuration that fits the weights, which are named as transformers 5 names them."""
    from transformers import CLIPTextConfig

    vocabulary = _size(weights, "embeddings.token_embedding.weight", 0, "text encoder")
    width = _size(weights, "embeddings.token_embedding.weight", 1, "text encoder")
    if heads is None and width % 64 == 0:
        heads = width // 64
    if not heads or width % heads:
        raise ModelError(
            f"A text encoder of width {width} cannot have {heads or 'heads of width 64'}: the number of attention "
            f"heads is not in the weights. Pass num_attention_heads, or write text_heads into its '{METADATA_KEY}' "
            "metadata."
        )
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=_size(weights, "encoder.layers.0.mlp.fc1.weight", 0, "text encoder"),
        num_hidden_layers=len({m[1] for m in (re.match(r"encoder\.layers\.(\d+)\.", key) for key in weights) if m}),
        num_attention_heads=heads,
        max_position_embeddings=_size(weights, "embeddings.position_embedding.weight", 0, "text encoder"),
        hidden_act=activation,
        # Only the pooled output, which nothing here reads, depends on the special ids.
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def _text_encoder(
    config: "CLIPTextConfig", weights: key_maps.StateDict, file_names: FileNames, unmapped: Sequence[str]
) -> "CLIPTextModel":
    """A `CLIPTextModel` of the weights, which are named as transformers 5 names them."""
    from transformers import CLIPTextModel

    with torch.device("meta"):
        names = CLIPTextModel(config).state_dict()
    # transformers 4 puts everything under text_model, transformers 5 does not.
    prefix = "text_model." if any(key.startswith("text_model.") for key in names) else ""
    return _build(
        lambda: CLIPTextModel(config),
        key_maps.with_prefix(weights, prefix),
        file_names,
        "text encoder",
        unmapped,
    )


# Shared


def _build(
    make: Callable[[], ModuleT],
    weights: key_maps.StateDict,
    file_names: FileNames,
    what: str,
    unmapped: Sequence[str],
) -> ModuleT:
    """A module that takes the weights over, all of them and nothing else.

    unmapped: keys that have no place in it, as the file names them.
    """
    try:
        with torch.device("meta"):
            module = make()
    except ValueError as error:
        raise ModelError(
            f"The weights of the {what} have sizes that make no network ({error}). What the weights do not show "
            "(heads, groups of norms) may be wrong, or the file is of another model."
        ) from error
    expected = {key: value for key, value in module.state_dict().items() if not key.endswith("position_ids")}
    missing, unknown = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    shapes = [key for key in expected.keys() & weights.keys() if expected[key].shape != weights[key].shape]
    if missing or unknown or unmapped or shapes:
        name = file_names(expected.keys() | weights.keys())
        unknown = [*(name.get(key, key) for key in unknown), *unmapped]
        problems = [
            f"missing keys: {key_maps.list_keys(name.get(key, key) for key in missing)}" if missing else "",
            f"unknown keys: {key_maps.list_keys(unknown)}" if unknown else "",
            "wrong shapes: "
            + key_maps.list_keys(
                f"{name.get(key, key)} {tuple(weights[key].shape)} instead of {tuple(expected[key].shape)}"
                for key in shapes
            )
            if shapes
            else "",
        ]
        raise ModelError(
            f"The weights of the {what} do not make a whole network: {'; '.join(filter(None, problems))}. The file is "
            "incomplete or of another model."
        )
    module.load_state_dict(dict(weights), strict=False, assign=True)
    for name, buffer in list(module.named_buffers()):
        # A constant that is not in files; the meta device has left it without values.
        if name.endswith("position_ids"):
            owner = module.get_submodule(name.rpartition(".")[0])
            device = next(module.parameters()).device
            owner.position_ids = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
    return module.eval()


def _part(state_dict: key_maps.StateDict, *prefixes: str) -> tuple[str, dict[str, Tensor]]:
    """The entries under the first prefix that occurs, without it, or everything if none does; and the prefix."""
    for prefix in prefixes:
        part = key_maps.without_prefix(state_dict, prefix)
        if part:
            return prefix, part
    return "", dict(state_dict)


@contextlib.contextmanager
def _telling(unmapped: Sequence[str], what: str) -> Iterator[None]:
    """Inside, an error also lists the keys of the file that have no place in the network."""
    try:
        yield
    except ModelError as error:
        if not unmapped:
            raise
        raise ModelError(f"{error} The {what} also has unknown keys: {key_maps.list_keys(unmapped)}.") from error


def _weight(weights: key_maps.StateDict, key: str, what: str) -> Tensor:
    if key not in weights:
        raise ModelError(
            f"The {what} is incomplete: missing keys: {key}, from which its sizes are read. Restore the file."
        )
    return weights[key]


def _size(weights: key_maps.StateDict, key: str, dim: int, what: str) -> int:
    shape = _weight(weights, key, what).shape
    if dim >= len(shape):
        raise ModelError(f"The {what} has wrong shapes: {key} is {tuple(shape)}. The file is of another model.")
    return shape[dim]
