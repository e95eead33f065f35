"""A multi-view model of real classes with random weights, small enough to train a token in a second."""

import math
from typing import Any

import tokenizers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from invert3d_core.cameras import orbit
from invert3d_core.inversion import ViewSet
from invert3d_core.mvdream import ModelInfo, MVDream, Tokenizer

WORDS = [
    "[pad]",
    "[begin]",
    "[end]",
    "[unknown]",
    "a",
    "red",
    "blue",
    "cup",
    "photo",
    "of",
    ",",
    "3d",
    "asset",
    "object",
]
PLACES = 16


def randomise(module, seed):
    """Weights from a generator of their own, of the size that keeps signals alive."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            value = noise / math.sqrt(parameter[0].numel())
        else:
            value = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
        parameter.data = value
    return module.eval().requires_grad_(False)


def make_tokenizer():
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[unknown]")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return Tokenizer(backend, max_length=PLACES, bos_id=1, eos_id=2, pad_id=0)


def make_model(prediction_type="v_prediction", width=16, base="toy"):
    unet_config: dict[str, Any] = {
        "sample_size": 4,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": width,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 16,
        "use_linear_projection": True,
    }
    vae_config: dict[str, Any] = {
        "block_out_channels": (4, 4, 4),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 2,
    }
    unet, vae = UNet2DConditionModel(**unet_config), AutoencoderKL(**vae_config)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(WORDS),
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=PLACES,
        )
    )
    info = ModelInfo(
        title="tiny",
        base=base,
        model_hash="0" * 64,
        prediction_type=prediction_type,
        scaling_factor=1.0,
        image_size=16,
        latent_size=4,
        front_azimuth_deg=90.0,
        steps=4,
    )
    unet, vae, text = (randomise(module, seed) for seed, module in enumerate((unet, vae, text)))
    return MVDream(unet, vae, text, make_tokenizer(), None, info)


def make_views(seed=0, azimuths=8, elevation=10.0, size=16):
    """Random pictures around an orbit whose centre is not the origin."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(azimuths, size, size, 3, generator=generator)
    masks = torch.zeros(azimuths, size, size)
    masks[:, 4:12, 4:12] = 1.0
    angles = torch.arange(azimuths) * (360.0 / azimuths) + 7.0
    cams = orbit(angles, elevation, 3.0, 40.0, size, size, target=(0.5, -0.25, 1.0))
    return ViewSet(images, cams, masks)
