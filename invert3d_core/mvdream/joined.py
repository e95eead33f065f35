"""Linear layers of one input as one matrix product.

Queries, keys and values of a self-attention are three products of one input, the keys and values of all
cross-attentions are some thirty products of one text, and every residual block reads the same time embedding. In a
recorded pass each of them keeps a GPU for a few microseconds, however small it is, and its gradient as long again.
Their weights are laid side by side in memory, each still the parameter of its own layer, and the product of all of them
is computed when the first is asked for; the others wait with the input that they belong to. Python takes longer for
that than it saves, so it is done only within `together`, for what is being recorded.
"""

import contextlib
import contextvars
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WAITING = "_waiting"
"""The attribute of an input that holds products that wait, by the layers they are of."""

_joins: contextvars.ContextVar[bool] = contextvars.ContextVar("invert3d_joined_layers", default=False)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Within, networks of this thread compute their joined layers together where there is a GPU."""
    token = _joins.set(True)
    try:
        yield
    finally:
        _joins.reset(token)


def join(network: nn.Module) -> None:
    """Let the linear layers of a network that read the same input be computed `together`, in place."""
    of_text: list[Any] = []
    of_time: list[Any] = []
    for module in network.modules():
        attention = [getattr(module, name, None) for name in ("to_q", "to_k", "to_v")]
        if getattr(module, "is_cross_attention", False):
            of_text += attention[1:]
        else:
            _bind(attention)
        _bind([getattr(module, name, None) for name in ("q_proj", "k_proj", "v_proj")])
        of_time.append(getattr(module, "time_emb_proj", None))
    _bind(of_text)
    _bind([layer for layer in of_time if layer is not None], shared_only=True)


def separate(network: nn.Module) -> None:
    """Make the layers of a network stock again, in place."""
    layers: list[Any] = [module for module in network.modules() if type(module) is JoinedLinear]
    for layer in layers:
        layer.__class__ = nn.Linear
        del layer._together, layer._place


def share(x: Tensor) -> Tensor:
    """An input marked as the one that all layers of a group will read; stock blocks make a time embedding each."""
    vars(x).setdefault(_WAITING, {})
    return x


def _bind(layers: Sequence[Any], shared_only: bool = False) -> None:
    if len(layers) < 2 or any(type(layer) not in (nn.Linear, JoinedLinear) for layer in layers):
        return
    if len({(layer.in_features, layer.bias is None) for layer in layers}) > 1:
        return
    together = _Together(len(layers), shared_only)
    for place, layer in enumerate(layers):
        layer.__class__ = JoinedLinear
        layer._together, layer._place = together, place
        together.enter(place, layer)


class JoinedLinear(nn.Linear):
    """A linear layer that may be computed with others of the same input."""

    _together: "_Together"
    _place: int

    def forward(self, input: Tensor) -> Tensor:
        result = self._together.result_of(self._place, self, input) if _worth_it(input) else None
        return super().forward(input) if result is None else result

    def __setstate__(self, state: Any) -> None:  # of a copy, too
        super().__setstate__(state)
        self._together.enter(self._place, self)


def _worth_it(x: Tensor) -> bool:
    return not torch.compiler.is_compiling() and _joins.get() and x.is_cuda


class _Together:
    """Linear layers of one input.

    It knows them weakly, and its copies begin empty, for the copied layers to enter: no layer keeps the others alive or
    takes them along into a copy.
    """

    def __init__(self, count: int, shared_only: bool) -> None:
        self._count = count
        self._shared_only = shared_only
        self._members: weakref.WeakValueDictionary[int, nn.Linear] = weakref.WeakValueDictionary()
        self._no_room_at: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Together, (self._count, self._shared_only)

    def enter(self, place: int, layer: nn.Linear) -> None:
        """Take a layer in, unless its place is taken, as by the original of a shallow copy."""
        self._members.setdefault(place, layer)

    def result_of(self, place: int, layer: nn.Linear, x: Tensor) -> Tensor | None:
        """What the layer at a place makes of x; None where it has to see to that by itself."""
        if x.is_inference() or not _is_plain(layer) or (self._shared_only and _WAITING not in vars(x)):
            return None
        waiting: dict[_Together, dict[int, tuple[Any, Tensor]]] = vars(x).get(_WAITING, {})
        mine = waiting.get(self, {})
        circumstances, part = mine.pop(place, (None, None))
        if part is None or circumstances != _circumstances(x, layer):
            layers: list[Any] = [self._members.get(i) for i in range(self._count)]
            parts = None if layers[place] is not layer or _is_kept(x) else self._products(layers, x)
            if parts is None:
                return None
            mine = {i: (_circumstances(x, layers[i]), part) for i, part in enumerate(parts)}
            part = mine.pop(place)[1]
            waiting[self] = mine
            vars(x)[_WAITING] = waiting
        if not mine:
            waiting.pop(self, None)
            if not waiting and not self._shared_only:
                vars(x).pop(_WAITING, None)
        return part

    def _products(self, layers: Sequence[Any], x: Tensor) -> Sequence[Tensor] | None:
        if not all(layer is not None and _is_plain(layer) for layer in layers):
            return None
        if torch.is_grad_enabled() and any(weight.requires_grad for layer in layers for weight in _weights(layer)):
            return None
        address = layers[0].weight.data_ptr()
        if address == self._no_room_at:
            return None
        try:
            columns = zip(*map(_weights, layers), strict=True)  # the weights, and the biases where there are any
            whole: list[Any] = [_side_by_side(weights) for weights in columns]
        except torch.OutOfMemoryError:  # there may be room where they are moved to next
            self._no_room_at = address
            return None
        if any(weights is None for weights in whole):
            return None
        # Not views of one tensor, so that each may be changed in place.
        return torch.unsafe_split_with_sizes(F.linear(x, *whole), [layer.out_features for layer in layers], dim=-1)


def _weights(layer: nn.Linear) -> tuple[Tensor, ...]:
    return (layer.weight,) if layer.bias is None else (layer.weight, layer.bias)


def _is_plain(layer: nn.Linear) -> bool:
    """Whether the weights have an address: those of quantised kinds and of functional calls have none."""
    return all(type(weight) is nn.Parameter and not weight.is_inference() for weight in _weights(layer))


def _circumstances(x: Tensor, layer: nn.Linear) -> tuple[Any, ...]:
    """What must be the same for a product that waits to be what would be computed now."""
    weights = [(weight.data_ptr(), weight._version) for weight in _weights(layer)]
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled(x.device.type)
    stream = (torch.cuda.current_stream(x.device), torch.cuda.is_current_stream_capturing()) if x.is_cuda else None
    return x._version, weights, modes, stream, threading.get_ident()


def _is_kept(x: Tensor) -> bool:
    """Whether gradients make products that wait with x a danger.

    A leaf outlives its pass, and what waits with it would hold it in turn. Checkpointing, which shows in hooks on what
    is saved, computes parts of a pass twice, each by itself.
    """
    if not torch.is_grad_enabled():
        return False
    internals: Any = torch._C  # torch has no public call
    hooks = getattr(internals._autograd, "_top_saved_tensors_default_hooks", None)
    return (x.is_leaf and x.requires_grad) or hooks is None or hooks(False) is not None


def _side_by_side(weights: Sequence[Tensor]) -> Tensor | None:
    """Weights as one, a view of them all; None if they cannot be laid side by side now."""
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
    """Whether that could be done; what the weights are stays as it is, where they lie does not.

    A host that moves some of them alone gets their memory back when it has moved them all. Raises OutOfMemoryError.
    """
    if len({(weight.dtype, weight.device) for weight in weights}) > 1:
        return False
    device = weights[0].device
    on_gpu = device.type == "cuda"
    if on_gpu and torch.cuda.is_current_stream_capturing():
        return False
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
    return True
