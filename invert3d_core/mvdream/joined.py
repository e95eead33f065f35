"""Linear layers of one input as one matrix product.

Queries, keys and values of a self-attention are three products of one input, the keys and values of all
cross-attentions are some thirty products of one text, and every residual block reads the same time embedding. On a GPU
each of them takes a few microseconds, most of it for being launched, and its gradient as long again. Their weights are
laid side by side in memory, each still the parameter of its own layer, and the product of all of them is computed when
the first is asked for; the others wait with the input that they belong to.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def join(network: nn.Module) -> None:
    """Let the linear layers of a network that read the same input be computed together, in place."""
    of_text: list[Any] = []
    of_time: list[Any] = []
    for module in network.modules():
        attention = [getattr(module, name, None) for name in ("to_q", "to_k", "to_v")]
        if getattr(module, "is_cross_attention", False):
            of_text += attention[1:]
        else:
            _bind(attention, [])
        _bind([getattr(module, name, None) for name in ("q_proj", "k_proj", "v_proj")], [])
        of_time.append(getattr(module, "time_emb_proj", None))
    # These lie in blocks that may be computed twice, each by itself.
    blocks = [module for module in network.modules() if hasattr(module, "gradient_checkpointing")]
    _bind(of_text, blocks)
    _bind([layer for layer in of_time if layer is not None], blocks)


def separate(network: nn.Module) -> None:
    """Make the layers of a network stock again, in place."""
    layers: list[Any] = [module for module in network.modules() if type(module) is JoinedLinear]
    for layer in layers:
        layer.__class__ = nn.Linear
        del layer._together, layer._place


def _bind(layers: Sequence[Any], blocks: Sequence[nn.Module]) -> None:
    if len(layers) < 2 or any(type(layer) not in (nn.Linear, JoinedLinear) for layer in layers):
        return
    if len({(layer.in_features, layer.bias is None) for layer in layers}) > 1:
        return
    together = _Together(layers, blocks)
    for place, layer in enumerate(layers):
        layer.__class__ = JoinedLinear
        layer._together, layer._place = together, place


class JoinedLinear(nn.Linear):
    """A linear layer that is computed with others of the same input where there is a GPU."""

    _together: "_Together"
    _place: int

    def forward(self, input: Tensor) -> Tensor:
        result = self._together.result_of(self._place, input) if _worth_it(input) else None
        return super().forward(input) if result is None else result


def _worth_it(x: Tensor) -> bool:
    return x.is_cuda and not torch.compiler.is_compiling()


class _Together:
    """Linear layers of one input, and the blocks that must not be computed twice one by one for them to be joined."""

    def __init__(self, layers: Sequence[nn.Linear], blocks: Sequence[Any]) -> None:
        self._layers = tuple(layers)
        self._blocks = tuple(blocks)

    def result_of(self, place: int, x: Tensor) -> Tensor | None:
        """What the layer at a place makes of x; None where it has to see to that by itself."""
        if any(block.gradient_checkpointing for block in self._blocks):
            return None
        weight, bias = _side_by_side([layer.weight for layer in self._layers]), None
        if weight is not None and self._layers[0].bias is not None:
            bias = _side_by_side([layer.bias for layer in self._layers])
            weight = None if bias is None else weight
        if weight is None:
            return None
        # A pass that broke off may have left results of another kind.
        kind = self, weight.data_ptr(), torch.is_grad_enabled(), torch.is_autocast_enabled("cuda")
        waiting: dict[Any, Tensor] = vars(x).setdefault("_joined", {})
        if (kind, place) not in waiting:
            parts = F.linear(x, weight, bias).split([layer.out_features for layer in self._layers], dim=-1)
            waiting.update({(kind, i): part for i, part in enumerate(parts)})
        return waiting.pop((kind, place))


def _side_by_side(weights: Sequence[Tensor]) -> Tensor | None:
    """Weights as one, a view of them all; None if they cannot be laid side by side now, or are being trained."""
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
        return None
    first = weights[0]
    if not _adjacent(weights) and not _lay_side_by_side(weights):
        return None
    count = sum(weight.shape[0] for weight in weights)
    return first.detach().as_strided((count, *first.shape[1:]), first.stride())


def _adjacent(weights: Sequence[Tensor]) -> bool:
    address = weights[0].data_ptr()
    storage = weights[0].untyped_storage().data_ptr()
    for weight in weights:
        if weight.data_ptr() != address or weight.untyped_storage().data_ptr() != storage:
            return False
        if weight.dtype != weights[0].dtype or not weight.is_contiguous():
            return False
        address += weight.numel() * weight.element_size()
    return True


def _lay_side_by_side(weights: Sequence[Tensor]) -> bool:
    """Whether that could be done; what the weights are stays as it is, where they lie does not."""
    plain = all(type(weight) is nn.Parameter and not weight.is_inference() for weight in weights)
    if not plain or len({(weight.dtype, weight.device) for weight in weights}) > 1:
        return False
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return False
    device = weights[0].device
    on_gpu = device.type == "cuda"
    try:
        if on_gpu:
            torch.cuda.synchronize(device)
        # On the stream where networks are moved, too, since that is where the memory is given back.
        stream = torch.cuda.stream(torch.cuda.default_stream(device)) if on_gpu else contextlib.nullcontext()
        with torch.inference_mode(False), torch.no_grad(), stream:
            whole = torch.cat([weight.detach() for weight in weights])
            for weight, part in zip(weights, whole.split([len(weight) for weight in weights]), strict=True):
                weight.data = part
        if on_gpu:
            torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:  # there may be room later
        return False
    return True
