"""A checkpoint in SD1.5's layout that ComfyUI's own loader takes for one, as small as that loader allows.

The text encoder has its true shape, since the loader knows no other (12 layers of width 768: 123 million weights, a
quarter of a gigabyte in half precision). The U-Net has the true width of 320 at a single resolution, and the decoder is
the tiny one that the loader also knows (TAESD). All weights are random: a picture means nothing, except that it is the
same for the same words.
"""

import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from invert3d_core.mvdream.key_maps import unet_to_ldm

WIDTH = 768


def write_checkpoint(path: Path, seed: int = 0) -> Tensor:  # (49408,768)
    """Write it; the table of its text encoder."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[torch.Size, Tensor] = {}  # layers of one shape get the same weights: drawing them takes longest
    state: dict[str, Tensor] = {}
    for key, shape in _shapes().items():
        if len(shape) > 1:
            if shape not in drawn:
                drawn[shape] = torch.randn(shape, generator=generator)
            # Each layer keeps the size of what passes through it, so that nothing overflows in half precision.
            value = drawn[shape] * (0.02 if "embedding" in key else _fan_in(shape) ** -0.5)
        else:
            value = torch.full(shape, 1.0 if key.endswith("weight") else 0.0)
        state[key] = value.to(torch.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(state, path)
    return state["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"].float()


def row_of_word(comfyui: Path, table: Tensor, word: str) -> Tensor:  # (49408,768) -> (1,768)
    """The table's row of a word that is one id in the vocabulary of ComfyUI's tokenizer."""
    vocabulary = json.loads((comfyui / "comfy" / "sd1_tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    return table[vocabulary[f"{word}</w>"]].reshape(1, -1)


def _shapes() -> dict[str, torch.Size]:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320,),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=WIDTH,
            attention_head_dim=8,
        )
        text = CLIPTextModel(
            CLIPTextConfig(hidden_size=WIDTH, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
    shapes = {f"model.diffusion_model.{key}": value.shape for key, value in unet_to_ldm(unet.state_dict()).items()}
    for key, value in text.state_dict().items():
        if not key.endswith("position_ids"):
            shapes[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value.shape
    return shapes | {f"first_stage_model.{key}": torch.Size(shape) for key, shape in _tiny_decoder().items()}


def _tiny_decoder() -> dict[str, tuple[int, ...]]:
    """Shapes of TAESD by name (Ollin Boer Bohan's tiny autoencoder): convolutions, and blocks of three."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, taken: int, given: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (given, taken, 3, 3)
        if bias:
            shapes[f"{name}.bias"] = (given,)

    def blocks(part: str, places: tuple[int, ...]) -> None:
        for place in places:
            for layer in (0, 2, 4):
                convolution(f"{part}.{place}.conv.{layer}", 64, 64)

    convolution("taesd_encoder.0", 3, 64)
    blocks("taesd_encoder", (1, 3, 4, 5, 7, 8, 9, 11, 12, 13))
    for place in (2, 6, 10):
        convolution(f"taesd_encoder.{place}", 64, 64, bias=False)
    convolution("taesd_encoder.14", 64, 4)
    convolution("taesd_decoder.1", 4, 64)
    blocks("taesd_decoder", (3, 4, 5, 8, 9, 10, 13, 14, 15, 18))
    for place in (7, 12, 17):
        convolution(f"taesd_decoder.{place}", 64, 64, bias=False)
    convolution("taesd_decoder.19", 64, 3)
    return shapes


def _fan_in(shape: torch.Size) -> int:
    return shape[1:].numel()
