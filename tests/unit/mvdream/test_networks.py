import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from invert3d_core.errors import ModelError
from invert3d_core.mvdream import key_maps
from invert3d_core.mvdream.networks import text_encoder_from_state_dict, unet_from_state_dict, vae_from_state_dict

from .conftest import make_text_encoder, make_unet, make_vae
from .test_key_maps import STRUCTURES, unet_state


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Equal but for the last bits: torch 2.14 has other CPU kernels for weights that ask for gradients."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("down", "layers", "depth", "linear"), STRUCTURES)
def test_sizes_of_a_unet_are_read_off(down: tuple[str, ...], layers: int, depth: int, linear: bool) -> None:
    state = unet_state(down, layers, depth, linear)
    unet: Any = unet_from_state_dict(key_maps.unet_to_ldm(state), num_attention_heads=4)
    assert {key: value.shape for key, value in unet.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert tuple(unet.config["down_block_types"]) == down
    assert unet.config["use_linear_projection"] == linear
    assert not unet.training


@pytest.mark.parametrize("prefix", ["", key_maps.UNET_PREFIX])
@torch.no_grad()
def test_unet_computes_the_same(prefix: str, draw: Any) -> None:
    original = make_unet()
    state = key_maps.with_prefix(key_maps.unet_to_ldm(original.state_dict()), prefix)
    if prefix:
        state["first_stage_model.quant_conv.weight"] = torch.empty(0)  # another part of the file is left alone
    loaded: Any = unet_from_state_dict(state, (2, 4, 4))
    inputs = draw(4, 4, 8, 8), torch.tensor([5] * 4), draw(4, 6, 24)
    more: dict[str, Any] = {"class_labels": draw(4, 16), "cross_attention_kwargs": {"num_frames": 4}}
    assert_same(loaded(*inputs, **more).sample, original(*inputs, **more).sample)


def test_heads_that_no_weight_shows(caplog: pytest.LogCaptureFixture) -> None:
    linear = key_maps.unet_to_ldm(unet_state(*STRUCTURES[0]))
    with pytest.raises(ModelError, match=r"32, 64, 128 channels cannot have 0, 1, 2 .*num_attention_heads"):
        unet_from_state_dict(linear)
    for wrong in (5, (4, 4), (4, 0, 4)):
        with pytest.raises(ModelError, match="attention heads"):
            unet_from_state_dict(linear, wrong)
    convolutional = key_maps.unet_to_ldm(unet_state(*STRUCTURES[1]))
    with caplog.at_level(logging.WARNING, "invert3d"):
        unet: Any = unet_from_state_dict(convolutional)
    assert tuple(unet.config["attention_head_dim"]) == (8,) * 4
    assert "8 is assumed" in caplog.text and "unet_heads" in caplog.text
    with pytest.raises(ModelError, match="width 24 cannot have heads of width 64"):
        text_encoder_from_state_dict(make_text_encoder().state_dict())
    with pytest.raises(ModelError, match="width 24 cannot have 5"):
        text_encoder_from_state_dict(make_text_encoder().state_dict(), 5)


@pytest.mark.parametrize("prefix", ["", key_maps.VAE_PREFIX])
@torch.no_grad()
def test_vae_computes_the_same(prefix: str, draw: Any) -> None:
    original = make_vae()
    loaded = vae_from_state_dict(
        key_maps.with_prefix(key_maps.vae_to_ldm(original.state_dict()), prefix), norm_groups=8
    )
    pixels = draw(2, 3, 16, 16)
    expected = original.encode(pixels).latent_dist.mode()
    assert_same(loaded.encode(pixels).latent_dist.mode(), expected)
    assert_same(loaded.decode(expected).sample, original.decode(expected).sample)


def test_groups_that_do_not_fit_the_channels() -> None:
    with pytest.raises(ModelError, match=r"VAE have sizes that make no network .*groups"):
        vae_from_state_dict(key_maps.vae_to_ldm(make_vae().state_dict()))


@pytest.mark.parametrize("prefix", ["", "text_model.", key_maps.TEXT_PREFIX, "open_clip", key_maps.OPEN_CLIP_PREFIX])
@torch.no_grad()
def test_text_encoder_computes_the_same(prefix: str) -> None:
    original = make_text_encoder()
    state, activation = key_maps.text_to_ldm(original.state_dict()), None
    if "open_clip" in prefix or prefix == key_maps.OPEN_CLIP_PREFIX:
        state, prefix, activation = (
            key_maps.text_to_open_clip(original.state_dict()),
            prefix.replace("open_clip", ""),
            "quick_gelu",
        )
    loaded: Any = text_encoder_from_state_dict(key_maps.with_prefix(state, prefix), 2, activation, skip_last=0)
    ids = torch.tensor([[0, 4, 5, 7, 1, 1]])
    assert_same(loaded(input_ids=ids).last_hidden_state, original(input_ids=ids).last_hidden_state)


MAKERS = {
    "U-Net": (
        lambda s: unet_from_state_dict(s, 4),
        lambda: key_maps.with_prefix(key_maps.unet_to_ldm(make_unet().state_dict()), key_maps.UNET_PREFIX),
    ),
    "VAE": (
        lambda s: vae_from_state_dict(s, 8),
        lambda: key_maps.with_prefix(key_maps.vae_to_ldm(make_vae().state_dict()), key_maps.VAE_PREFIX),
    ),
    "clip": (
        lambda s: text_encoder_from_state_dict(s, 2),
        lambda: key_maps.with_prefix(key_maps.text_to_ldm(make_text_encoder().state_dict()), key_maps.TEXT_PREFIX),
    ),
    "open_clip": (
        lambda s: text_encoder_from_state_dict(s, 2, skip_last=0),
        lambda: key_maps.with_prefix(
            key_maps.text_to_open_clip(make_text_encoder().state_dict()), key_maps.OPEN_CLIP_PREFIX
        ),
    ),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_missing_key_is_named_as_the_file_names_it(kind: str) -> None:
    make, state_of = MAKERS[kind]
    state = state_of()
    for key in list(state)[:: max(1, len(state) // 25)]:
        with pytest.raises(ModelError) as raised:
            make({k: v for k, v in state.items() if k != key})
        # Keys that sizes are read from are named alone, without their place in the file.
        assert key in str(raised.value) or "from which its sizes are read" in str(raised.value)
        assert "missing keys" in str(raised.value)


@pytest.mark.parametrize("kind", MAKERS)
def test_unknown_keys_and_wrong_shapes_are_named(kind: str) -> None:
    make, state_of = MAKERS[kind]
    state = state_of()
    prefix = next(
        p
        for p in (key_maps.UNET_PREFIX, key_maps.VAE_PREFIX, key_maps.TEXT_PREFIX, key_maps.OPEN_CLIP_PREFIX)
        if next(iter(state)).startswith(p)
    )
    many = {f"{prefix}surprise.{i:02}.weight": torch.ones(1) for i in range(12)}
    with pytest.raises(ModelError, match=r"unknown keys: 12 \(\S*surprise\.00\.weight, .*…\)"):
        make({**state, **many})
    key = next(
        k for k in state if k.endswith(("norm2.weight", "layer_norm1.weight", "ln_1.weight", "out_layers.0.weight"))
    )
    with pytest.raises(
        ModelError, match=rf"wrong shapes: 1 \({key} \(3,\) instead of \(\d+,\)\)".replace(".", r"\.", 1)
    ):
        make({**state, key: torch.ones(3)})


def corrupt(state: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """One tensor replaced by one of another rank or size, or another key in its place."""
    keys = sorted(state)
    i, how = (int(n) for n in torch.randint(0, len(keys) * 4, (2,), generator=generator))
    key = keys[i % len(keys)]
    broken = dict(state)
    shapes = [(), (0,), (7,), (2, 2, 2, 2, 2)]
    broken[key] = torch.zeros(shapes[how % 4])
    if how % 3 == 0:
        broken[key.replace("0", "9", 1) + ".x"] = broken.pop(key)
    return broken


@pytest.mark.parametrize("kind", MAKERS)
def test_any_corruption_gives_the_error_of_a_model(kind: str) -> None:
    make, state_of = MAKERS[kind]
    state = state_of()
    generator = torch.Generator().manual_seed(0)
    for _ in range(25):
        with pytest.raises(ModelError):
            make(corrupt(state, generator))
