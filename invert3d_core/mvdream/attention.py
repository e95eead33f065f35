"""What turns a stock `UNet2DConditionModel` into MVDream's multi-view U-Net: one attention processor and the camera
rule.

MVDream (Shi et al. 2023) adds no weights to the attention layers of Stable Diffusion: self-attention runs over the
tokens of all views of an object together, cross-attention stays per view, and a small MLP of the camera is added to the
time embedding. That MLP is diffusers' `class_embedding` of type "projection".
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .graphs import release_graphs

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


class MultiViewAttnProcessor:
    """Scaled dot-product attention whose self-attention joins the views of each object.

    For `UNet2DConditionModel.set_attn_processor`; the number of views per object comes with each call as
    ``cross_attention_kwargs={"num_frames": F}`` (1 when left out). The batch is view-fastest:
    object 0's views, then object 1's. Cross-attention ignores `num_frames`.
    Works under autograd and torch.compile, in float32, float16 and bfloat16; layers built with
    ``upcast_attention=True`` compute the attention itself in float32.
    """

    def __call__(
        self,
        attn: Any,  # diffusers.models.attention_processor.Attention
        hidden_states: Tensor,  # (B,L,C)
        encoder_hidden_states: Tensor | None = None,  # (B,T,D); None for self-attention
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        num_frames: int = 1,
    ) -> Tensor:  # (B,L,C)
        batch = hidden_states.shape[0]
        if attention_mask is not None:
            raise ValueError("The multi-view attention takes no attention mask; MVDream attends to every token.")
        if batch % num_frames:
            raise ValueError(f"A batch of {batch} cannot be split into objects of {num_frames} views (num_frames).")
        self_attention = encoder_hidden_states is None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.to_q(hidden_states)
        key = attn.to_k(context)
        value = attn.to_v(context)
        # Projections work token by token, so the views may be joined after them.
        groups = batch // num_frames if self_attention else batch

        def split_heads(tokens: Tensor) -> Tensor:  # (B,L,heads·d) -> (groups,heads,F·L,d)
            tokens = tokens.reshape(groups, -1, attn.heads, tokens.shape[-1] // attn.heads).transpose(1, 2)
            return tokens.float() if attn.upcast_attention else tokens

        joined = F.scaled_dot_product_attention(split_heads(query), split_heads(key), split_heads(value))
        joined = joined.transpose(1, 2).reshape(batch, -1, query.shape[-1]).to(query.dtype)
        return attn.to_out[1](attn.to_out[0](joined))


def make_multiview(unet: "UNet2DConditionModel") -> "UNet2DConditionModel":
    """Give a U-Net the multi-view attention, and let ``class_labels=None`` mean "no camera"; returns the same U-Net.

    unet: a `UNet2DConditionModel` with ``class_embed_type="projection"``. Afterwards
    ``unet(x, t, text, class_labels=cameras, cross_attention_kwargs={"num_frames": F})`` is the multi-view model, with
    cameras (B,16) or None. Without cameras the camera MLP is left out of the sum; feeding it zeros would not be the
    same, as it has biases. The weights and their names do not change.
    """
    processor: Any = MultiViewAttnProcessor()  # the declared type lists the library's own classes alone
    unet.set_attn_processor(processor)
    # The stock method refuses class_labels=None once there is a class embedding.
    unet.get_class_embed = _CameraEmbedding(unet)
    return unet


class _CameraEmbedding:
    """Stands in for `UNet2DConditionModel.get_class_embed` of one U-Net; follows it when the U-Net is copied."""

    def __init__(self, unet: "UNet2DConditionModel") -> None:
        self.unet = unet

    def __call__(self, sample: Tensor, class_labels: Tensor | None) -> Tensor | None:
        if class_labels is None or self.unet.class_embedding is None:
            return None
        embedding: Tensor = self.unet.class_embedding(class_labels.to(sample.dtype))
        return embedding.to(sample.dtype)


def upcast_attention(unet: torch.nn.Module, upcast: bool = True) -> None:
    """Compute attention in float32 whatever the U-Net's dtype: for models that overflow in float16 (SD2.1 can)."""
    for module in unet.modules():
        if hasattr(module, "to_q") and hasattr(module, "upcast_attention"):
            setattr(module, "upcast_attention", upcast)  # noqa: B010  # declared as Tensor | Module
    release_graphs(unet)  # they were recorded without it
