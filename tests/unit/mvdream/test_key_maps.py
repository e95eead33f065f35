from typing import Any

import pytest
import torch
from torch import Tensor

from invert3d_core.errors import ModelError
from invert3d_core.mvdream import key_maps

from .conftest import make_text_encoder, make_vae

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
# Which levels have attention, blocks per level, transformer layers, 1×1 convolutions or linear projections.
STRUCTURES = [
    ((CROSS, CROSS, PLAIN), 1, 1, True),
    ((CROSS, CROSS, CROSS, PLAIN), 2, 1, False),
    ((PLAIN, CROSS, PLAIN), 2, 2, True),
    ((PLAIN, CROSS), 1, 1, False),
    ((CROSS,), 3, 1, True),
]


def unet_state(down: tuple[str, ...], layers: int, depth: int, linear: bool, camera: bool = True) -> dict[str, Tensor]:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=tuple(32 * 2**i for i in range(len(down))),
            down_block_types=down,
            up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
            layers_per_block=layers,
            transformer_layers_per_block=depth,
            cross_attention_dim=24,
            attention_head_dim=4,
            use_linear_projection=linear,
            class_embed_type="projection" if camera else None,
            projection_class_embeddings_input_dim=16 if camera else None,
        ).state_dict()


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(left[key] is right[key] for key in left)


@pytest.mark.parametrize(("down", "layers", "depth", "linear"), STRUCTURES)
@pytest.mark.parametrize("camera", [True, False])
def test_unet_round_trip(down: tuple[str, ...], layers: int, depth: int, linear: bool, camera: bool) -> None:
    state = unet_state(down, layers, depth, linear, camera)
    published = key_maps.unet_to_ldm(state)
    assert same(key_maps.unet_from_ldm(published), state)
    assert len(published) == len(state)
    assert all(key.split(".")[0] in UNET_PARTS for key in published)
    assert ("camera_embed.0.weight" in published) == camera


UNET_PARTS = {"time_embed", "camera_embed", "input_blocks", "middle_block", "output_blocks", "out"}


def test_numbering_of_a_unet_with_one_block_per_level() -> None:
    """By hand from ldm's constructor: input_blocks are conv, (block, down) × 2, block; output_blocks two per level."""
    published = key_maps.unet_keys_to_ldm(unet_state((CROSS, CROSS, PLAIN), 1, 1, True))
    expected = {
        "down_blocks.0.downsamplers.0.conv.weight": "input_blocks.2.0.op.weight",
        "down_blocks.1.attentions.0.proj_in.weight": "input_blocks.3.1.proj_in.weight",
        "down_blocks.2.resnets.0.conv1.weight": "input_blocks.5.0.in_layers.2.weight",
        "mid_block.resnets.1.conv2.bias": "middle_block.2.out_layers.3.bias",
        # The lowest level has no attention, so its upsampling comes right after the block.
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.1.1.conv.weight",
        "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.3.2.conv.weight",
        "up_blocks.2.resnets.1.conv_shortcut.weight": "output_blocks.5.0.skip_connection.weight",
        "up_blocks.2.attentions.1.norm.weight": "output_blocks.5.1.norm.weight",
    }
    assert {key: published[key] for key in expected} == expected


def test_unet_refuses_what_it_does_not_know() -> None:
    state = unet_state(*STRUCTURES[0])
    published = key_maps.unet_to_ldm(state)
    extra = torch.empty(0)
    for key in (
        "input_blocks.1.0.norm1.weight",  # diffusers' name inside an ldm block: would be taken for in_layers.0
        "input_blocks.4000000000.0.in_layers.0.weight",
        "label_emb.0.0.weight",
        "out",
    ):
        with pytest.raises(ModelError, match="ldm U-Net layout: 1 \\(" + key.replace(".", "\\.")):
            key_maps.unet_from_ldm({**published, key: extra})
    with pytest.raises(ModelError, match=r"add_embedding\.linear_1\.weight"):
        key_maps.unet_to_ldm({**state, "add_embedding.linear_1.weight": extra})


def test_vae_round_trip() -> None:
    state = make_vae().state_dict()
    published = key_maps.vae_to_ldm(state)
    back = key_maps.vae_from_ldm(published)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    # The middle attention is made of 1×1 convolutions, and the decoder counts its levels from the highest resolution.
    assert published["encoder.mid.attn_1.q.weight"].shape == (16, 16, 1, 1)
    assert published["decoder.up.1.upsample.conv.weight"] is state["decoder.up_blocks.0.upsamplers.0.conv.weight"]
    # Files whose attention is linear already exist.
    linear = {k: v.flatten(1) if ".attn_1." in k and v.ndim == 4 else v for k, v in published.items()}
    assert key_maps.vae_from_ldm(linear)["decoder.mid_block.attentions.0.to_out.0.weight"].shape == (16, 16)
    with pytest.raises(ModelError, match=r"encoder\.down\.0\.attn\.0\.q\.weight"):
        key_maps.vae_from_ldm({**published, "encoder.down.0.attn.0.q.weight": torch.empty(0)})


def test_text_round_trips() -> None:
    state = make_text_encoder().state_dict()
    plain = key_maps.text_to_ldm({**state, "text_model.embeddings.position_ids": torch.arange(3)})
    assert "embeddings.token_embedding.weight" in plain and not any("position_ids" in key for key in plain)
    assert same(key_maps.text_from_ldm(key_maps.with_prefix(plain, "text_model.")), plain)

    open_clip = key_maps.text_to_open_clip(state)
    assert open_clip["transformer.resblocks.1.attn.in_proj_weight"].shape == (72, 24)
    everything = key_maps.text_from_open_clip(open_clip, skip_last=0)
    assert everything.keys() == plain.keys()
    assert all(torch.equal(everything[key], plain[key]) for key in plain)
    penultimate = key_maps.text_from_open_clip({**open_clip, "logit_scale": torch.ones(())})
    assert {key for key in plain if ".layers.1." not in key} == penultimate.keys()
    with pytest.raises(ModelError, match=r"visual\.proj"):
        key_maps.text_from_open_clip({**open_clip, "visual.proj": torch.empty(0)})


def test_prefixes_and_the_whole_file(published: dict[str, Tensor], model: Any) -> None:
    prefixes = (key_maps.UNET_PREFIX, key_maps.VAE_PREFIX, key_maps.TEXT_PREFIX)
    assert all(key.startswith(prefixes) for key in published)
    unet = key_maps.unet_from_ldm(key_maps.without_prefix(published, key_maps.UNET_PREFIX))
    weights = model.unet.state_dict()
    assert unet.keys() == weights.keys() and all(torch.equal(unet[key], weights[key]) for key in weights)


def test_list_keys_is_short() -> None:
    assert key_maps.list_keys("ba") == "2 (a, b)"
    assert key_maps.list_keys(f"k{i:02}" for i in range(30)).endswith("k09, …)")
