"""The same golden numbers through every layout a checkpoint is found in; see `test_mvdream` for data and tolerances."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from invert3d_core import cameras
from invert3d_core.mvdream import ModelInfo, MVDream, key_maps, layouts, sampling
from invert3d_core.mvdream.checkpoint import networks_of
from invert3d_core.mvdream.conversion import convert
from invert3d_core.mvdream.networks import text_encoder_from_state_dict, unet_from_state_dict, vae_from_state_dict

from ..unit.mvdream.published_layouts import UNETS, save, write_folder
from .test_mvdream import HEADS, MVDREAM, description, largest, relative, tensors
from .test_mvdream import weights as fill_weights

weights = functools.cache(fill_weights)  # every layout has the same

# The two forms: U-Net, text encoder, golden outputs of the text encoder and their tolerance.
FORMS = {
    "sd15": ("unet_sd15", "text_clipl", "last_hidden_state", 2e-5),
    "sd21": ("unet_sd21", "text_openclip", "penultimate", 1e-5),
}
WRITTEN = [
    *(
        pytest.param(form, f"file{ending}", id=f"{form}-file{ending}")
        for form in FORMS
        for ending in (".pt", ".safetensors")
    ),
    *(pytest.param(form, layout, id=f"{form}-{layout}") for form in FORMS for layout in UNETS),
]


def write(form: str, layout: str, place: Path) -> Path:
    """A checkpoint of a form's golden networks in a layout."""
    unet, text, *_ = FORMS[form]
    ldm = weights(unet)
    prefix = key_maps.OPEN_CLIP_PREFIX if form == "sd21" else key_maps.TEXT_PREFIX
    tower = {key.removeprefix("text_model."): value for key, value in weights(text).items()}
    if layout.startswith("file"):
        path = place / f"model{layout.removeprefix('file')}"
        parts = ((ldm, key_maps.UNET_PREFIX), (weights("vae"), key_maps.VAE_PREFIX), (tower, prefix))
        save({p + key: value for state, p in parts for key, value in state.items()}, path)
        return path
    converted = key_maps.text_from_open_clip(tower) if form == "sd21" else key_maps.text_from_ldm(tower)
    states = key_maps.unet_from_ldm(ldm), key_maps.vae_from_ldm(weights("vae")), converted
    configs = {
        "unet/config.json": {"attention_head_dim": HEADS[unet]},
        "text_encoder/config.json": {
            "num_attention_heads": 4,
            "hidden_act": "gelu" if form == "sd21" else "quick_gelu",
        },
    }
    return write_folder(place / layout, layout, *states, configs)


def opened(form: str, path: Path) -> MVDream:
    """The networks of a checkpoint; a file does not say how many heads its small networks have."""
    checkpoint = layouts.open_checkpoint(path)
    stated = checkpoint.info
    heads = HEADS[FORMS[form][0]]
    info = ModelInfo(
        unet_heads=tuple(heads) if isinstance(heads, list) else heads,
        text_heads=4,
        text_activation="gelu" if form == "sd21" else "quick_gelu",
        text_skip_last=stated.text_skip_last,
    )
    if checkpoint.layout.is_folder:
        assert (stated.unet_heads, stated.text_heads) == (info.unet_heads, 4)
        assert stated.text_activation == info.text_activation
        info = stated
    return MVDream(*networks_of(checkpoint, info), None, info=info)


@torch.no_grad()
def check(form: str, model: MVDream) -> None:
    """The golden numbers of each network, in one checkpoint."""
    unet, text, name, tolerance = FORMS[form]
    data = tensors(f"mvdream/{unet}")
    out = model.predict_noise(data["x"], data["t"], data["context"], data["camera"], num_frames=4)
    assert largest(out - data["y_f4"]) < 3e-5
    out = model.predict_noise(data["x"], data["t"], data["context"], None, num_frames=1)
    assert largest(out - data["y_2d"]) < 3e-5
    data = tensors(f"mvdream/{text}")
    assert largest(model.text_encoder(input_ids=data["tokens"]).last_hidden_state - data[name]) < tolerance
    data = tensors("mvdream/vae")
    mean, std = model.encode_images((data["image"].movedim(1, -1) + 1) / 2)
    assert largest(mean / 0.18215 - data["mean"]) < 2e-5
    assert largest(2 * (std / 0.18215).log() - data["logvar"]) < 2e-5
    assert largest(model.vae.decode(data["z"] / 0.18215).sample - data["decoded"]) < 5e-5


@pytest.mark.parametrize(("form", "layout"), WRITTEN)
def test_networks(form: str, layout: str, tmp_path: Path) -> None:
    check(form, opened(form, write(form, layout, tmp_path)))


@pytest.mark.parametrize("form", FORMS)
def test_networks_after_conversions(form: str, tmp_path: Path) -> None:
    """From the layout furthest from stock diffusers to a clean folder, to one file, and to a folder again."""
    path = write(form, "folder-ldm-wrapped", tmp_path)
    for name in ("clean", "one.safetensors", "again"):
        path = convert(path, tmp_path / name).path
        checkpoint = layouts.open_checkpoint(path)
        check(form, MVDream(*networks_of(checkpoint, checkpoint.info), None, info=checkpoint.info))


@pytest.mark.parametrize("layout", ["file.safetensors", *UNETS])
def test_text_to_image(layout: str, tmp_path: Path) -> None:
    data, setting = tensors("mvdream/t2i_e2e"), description("t2i_e2e")
    model = opened("sd21", write("sd21", layout, tmp_path))
    latents = sampling.sample_latents(
        model,
        data["x_T"],
        data["context"],
        data["uncond_context"],
        data["camera"],
        4,
        setting["steps"],
        setting["guidance_scale"],
    )
    assert relative(latents, data["mv_latents"]) < 3e-5
    with torch.no_grad():
        pictures = (model.decode_latents(latents) * 255).to(torch.uint8)
    difference = (pictures.int() - data["mv_image_u8"].int()).abs()
    assert int(difference.max()) <= 1 and float((difference > 0).float().mean()) <= 0.005


# Full size


def rows(name: str) -> Any:
    return json.loads((MVDREAM / f"keys_layout_{name}.json").read_text())


def without_memory(keys: Any) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in keys}


def test_folders_of_others_make_whole_networks() -> None:
    """Strict at full size against the key lists of the published folders."""
    ldm = rows("ashawkey")
    unets = {
        "ldm": without_memory(ldm["unet"]),
        "wrapped": key_maps.with_prefix(without_memory(ldm["unet"]), "unet."),
        "camera_proj": without_memory(rows("lizhiqi")["unet"])
        | key_maps.with_prefix(without_memory(rows("lizhiqi")["camera_proj"]), "camera_proj."),
    }
    assert set(rows("kokecacao")["example"]) <= unets["wrapped"].keys()
    assert len(unets["wrapped"]) == rows("kokecacao")["count"]
    for state in unets.values():
        unet: Any = unet_from_state_dict(state)
        assert sum(parameter.numel() for parameter in unet.parameters()) == 867_572_164
        assert tuple(unet.config["attention_head_dim"]) == (5, 10, 20, 20)
    vae = vae_from_state_dict(without_memory(ldm["vae"]))
    assert sum(parameter.numel() for parameter in vae.parameters()) == 83_653_863
    text = text_encoder_from_state_dict(without_memory(ldm["text_encoder"]), activation="gelu")
    assert (text.config.num_hidden_layers, text.config.num_attention_heads) == (23, 16)


# Cameras


@pytest.mark.parametrize(("azimuth", "elevation"), [(0.0, 0.0), (30.0, 15.0), (-100.0, 25.0)])
def test_azimuth_0_of_a_layouts_own_code(azimuth: float, elevation: float) -> None:
    """That of folder-camera-proj places cameras at (cos e cos a, cos e sin a, sin e), z up: 90 before MVDream's."""
    layout = next(layout for layout in layouts.FOLDER_LAYOUTS if layout.name == "folder-camera-proj")
    a, e = math.radians(azimuth), math.radians(elevation)
    position = torch.tensor([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    right = torch.linalg.cross(-position, torch.tensor([0.0, 0.0, 1.0]))
    right = right / right.norm()
    own = torch.eye(4)
    own[:3] = torch.stack([right, torch.linalg.cross(right, -position), position, position], dim=1)
    ring = cameras.orbit([azimuth + layout.azimuth_zero_deg], elevation, 2.0, 40.0, 8, 8)
    found = cameras.conversions.to_mvdream(ring, 0.0)
    assert largest(found[0] - own.flatten()) < 1e-6
    assert all(other.azimuth_zero_deg == 0 for other in (*layouts.LAYOUTS, *layouts.FOLDER_LAYOUTS) if other != layout)
