"""The networks' layers as an NVIDIA GPU takes them best: channels last throughout, one kernel where there were several.

`fuse` makes layers of stock diffusers and transformers networks their own faster subclasses. Weights, their names and
what comes out stay as they are, to rounding. On other devices than CUDA they do what the stock layers do. The kernels
need triton, which comes with PyTorch for Linux; without it PyTorch's operations stand in for them.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

from ..errors import first_line
from .joined import JoinedLinear, join, separate, share

logger = logging.getLogger("invert3d")


def fuse(network: nn.Module) -> None:
    """Make a network's layers their faster kind, in place; layers of other kinds stay as they are."""
    for module in network.modules():
        faster = FASTER.get(type(module))
        if faster is not None and _suits(faster, module):
            module.__class__ = faster
    join(network)


def unfuse(network: nn.Module) -> None:
    """Make a network's layers stock again, in place: to measure or to compare."""
    stock = {faster: kind for kind, faster in FASTER.items()}
    for module in network.modules():
        module.__class__ = stock.get(type(module), type(module))
    separate(network)


def _suits(faster: Any, module: nn.Module) -> bool:
    try:
        return faster.suits(module)
    except AttributeError:  # a release of the library that we do not know
        return False


# ------------------------------------------------------------------------------------------------------------- kernels


_DTYPES = torch.float32, torch.float16, torch.bfloat16
_tried: dict[tuple[torch.device, torch.dtype], Any] = {}


def _kernels(x: Tensor) -> Any:
    """The module of kernels where they work on tensors like this one; else None."""
    # Triton launches on the current device, whatever the tensors lie on.
    if not x.is_cuda or x.dtype not in _DTYPES or x.device.index != torch.cuda.current_device():
        return None
    key = x.device, x.dtype
    if key not in _tried:
        if torch.cuda.is_current_stream_capturing():  # which ends at a trial
            return None
        try:
            _tried[key] = _working(*key)
        except torch.OutOfMemoryError:  # it may do later
            return None
    return _tried[key]


def _working(device: torch.device, dtype: torch.dtype) -> Any:
    """The module of kernels if a trial of them comes out right, else None with a word in the log."""
    try:
        from . import kernels

        logger.info("Readying kernels for %s; the first time on a machine they are compiled, for some seconds.", device)
        # Hooks on what is saved for a backward pass, such as checkpointing's, are not for the trial's.
        apart = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cuda", enabled=False), apart:
            reason = _difference(kernels, device, dtype)
    except torch.OutOfMemoryError:
        raise
    except ImportError as error:
        kernels, reason = None, f"triton is not installed ({first_line(error)})"
    except Exception as error:  # an accelerator that does not work must never be a reason to stop
        kernels, reason = None, f"a test call failed ({type(error).__name__}: {first_line(error)})"
    if reason is None:
        return kernels
    logger.info("Training and sampling go without the GPU kernels made for them, somewhat slower: %s.", reason)
    return None


def _difference(kernels: Any, device: torch.device, dtype: torch.dtype) -> str | None:
    """What is wrong with the kernels' results, forward and backward, on small inputs; None if nothing is."""

    def numbers(*shape: int) -> Tensor:
        count = torch.Size(shape).numel()
        return (2 * torch.arange(count, device=device).mul(12.9898).sin()).reshape(shape).to(dtype)

    width = 320  # a kernel that fits a layer of the published models need not be compiled for this alone
    picture, rows = numbers(2, width, 4, 4).to(memory_format=torch.channels_last), numbers(2, width)
    weight, shift, tokens = numbers(width), numbers(width) + 1, numbers(2, 4, width)
    cases = {
        "group norm": (
            picture,
            lambda x: kernels.group_norm(x, 32, weight, shift, 1e-5, silu=True, rows=rows, bias=shift),
            lambda x: F.silu(F.group_norm(x + (rows + shift)[:, :, None, None], 32, weight, shift, 1e-5)),
        ),
        "gate": (tokens, kernels.gelu_gate, _gelu_gate),
        "GELU": (tokens, kernels.quick_gelu, lambda x: x * torch.sigmoid(1.702 * x)),
        "sum": (picture, lambda x: kernels.add(x, x, shift), lambda x: x + x + shift[:, None, None]),
        "layer norm": (
            tokens,
            lambda x: torch.cat(kernels.add_norm(x, tokens, weight, shift, 1e-5)),
            lambda x: torch.cat((x + tokens, F.layer_norm(x + tokens, (width,), weight, shift, 1e-5))),
        ),
    }
    for name, (x, ours, theirs) in cases.items():
        found, expected = [], []
        for results, function in ((found, ours), (expected, theirs)):
            leaf = x.detach().requires_grad_()
            result = function(leaf)
            share = torch.linspace(-1, 1, result.numel(), device=device).reshape(result.shape)
            (gradient,) = torch.autograd.grad((result.float() * share).sum(), leaf)
            results += [result.detach().float(), gradient.float()]
        for a, b in zip(found, expected, strict=True):
            if not bool((a - b).norm() <= 0.02 * b.norm()):  # bfloat16 keeps 8 bits
                return f"the {name} gave something else than PyTorch's"
    return None


def _gelu_gate(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def _normalized(
    norm: nn.GroupNorm, x: Tensor, silu: bool, rows: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """SiLU, if asked for, of the group norm of x + rows + bias, (B,C,h,w) + (B,C) + (C,)."""
    kernels = _kernels(x) if x.is_contiguous(memory_format=torch.channels_last) else None
    if kernels is not None:
        weights = norm.weight, norm.bias
        return kernels.group_norm(x, norm.num_groups, *weights, norm.eps, silu=silu, rows=rows, bias=bias)
    if rows is not None and bias is not None:
        x = x + (rows + bias)[:, :, None, None]
    x = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return F.silu(x) if silu else x


def _carried(norm: nn.GroupNorm, x: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    """x, to be used from here on, and its group norm: the gradients of both become one in one pass."""
    kernels = _kernels(x) if x.is_contiguous(memory_format=torch.channels_last) else None
    if kernels is None:
        return x, _normalized(norm, x, silu)
    return kernels.carried_group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps, silu=silu)


# -------------------------------------------------------------------------------------------------------------- layers


def _plain(module: nn.Module, x: Tensor, parts: Sequence[nn.Module | None] = ()) -> bool:
    """Whether the faster way is not open: away from CUDA, for a compiler, where weights train, too, or for other parts.

    parts: those whose weights are read without calling them, which a stranger's adapters and hooks would not see.
    """
    if not x.is_cuda or torch.compiler.is_compiling():
        return True
    if torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters()):
        return True
    return not all(part is None or _bare(part) for part in parts)


def _bare(part: nn.Module) -> bool:
    known = type(part) in (nn.Conv2d, nn.Linear, JoinedLinear, nn.LayerNorm, nn.GroupNorm, FusedGroupNorm)
    return known and not (part._forward_pre_hooks or part._forward_hooks or "forward" in part.__dict__)


class FusedGroupNorm(nn.GroupNorm):
    @staticmethod
    def suits(module: nn.GroupNorm) -> bool:
        return module.affine

    def forward(self, input: Tensor) -> Tensor:
        if _plain(self, input) or input.ndim != 4:
            return super().forward(input)
        return _normalized(self, input, silu=False)


class FusedResnetBlock(ResnetBlock2D):
    """Biases of the convolutions go into the passes over memory that follow them."""

    @staticmethod
    def suits(module: ResnetBlock2D) -> bool:
        return (
            module.time_embedding_norm == "default"
            and isinstance(module.nonlinearity, nn.SiLU)
            and module.time_emb_proj is not None
            and not (module.skip_time_act or module.up or module.down)
            and module.output_scale_factor == 1
            and all(type(part) is nn.Conv2d and part.bias is not None for part in (module.conv1, module.conv2))
        )

    def forward(self, input_tensor: Tensor, temb: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        parts = self.norm1, self.conv1, self.norm2, self.conv2, self.conv_shortcut
        if _plain(self, input_tensor, parts) or temb is None or temb.requires_grad or self.training:
            return super().forward(input_tensor, temb, *args, **kwargs)
        block: Any = self  # parts are declared as optional that are here
        input_tensor, x = _carried(block.norm1, input_tensor, silu=True)
        x = F.conv2d(x, block.conv1.weight, padding=block.conv1.padding)
        rows = block.time_emb_proj(_activated(temb))
        x = _normalized(block.norm2, x, silu=True, rows=rows, bias=block.conv1.bias)
        x = F.conv2d(x, block.conv2.weight, padding=block.conv2.padding)
        shortcut = input_tensor
        if block.conv_shortcut is not None:
            shortcut = _as_picture(_linear(block.conv_shortcut, _as_tokens(input_tensor)), input_tensor)
        kernels = _kernels(x)
        layout = torch.channels_last
        if (
            kernels is not None
            and x.is_contiguous(memory_format=layout)
            and shortcut.is_contiguous(memory_format=layout)
        ):
            return kernels.add(shortcut, x, block.conv2.bias)
        return shortcut + (x + block.conv2.bias[:, None, None])


class FusedGate(GEGLU):
    @staticmethod
    def suits(module: GEGLU) -> bool:
        return True

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if _plain(self, hidden_states):
            return super().forward(hidden_states, *args, **kwargs)
        x = self.proj(hidden_states)
        kernels = _kernels(x)
        return _gelu_gate(x) if kernels is None else kernels.gelu_gate(x.contiguous())


class FusedQuickGELU(QuickGELUActivation):
    """The text encoder's activation."""

    @staticmethod
    def suits(module: QuickGELUActivation) -> bool:
        return True

    def forward(self, input: Tensor) -> Tensor:
        kernels = None if _plain(self, input) or not input.is_contiguous() else _kernels(input)
        return super().forward(input) if kernels is None else kernels.quick_gelu(input)


def _norms(block: BasicTransformerBlock) -> tuple[Any, ...]:
    return block.norm1, block.norm2, block.norm3


class FusedTransformerBlock(BasicTransformerBlock):
    """Each sum of the residual stream and the layer norm after it are one pass."""

    @staticmethod
    def suits(module: BasicTransformerBlock) -> bool:
        return (
            module.norm_type == "layer_norm"
            and module.pos_embed is None
            and module.attn2 is not None
            and not module.only_cross_attention
            and all(type(norm) is nn.LayerNorm and norm.bias is not None for norm in _norms(module))
        )

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Any = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Any = None,
        added_cond_kwargs: Any = None,
    ) -> Tensor:
        block: Any = self  # parts are declared as optional that are here
        options: dict[str, Any] = cross_attention_kwargs or {}
        kernels = None if _plain(self, hidden_states, _norms(self)) else _kernels(hidden_states)
        if kernels is None or block._chunk_size is not None or "gligen" in options or "scale" in options:
            return super().forward(
                hidden_states,
                attention_mask=attention_mask,
                encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                timestep=timestep,
                cross_attention_kwargs=options,
                class_labels=class_labels,
                added_cond_kwargs=added_cond_kwargs,
            )

        def add_and_norm(update: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
            update = None if update is None else update.contiguous()
            return kernels.add_norm(x.contiguous(), update, norm.weight, norm.bias, norm.eps)

        x = hidden_states
        x, normal = add_and_norm(None, block.norm1)
        x, normal = add_and_norm(block.attn1(normal, attention_mask=attention_mask, **options), block.norm2)
        update = block.attn2(
            normal,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=encoder_attention_mask,
            **options,
        )
        x, normal = add_and_norm(update, block.norm3)
        return block.ff(normal) + x


class FusedTransformer(Transformer2DModel):
    """Channels-last pictures are tokens as they lie, and 1×1 convolutions of them are linear layers."""

    @staticmethod
    def suits(module: Transformer2DModel) -> bool:
        return bool(module.is_input_continuous)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return super().forward(*args, **kwargs)
        try:
            return super().forward(*args, **kwargs)
        finally:  # of a pass that breaks off, for want of memory perhaps
            vars(self).pop("_carried", None)

    def _operate_on_continuous_inputs(self, hidden_states: Tensor) -> tuple[Tensor, int]:
        if _plain(self.norm, hidden_states, (self.norm, self.proj_in)):
            return super()._operate_on_continuous_inputs(hidden_states)
        carried, normal = _carried(self.norm, hidden_states, silu=False)
        vars(self)["_carried"] = hidden_states, carried
        tokens = _linear(self.proj_in, _as_tokens(normal))
        return tokens, tokens.shape[-1]

    def _get_output_for_continuous_inputs(self, hidden_states: Tensor, residual: Tensor, **sizes: int) -> Tensor:
        if _plain(self.norm, hidden_states, (self.proj_out,)):
            return super()._get_output_for_continuous_inputs(hidden_states, residual, **sizes)
        of, carried = vars(self).pop("_carried", (None, None))
        if of is residual:  # else it is of another thread's pass
            residual = carried
        return _as_picture(_linear(self.proj_out, hidden_states), residual) + residual


def _activated(temb: Tensor) -> Tensor:
    """SiLU of a time embedding, once for all blocks that ask."""
    kept = vars(temb)
    if "_activated" not in kept:
        kept["_activated"] = share(F.silu(temb))
    return kept["_activated"]


def _as_tokens(pictures: Tensor) -> Tensor:  # (B,C,h,w) -> (B,h·w,C)
    return pictures.permute(0, 2, 3, 1).flatten(1, 2)


def _as_picture(tokens: Tensor, like: Tensor) -> Tensor:  # (B,h·w,C) -> (B,C,h,w), channels-last
    return tokens.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


def _linear(layer: nn.Linear | nn.Conv2d, tokens: Tensor) -> Tensor:
    """A linear layer, or a 1×1 convolution taken as one."""
    return F.linear(tokens, layer.weight.flatten(1), layer.bias)


FASTER: dict[type[nn.Module], Any] = {
    nn.GroupNorm: FusedGroupNorm,
    ResnetBlock2D: FusedResnetBlock,
    GEGLU: FusedGate,
    QuickGELUActivation: FusedQuickGELU,
    BasicTransformerBlock: FusedTransformerBlock,
    Transformer2DModel: FusedTransformer,
}
