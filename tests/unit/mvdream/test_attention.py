import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from invert3d_core.mvdream.attention import MultiViewAttnProcessor, upcast_attention

from .conftest import make_unet


def self_attention(upcast: bool = False) -> Any:
    from diffusers.models.attention_processor import Attention

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Attention(24, heads=3, dim_head=8, upcast_attention=upcast, processor=MultiViewAttnProcessor())


def cross_attention() -> Any:
    from diffusers.models.attention_processor import Attention

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Attention(24, cross_attention_dim=10, heads=3, dim_head=8, processor=MultiViewAttnProcessor())


def run(unet: Any, latents: Tensor, text: Tensor, cameras: Tensor | None, frames: int) -> Tensor:
    t = torch.full((len(latents),), 300)
    return unet(latents, t, text, class_labels=cameras, cross_attention_kwargs={"num_frames": frames}).sample


@torch.no_grad()
def test_self_attention_is_the_stock_one_over_the_tokens_of_all_views(draw) -> None:
    from diffusers.models.attention_processor import AttnProcessor2_0

    attention, x = self_attention(), draw(6, 5, 24)
    joint = attention(x, num_frames=3)
    single = attention(x)
    attention.set_processor(AttnProcessor2_0())
    torch.testing.assert_close(joint, attention(x.reshape(2, 15, 24)).reshape(6, 5, 24))
    torch.testing.assert_close(single, attention(x))
    assert (joint - single).abs().max() > 1e-3


@torch.no_grad()
def test_cross_attention_stays_per_view(draw) -> None:
    from diffusers.models.attention_processor import AttnProcessor2_0

    attention, x, text = cross_attention(), draw(4, 5, 24), draw(4, 7, 10)
    joint = attention(x, encoder_hidden_states=text, num_frames=4)
    attention.set_processor(AttnProcessor2_0())
    torch.testing.assert_close(joint, attention(x, encoder_hidden_states=text))


def test_a_batch_that_is_not_whole_objects_is_refused(draw) -> None:
    with pytest.raises(ValueError, match=r"batch of 6 .* 4 views"):
        self_attention()(draw(6, 5, 24), num_frames=4)
    with pytest.raises(ValueError, match="no attention mask"):
        self_attention()(draw(4, 5, 24), attention_mask=torch.ones(4, 5), num_frames=4)


@torch.no_grad()
def test_upcasting_computes_the_attention_in_float32(draw) -> None:
    x = draw(2, 64, 24)
    exact = self_attention()(x)
    half, upcast = self_attention().bfloat16(), self_attention(upcast=True).bfloat16()
    found_half, found_upcast = half(x.bfloat16()), upcast(x.bfloat16())
    assert found_half.dtype == found_upcast.dtype == torch.bfloat16
    assert not torch.equal(found_half, found_upcast)
    torch.testing.assert_close(found_upcast.float(), exact, atol=2e-2, rtol=0)


@torch.no_grad()
def test_views_of_an_object_see_each_other_and_no_other_object(draw) -> None:
    unet, x, text, cameras = make_unet(), draw(8, 4, 8, 8), draw(8, 5, 24), draw(8, 16)
    out = run(unet, x, text, cameras, 4)
    changed = x.clone()
    changed[1] += 1
    difference = (run(unet, changed, text, cameras, 4) - out).abs().amax((1, 2, 3))
    assert (difference[:4] > 1e-5).all() and (difference[4:] == 0).all()
    # No order of the views is known to the network: it follows a permutation of them.
    order = torch.tensor([2, 0, 3, 1, 4, 5, 6, 7])
    permuted = run(unet, x[order], text[order], cameras[order], 4)
    torch.testing.assert_close(permuted, out[order], atol=1e-5, rtol=0)


@torch.no_grad()
def test_no_camera_leaves_the_camera_mlp_out(draw) -> None:
    unet, x, text = make_unet(), draw(2, 4, 8, 8), draw(2, 5, 24)
    without = run(unet, x, text, None, 1)
    zeros = run(unet, x, text, torch.zeros(2, 16), 1)
    assert (without - zeros).abs().max() > 1e-3
    unet.class_embedding = None
    torch.testing.assert_close(run(unet, x, text, None, 1), without)


@torch.no_grad()
def test_a_copy_of_the_unet_uses_its_own_weights(draw) -> None:
    unet, x, text, cameras = make_unet(), draw(4, 4, 8, 8), draw(4, 5, 24), draw(4, 16)
    before = run(unet, x, text, cameras, 4)
    other = copy.deepcopy(unet)
    for parameter in other.class_embedding.parameters():
        parameter.zero_()
    assert torch.equal(run(unet, x, text, cameras, 4), before)
    torch.testing.assert_close(run(other, x, text, cameras, 4), run(unet, x, text, None, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision(dtype: torch.dtype, draw) -> None:
    unet, x, text, cameras = make_unet(), draw(4, 4, 8, 8), draw(4, 5, 24), draw(4, 16)
    exact = run(unet, x, text, cameras, 4)
    torch.nn.Module.to(unet, dtype=dtype)
    # Cameras may stay in float32.
    found = run(unet, x.to(dtype), text.to(dtype), cameras, 4)
    assert found.dtype == dtype
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
    torch.testing.assert_close(found.float(), exact, atol=tolerance, rtol=0)
    upcast_attention(unet)
    torch.testing.assert_close(
        run(unet, x.to(dtype), text.to(dtype), cameras, 4).float(), exact, atol=tolerance, rtol=0
    )


def test_compiled_in_one_graph_with_gradients(draw) -> None:
    """A transformer block and the camera rule, which is what this package adds; all of a U-Net takes long to trace."""
    from diffusers.models.attention import BasicTransformerBlock

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        block = BasicTransformerBlock(24, 3, 8, cross_attention_dim=10)
    for layer in (block.attn1, block.attn2):
        layer.set_processor(MultiViewAttnProcessor())
    camera_embedding = make_unet().get_class_embed

    def run(x: Tensor, text: Tensor, camera: Tensor | None, frames: int) -> Tensor:
        out = block(x, encoder_hidden_states=text, cross_attention_kwargs={"num_frames": frames})
        embedding = camera_embedding(sample=out, class_labels=camera)
        return out if embedding is None else out + embedding[:, None, :24]

    x, text, cameras = draw(4, 5, 24), draw(4, 7, 10).requires_grad_(), draw(4, 16)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for camera, frames in ((cameras, 4), (None, 1)):
        expected, found = run(x, text, camera, frames), compiled(x, text, camera, frames)
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(y.square().sum(), text)[0] for y in (expected, found)]
        torch.testing.assert_close(gradients[1], gradients[0])
        assert gradients[0].abs().max() > 0
