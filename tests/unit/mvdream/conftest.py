"""Small networks with the shapes of the built-in model, drawn with a fixed seed, and a checkpoint file of them."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from invert3d_core.mvdream import ModelInfo, MVDream, Tokenizer, key_maps
from invert3d_core.mvdream.attention import make_multiview

WORDS = ["<s>", "</s>", "<unk>", ",", "a", "red", "blue", "cup", "3d", "asset"]
LENGTH = 12
INFO = ModelInfo(
    title="tiny",
    base="tiny",
    scaling_factor=0.5,
    unet_heads=(2, 4, 4),
    text_heads=2,
    vae_norm_groups=8,
    bos_id=0,
    eos_id=1,
    pad_id=1,
    image_size=16,
    latent_size=8,
    front_azimuth_deg=0.0,
    steps=2,
    guidance_scale=2.0,
)


def seeded(make: Any) -> Any:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return make().eval().requires_grad_(False)


def make_unet(**changes: Any) -> Any:
    from diffusers import UNet2DConditionModel

    config: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 24,
        "attention_head_dim": (2, 4, 4),
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 16,
    }
    return seeded(lambda: make_multiview(UNet2DConditionModel(**{**config, **changes})))


def make_vae() -> Any:
    from diffusers import AutoencoderKL

    return seeded(
        lambda: AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=8,
            latent_channels=4,
        )
    )


def make_text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return seeded(
        lambda: CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(WORDS),
                hidden_size=24,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=LENGTH,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        )
    )


def word_backend() -> Any:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers

    backend: Any = Backend(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(word_backend(), max_length=LENGTH, bos_id=0, eos_id=1, pad_id=1)


@pytest.fixture
def model(tokenizer: Tokenizer) -> MVDream:
    return MVDream(make_unet(), make_vae(), make_text_encoder(), tokenizer, info=INFO)


@pytest.fixture
def published(model: MVDream) -> dict[str, torch.Tensor]:
    """State dict of the model as one published file."""
    return key_maps.to_published(model.unet.state_dict(), model.vae.state_dict(), model.text_encoder.state_dict())


@pytest.fixture
def checkpoint(published: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    """A folder with ``model.safetensors`` and ``tokenizer.json``; returns the folder."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    safetensors.torch.save_file(published, folder / "model.safetensors", metadata=INFO.to_metadata())
    word_backend().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def draw() -> Any:
    """``draw(*shape)``: numbers from one seeded generator."""
    generator = torch.Generator().manual_seed(1)
    return lambda *shape: torch.randn(shape, generator=generator)
