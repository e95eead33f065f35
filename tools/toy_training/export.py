"""From training state to the shipped file: the published ldm layout in half precision, with what it does not say."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from invert3d_core.mvdream.key_maps import to_published
from invert3d_core.mvdream.metadata import ModelInfo
from invert3d_core.toy.vocabulary import tokenizer_json

from .networks import HEADS, UNET_CONFIG, VAE_CONFIG, on_sphere, word_table
from .pool import ELEVATIONS_DEG, FILL, FOV_Y_DEG, IMAGE_SIZE
from .prompts import BEGIN, END

INFO = ModelInfo(
    title="Invert3D toy model",
    licence="Apache-2.0",
    base="toy",
    prediction_type="v_prediction",
    scaling_factor=1.0,
    unet_heads=HEADS,
    vae_norm_groups=VAE_CONFIG["norm_num_groups"],
    text_heads=HEADS,
    bos_id=BEGIN,
    eos_id=END,
    pad_id=END,
    image_size=IMAGE_SIZE,
    latent_size=UNET_CONFIG["sample_size"],
    fov_y_deg=FOV_Y_DEG,
    elevation_range_deg=ELEVATIONS_DEG,
    fill=FILL,
    front_azimuth_deg=0.0,
    steps=25,
    guidance_scale=3.0,
)
"""What the weights do not say."""


def standardised_vae(vae: nn.Module, mean: Tensor, deviation: Tensor) -> dict[str, Tensor]:
    """The VAE's weights with latents of mean 0 and deviation 1, folded into the two quantisation convolutions."""
    state = {key: value.detach().float().cpu().clone() for key, value in vae.state_dict().items()}
    channels = len(mean)
    scale = torch.cat([1 / deviation, torch.ones_like(deviation)]).view(-1, 1, 1, 1)
    state["quant_conv.weight"] *= scale
    shift = torch.cat([mean / deviation, 2 * deviation.log()])
    state["quant_conv.bias"] = state["quant_conv.bias"] * scale.flatten() - shift
    weight = state["post_quant_conv.weight"]  # (C,C,1,1), acts on z * deviation + mean
    state["post_quant_conv.bias"] += weight[:, :, 0, 0] @ mean
    state["post_quant_conv.weight"] = weight * deviation.view(1, channels, 1, 1)
    return state


def export(folder: Path, unet: nn.Module, text: nn.Module, vae: nn.Module, mean: Tensor, deviation: Tensor) -> Path:
    """Write ``model.safetensors`` and ``tokenizer.json`` into a folder; returns the path of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    words = word_table(text)
    text_state = {key: value.detach().clone() for key, value in text.state_dict().items()}
    key = next(key for key in text_state if key.endswith("token_embedding.weight"))
    text_state[key] = on_sphere(words.weight.detach().float())
    states = unet.state_dict(), standardised_vae(vae, mean, deviation), text_state
    state = {
        key: value.detach().to("cpu", torch.float16).contiguous()
        for key, value in to_published(*states).items()
        if not key.endswith("position_ids")
    }
    path = folder / "model.safetensors"
    # One entry alone: safetensors writes several in no fixed order, and the file's hash must be that of its content.
    save_file(state, path, metadata=INFO.to_metadata())
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    return path
