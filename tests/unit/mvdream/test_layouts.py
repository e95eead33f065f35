import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from invert3d_core.errors import ModelError
from invert3d_core.mvdream import MVDream, inspection, key_maps, layouts, load
from invert3d_core.mvdream.checkpoint import find_checkpoint

from .conftest import word_backend
from .published_layouts import UNETS, save, write_folder
from .test_checkpoint import same_model

# What configurations of diffusers and transformers say of the tiny model, and what none of them says.
CONFIGS = {
    "unet/config.json": {"attention_head_dim": [2, 4, 4], "norm_num_groups": 32},
    "vae/config.json": {"scaling_factor": 0.5, "norm_num_groups": 8},
    "text_encoder/config.json": {"num_attention_heads": 2, "hidden_act": "quick_gelu"},
    "scheduler/scheduler_config.json": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "epsilon",
    },
}
UNSTATED = {"bos_id": 0, "eos_id": 1, "pad_id": 1, "image_size": 16, "latent_size": 8, "base": "tiny"}


@pytest.fixture
def states(model: MVDream) -> tuple[dict[str, Tensor], ...]:
    return model.unet.state_dict(), model.vae.state_dict(), model.text_encoder.state_dict()


def make(tmp_path: Path, layout: str, states: Any, configs: Any = CONFIGS, **options: Any) -> Path:
    unet, vae, text = states
    folder = write_folder(tmp_path / layout, layout, unet, vae, text, configs, **options)
    (folder / "tokenizer").mkdir()
    word_backend().save(str(folder / "tokenizer" / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("layout", UNETS)
def test_every_folder_layout_gives_the_model(
    layout: str, states: Any, model: MVDream, draw: Any, tmp_path: Path
) -> None:
    folder = make(tmp_path, layout, states)
    opened = layouts.open_checkpoint(folder)
    assert opened.layout.name == layout and opened.path == folder and opened.layout.is_folder
    assert same_model(load(folder, "cpu", metadata=UNSTATED), model, draw)
    # The file that stands for the folder means the folder.
    file = find_checkpoint(folder)
    assert file == opened.main == folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert same_model(load(file, "cpu", metadata=UNSTATED), model, draw)


@pytest.mark.parametrize("layout", ["folder-ldm", "folder-camera-proj"])
@pytest.mark.parametrize(
    ("dtype", "variant", "ending"), [("float16", ".fp16", ".safetensors"), ("bfloat16", "", ".bin")]
)
def test_half_precision_variants_and_pickled_weights(
    layout: str, dtype: str, variant: str, ending: str, states: Any, model: MVDream, draw: Any, tmp_path: Path
) -> None:
    half = getattr(torch, dtype)
    folder = make(tmp_path, layout, states, dtype=half, variant=variant, ending=ending)
    assert inspection.inspect(folder)["types"] == [dtype]
    loaded = load(folder, "cpu", half, metadata=UNSTATED)
    assert {p.dtype for m in (loaded.unet, loaded.vae, loaded.text_encoder) for p in m.parameters()} == {half}
    assert torch.equal(loaded.unet.conv_in.weight, model.unet.conv_in.weight.to(half))
    whole = load(folder, "cpu", metadata=UNSTATED)
    rounded = model.unet.conv_in.weight.to(half).float()
    assert whole.dtype == torch.float32 and torch.equal(whole.unet.conv_in.weight, rounded)
    x, text, cameras = draw(4, 4, 8, 8), draw(1, 12, 24), draw(4, 16)
    torch.testing.assert_close(
        whole.predict_noise(x, 10, text, cameras), model.predict_noise(x, 10, text, cameras), atol=0.1, rtol=0
    )


def test_full_precision_goes_before_a_variant(states: Any, model: MVDream, draw: Any, tmp_path: Path) -> None:
    folder = make(tmp_path, "folder-ldm", states)
    write_folder(folder, "folder-ldm", *states, dtype=torch.float16, variant=".fp16")
    assert same_model(load(folder, "cpu", metadata=UNSTATED), model, draw)


def test_shards(states: Any, model: MVDream, draw: Any, tmp_path: Path) -> None:
    folder = make(tmp_path, "folder-diffusers", states)
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    keys = sorted(states[0])
    names = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    halves = keys[::2], keys[1::2]
    for name, half in zip(names, halves, strict=True):
        save({key: states[0][key] for key in half}, folder / "unet" / name)
    whole.unlink()
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    table = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    index.write_text(json.dumps({"weight_map": table}))
    for dtype in (None, torch.bfloat16):  # mapped, and cast shard by shard
        loaded = load(folder, "cpu", dtype, metadata=UNSTATED)
        expected = model.unet.state_dict()
        assert all(torch.equal(v, expected[k].to(v.dtype)) for k, v in loaded.unet.state_dict().items())
    (folder / "unet" / names[1]).unlink()
    with pytest.raises(ModelError, match=f"lacks {names[1]}"):
        load(folder, "cpu")
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(ModelError, match="names no files beside itself"):
        load(folder, "cpu")


def test_old_names_of_the_vaes_attention(states: Any, model: MVDream, draw: Any, tmp_path: Path) -> None:
    unet, vae, text = states
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        vae = {key.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): value for key, value in vae.items()}
    folder = make(tmp_path, "folder-diffusers", (unet, vae, text))
    assert same_model(load(folder, "cpu", metadata=UNSTATED), model, draw)


@pytest.mark.parametrize(
    "config",
    [
        {"num_attention_heads": [2, 4, 4]},
        {"attention_head_dim": [2, 4, 4]},
        {"num_head_channels": 16, "model_channels": 32, "channel_mult": [1, 1, 2], "num_heads": -1},
    ],
)
def test_every_way_to_state_heads(config: Any, states: Any, tmp_path: Path) -> None:
    folder = make(tmp_path, "folder-ldm", states, {**CONFIGS, "unet/config.json": config})
    heads = layouts.open_checkpoint(folder).info.unet_heads
    assert heads == ((2, 2, 4) if "model_channels" in config else (2, 4, 4))
    folder = make(
        tmp_path / "one", "folder-ldm", states, {"unet/config.json": {"num_heads": 8, "num_head_channels": -1}}
    )
    assert layouts.open_checkpoint(folder).info.unet_heads == 8


def test_what_configurations_state_and_what_they_leave(states: Any, tmp_path: Path) -> None:
    configs = {**CONFIGS, "scheduler/scheduler_config.json": {"beta_schedule": "linear", "beta_end": 0.5}}
    opened = layouts.open_checkpoint(make(tmp_path, "folder-ldm", states, configs))
    assert (opened.info.scaling_factor, opened.info.vae_norm_groups, opened.info.text_heads) == (0.5, 8, 2)
    assert opened.info.beta_end == 0.012  # of another schedule; MVDream has one
    assert opened.stated.startswith("unet/config.json, vae/config.json, text_encoder/config.json and")
    bare = layouts.open_checkpoint(make(tmp_path / "bare", "folder-ldm", states, {}))
    assert bare.stated == "what is published" and bare.info.base == "custom"
    for content, message in (("[1]", "is a JSON list"), ("{", "cannot be read as JSON")):
        (tmp_path / "folder-ldm" / "vae" / "config.json").write_text(content)
        with pytest.raises(ModelError, match=message):
            layouts.open_checkpoint(tmp_path / "folder-ldm")
    (tmp_path / "folder-ldm" / "vae" / "config.json").write_text('{"scaling_factor": "big"}')
    with pytest.raises(ModelError, match="scaling_factor is 'big'"):
        layouts.open_checkpoint(tmp_path / "folder-ldm")


@pytest.mark.parametrize(("width", "base"), [(768, "clip_l"), (1024, "clip_h"), (24, "custom")])
def test_the_base_is_told_by_the_text_encoders_width(width: int, base: str) -> None:
    for layout in (*layouts.LAYOUTS[:1], *layouts.FOLDER_LAYOUTS):
        info = layouts.published_values({"text_model.embeddings.token_embedding.weight": torch.empty(3, width)}, layout)
        assert info.base == base
        assert (info.pad_id, info.text_activation) == ((0, "gelu") if base == "clip_h" else (49407, "quick_gelu"))


def test_what_is_no_text_to_views_model_is_named(states: Any, tmp_path: Path) -> None:
    unet, vae, text = states
    plain = {key: value for key, value in unet.items() if not key.startswith("class_embedding.")}
    with pytest.raises(ModelError, match="ordinary Stable Diffusion checkpoint"):
        load(make(tmp_path / "sd", "folder-diffusers", (plain, vae, text)), "cpu")
    image = {"image_embed.latents": torch.zeros(1, 16, 24), "x.attn2.to_k_ip.weight": torch.zeros(2, 2)}
    folder = make(tmp_path / "picture", "folder-ldm", states)
    save({**key_maps.unet_to_ldm(unet), **image}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ModelError, match="'folder-ldm' is an ImageDream checkpoint .*views of a picture"):
        load(folder, "cpu")
    file = tmp_path / "sd-v2.1-base-4view-ipmv.safetensors"
    prefixed = key_maps.with_prefix({**key_maps.unet_to_ldm(unet), **image}, key_maps.UNET_PREFIX)
    safetensors.torch.save_file(prefixed, file)
    with pytest.raises(ModelError, match="is an ImageDream checkpoint"):
        load(file, "cpu")


def test_folders_that_are_not_whole(states: Any, tmp_path: Path) -> None:
    folder = make(tmp_path, "folder-camera-proj", states)
    shutil.rmtree(folder / "vae")
    assert not layouts.is_folder_checkpoint(folder)
    with pytest.raises(ModelError, match="or the subfolders unet, vae and text_encoder with weights in each"):
        load(folder, "cpu")
    folder = make(tmp_path / "again", "folder-camera-proj", states)
    (folder / "camera_proj" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"camera_proj' holds no weights"):
        load(folder, "cpu")
    folder = make(tmp_path / "keys", "folder-camera-embedding", states)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = safetensors.torch.load_file(file)
    weight = state.pop("mid_block.resnets.0.conv1.weight")
    save(state | {"mid_block.resnets.0.conv9.weight": weight}, file)
    with pytest.raises(
        ModelError,
        match=r"missing keys: 1 \(mid_block\.resnets\.0\.conv1\.weight\); "
        r"unknown keys: 1 \(mid_block\.resnets\.0\.conv9\.weight\)",
    ):
        load(folder, "cpu")
