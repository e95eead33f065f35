"""A checkpoint folder of an untrained model with the toy's words and very small networks, and splats to go with it."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch

from invert3d_core import splats
from invert3d_core.cli.main import main
from invert3d_core.mvdream import ModelInfo, key_maps
from invert3d_core.splats import GaussianSplats
from invert3d_core.toy.vocabulary import MAX_LENGTH, tokenizer_json, words

INFO = ModelInfo(
    title="tiny",
    base="tiny",
    prediction_type="v_prediction",
    scaling_factor=1.0,
    unet_heads=2,
    unet_norm_groups=4,
    vae_norm_groups=2,
    text_heads=2,
    bos_id=0,
    eos_id=1,
    pad_id=1,
    image_size=16,
    latent_size=4,
    front_azimuth_deg=0.0,
    steps=4,
    guidance_scale=2.0,
)


class Run(NamedTuple):
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """``run("info", path)``: a command in this process."""

    def call(*arguments: object) -> Run:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Run(code, *capsys.readouterr())

    return call


def randomised(module: Any, seed: int) -> Any:
    """Weights from a generator of their own, of the size that keeps signals alive."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data = noise / math.sqrt(parameter[0].numel())
        else:
            parameter.data = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the checkpoint."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet_config: dict[str, Any] = {
        "sample_size": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
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
        "norm_num_groups": 2,
    }
    text_config = CLIPTextConfig(
        vocab_size=len(words()),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=INFO.bos_id,
        eos_token_id=INFO.eos_id,
        pad_token_id=INFO.pad_id,
    )
    networks = (UNet2DConditionModel(**unet_config), AutoencoderKL(**vae_config), CLIPTextModel(text_config))
    states = (randomised(network, seed).state_dict() for seed, network in enumerate(networks))
    folder = tmp_path_factory.mktemp("tiny")
    safetensors.torch.save_file(
        key_maps.to_published(*states), folder / "model.safetensors", metadata=INFO.to_metadata()
    )
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def other_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same networks as another model, whose tokens are not the first one's."""
    folder = tmp_path_factory.mktemp("other")
    state = safetensors.torch.load_file(model / "model.safetensors")
    info = replace(INFO, title="other", base="other")
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata=info.to_metadata())
    (folder / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    return folder


@pytest.fixture(scope="session")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ball off the origin, red where its front is (+z, up +y), as a .ply that says so."""
    generator = torch.Generator().manual_seed(3)
    directions = torch.nn.functional.normalize(torch.randn(300, 3, generator=generator), dim=1)
    rgb = torch.where(directions[:, 2:] > 0.3, torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.2, 0.9]))
    splat = GaussianSplats(
        positions=directions + torch.tensor([2.0, -1.0, 0.5]),
        scales=torch.full((300, 3), 0.12),
        rotations=torch.tensor([1.0, 0, 0, 0]).repeat(300, 1),
        opacities=torch.full((300, 1), 0.95),
        sh=((rgb - 0.5) / 0.28209479177387814)[:, None],
        comment='up="+y", front="+z"',
    )
    path = tmp_path_factory.mktemp("splats") / "ball.ply"
    splats.save(splat, path)
    return path


@pytest.fixture(scope="session")
def token(model: Path, ball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token of the ball, two steps from "red hat" in two vectors."""
    path = tmp_path_factory.mktemp("token") / "thing.safetensors"
    command = ["invert", ball, "--model", model, "--name", "thing", "--out", path]
    options = ["--words", "red hat", "--vectors", "2", "--steps", "2", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", io.StringIO())
        assert main([str(argument) for argument in (*command, *options)]) == 0
    return path
