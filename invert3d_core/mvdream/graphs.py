"""CUDA graphs: work that networks do again and again on inputs of the same shapes, launched as one piece.

A U-Net pass is a thousand short kernels, and launching them takes the CPU longer than running them takes the GPU. A
CUDA graph is recorded once and launched in one call. The first run of a kind of work is an ordinary one, which also
readies the libraries; at the second the work is recorded and its result compared with an ordinary run; from then on it
is replayed. Without a CUDA device, and for networks that are spread over devices, the work runs as ordinary PyTorch,
with the same result; so it does, and the log says so once, where a recording fails or the allocator does not suit.
"""

import contextlib
import contextvars
import gc
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import first_line
from .joined import together

logger = logging.getLogger("invert3d")

Work = Callable[..., tuple[Tensor, ...]]

# Of a replay against an ordinary run, in norm: in bfloat16, gradients of attention and their squares differ by some
# hundredths from run to run, and a recording that has gone wrong by about 1.
_TOLERANCE = 0.1
_KEPT_KINDS = 16  # kinds of work of which is known that they ran before; only graphs take memory
_allowed: contextvars.ContextVar[bool] = contextvars.ContextVar("invert3d_cuda_graphs", default=True)
_streams: dict[torch.device, Any] = {}
_announced: set[str] = set()
_all: "weakref.WeakSet[Graphs]" = weakref.WeakSet()


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Inside, nothing is recorded or replayed: all work runs as ordinary PyTorch."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


class Graphs:
    """Recorded work of some networks. It goes with them: a graph is used only while their weights lie where they lay.

    keep: how many graphs are held at once, the least recently used going first. A graph holds the memory of its work.
    """

    def __init__(self, keep: int = 2) -> None:
        self._keep = keep
        self._kinds: OrderedDict[Hashable, _Recording | None] = OrderedDict()
        self._refused: set[Hashable] = set()
        _all.add(self)

    def run(
        self, what: str, work: Work, inputs: Sequence[Tensor], networks: Sequence[nn.Module], key: Hashable = None
    ) -> tuple[Tensor, ...]:
        """What ``work(*inputs)`` returns, replayed where it can be.

        what: the work's name in the log. work: a function of tensors to a tuple of tensors that reads nothing else but
        the networks' weights and what never changes for one key and one `Graphs`, does not wait for the GPU, and draws
        no random numbers on it; it may differentiate inside, its results are detached. inputs: with the same shapes,
        dtypes and key, the same recording. networks: all whose weights it reads.
        """
        device = inputs[0].device
        if not self._possible(device, networks):
            return _detached(work(*inputs))
        differentiable = torch.is_grad_enabled()
        kind = (
            what,
            key,
            tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs),
            differentiable,
            torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None,
        )
        # What is kept from one call to the next must serve outside a host's inference mode, too.
        with torch.inference_mode(False), torch.set_grad_enabled(differentiable), torch.cuda.device(device):
            return self._run(kind, what, work, inputs, networks)

    def release(self) -> None:
        """Forget every recording and give its memory back."""
        held = any(recording is not None for recording in self._kinds.values())
        self._kinds.clear()
        self._refused.clear()  # what failed for want of memory may do now
        if held:
            torch.cuda.empty_cache()

    def __len__(self) -> int:
        """The number of graphs that are held."""
        return sum(recording is not None for recording in self._kinds.values())

    def __deepcopy__(self, memo: object) -> "Graphs":
        return Graphs(self._keep)

    def _possible(self, device: torch.device, networks: Sequence[nn.Module]) -> bool:
        if device.type != "cuda" or not _allowed.get() or torch.cuda.is_current_stream_capturing():
            return False
        reason = hindrance(device)
        if reason is not None:
            announce(reason)
            return False
        return all(next(network.parameters()).device == device for network in networks)

    def _run(
        self, kind: Hashable, what: str, work: Work, inputs: Sequence[Tensor], networks: Sequence[nn.Module]
    ) -> tuple[Tensor, ...]:
        if kind in self._refused:
            return _detached(work(*inputs))
        known = kind in self._kinds
        recording = self._kinds.get(kind)
        if recording is not None and not recording.weights.in_place:
            # Replaced or moved weights: what was recorded reads memory that may be another's by now.
            self._kinds[kind] = recording = None
        if recording is None and not known:
            result = _aside(inputs[0].device, lambda: _ordinary(work, inputs))
            self._kinds[kind] = None
            while len(self._kinds) > _KEPT_KINDS:
                self._kinds.popitem(last=False)
            return result
        if recording is None:
            self._make_room()
            recording = self._recorded(kind, what, work, inputs, networks)
            if recording is None:
                return _detached(work(*inputs))
        self._kinds[kind] = recording
        self._kinds.move_to_end(kind)
        return recording.replay(inputs)

    def _make_room(self) -> None:
        held = [kind for kind, recording in self._kinds.items() if recording is not None]
        for kind in held[: max(0, len(held) + 1 - self._keep)]:
            self._kinds[kind] = None

    def _recorded(
        self, kind: Hashable, what: str, work: Work, inputs: Sequence[Tensor], networks: Sequence[nn.Module]
    ) -> "_Recording | None":
        """A new recording; None, with a word in the log, where that does not work out."""
        usual = torch.cuda.current_stream()
        try:
            recording = _Recording(work, inputs, networks)
        except RuntimeError as error:  # of which out of memory is one
            reason = _reason(error)
        else:
            if recording.error <= _TOLERANCE:
                logger.debug("%s is replayed as a CUDA graph, within %.1e of an ordinary run.", what, recording.error)
                return recording
            reason = f"replayed, it was off by {recording.error:.2g} of the result"
            del recording
        finally:
            torch.cuda.set_stream(usual)  # a recording that fails leaves its own
        self._refused.add(kind)
        torch.cuda.empty_cache()
        announce(
            f"{what} is not replayed as a CUDA graph but runs step by step, with the same result, slower: {reason}"
        )
        return None


def hindrance(device: torch.device) -> str | None:
    """Why nothing can be recorded on a device, whatever the work, in words for its user; None where nothing hinders."""
    if device.type != "cuda" or torch.cuda.get_allocator_backend() == "native":
        return None
    # Another keeps their memory where `empty_cache` does not reach, and an error in one ends the process.
    return (
        "Training and sampling are several times slower than they could be: CUDA graphs need PyTorch's own memory "
        "allocator, with which ComfyUI starts when it is given --disable-cuda-malloc."
    )


def announce(text: str) -> None:
    """A warning in the log, the first time that it is said in this process."""
    if text not in _announced:
        _announced.add(text)
        logger.warning(text)


def _reason(error: BaseException) -> str:
    """The first line of what happened first: a recording that is torn apart complains about that, too."""
    while error.__context__ is not None:
        error = error.__context__
    return first_line(error)


def graphs_of(network: nn.Module) -> Graphs:
    """The graphs kept with a network. They are forgotten when the network is moved or cast, and not copied with it."""
    holder = network._modules.get(_HOLDER)
    if not isinstance(holder, _Holder):
        holder = _Holder()
        network.add_module(_HOLDER, holder)
    return holder.graphs


def release_all() -> None:
    """Forget all graphs of all networks, and give their memory back."""
    for graphs in list(_all):
        graphs.release()


def release_graphs(network: nn.Module) -> None:
    """Forget the graphs kept with a network, and give their memory back."""
    holder = network._modules.get(_HOLDER)
    if isinstance(holder, _Holder):
        holder.graphs.release()


_HOLDER = "cuda_graphs"


class _Holder(nn.Module):
    """A part of a network without weights, which hears of it when the network is moved."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs = Graphs()

    def _apply(self, fn: Any, recurse: bool = True) -> "_Holder":
        self.graphs.release()
        return super()._apply(fn, recurse)


class _Weights:
    """Where the weights of networks lie."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        modules = [module for network in networks for module in network.modules()]
        # The dictionaries, not the tensors: a weight may be replaced by another.
        self._places = [(part._parameters, name) for part in modules for name in part._parameters]
        self._places += [(part._buffers, name) for part in modules for name in part._buffers]
        self._addresses = self._now()

    def _now(self) -> list[int]:
        weights = (holder.get(name) for holder, name in self._places)
        return [0 if weight is None else weight.data_ptr() for weight in weights]

    @property
    def in_place(self) -> bool:
        return self._now() == self._addresses


class _Recording:
    """Work as a CUDA graph. error: relative distance, in norm, of its replay from an ordinary run on the same inputs.

    Raises RuntimeError if it cannot be recorded.
    """

    def __init__(self, work: Work, inputs: Sequence[Tensor], networks: Sequence[nn.Module]) -> None:
        device = inputs[0].device
        self._inputs = [copy_of(tensor) for tensor in inputs]
        expected = _aside(device, lambda: _ordinary(work, self._inputs))
        self.weights = _Weights(networks)  # after a run, which may lay some of them side by side (`joined`)
        gc.collect()  # nothing of an earlier run or graph may be freed while this one is recorded
        self._graph, self._outputs = _record(device, lambda: _ordinary(work, self._inputs))
        self._graph.replay()
        self.error = max(
            (_distance(found, wanted) for found, wanted in zip(self._outputs, expected, strict=True)), default=0.0
        )

    def replay(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Results for new inputs, in memory of their own."""
        torch._foreach_copy_(self._inputs, list(inputs))
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)


def _record(device: torch.device, function: Callable[[], tuple[Tensor, ...]]) -> tuple[Any, tuple[Tensor, ...]]:
    """The graph of what a function does, and where its results come to lie."""
    graph, pool, mode = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), "thread_local"
    try:
        # On the stream of the ordinary runs; other threads may do as they like meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=_stream(device), capture_error_mode=mode):
            results = function()
    except BaseException:
        try:
            graph.pool()  # there if the recording itself ended well, and the function did not
        except RuntimeError:
            _clear_up(device, pool)
        raise
    return graph, results


def _clear_up(device: torch.device, pool: Any) -> None:
    """End what a recording that was torn apart leaves under way in the allocator and in the random generator.

    torch has no public call for the first; without it, memory that is freed would not come back.
    """
    for end in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        with contextlib.suppress(RuntimeError, AttributeError, TypeError):
            getattr(torch._C, end)(torch.cuda.current_device(), pool)
    with contextlib.suppress(RuntimeError):
        torch.cuda.set_stream(_stream(device))
        # The generator leaves its state at the end of the next recording that succeeds.
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=_stream(device), capture_error_mode="thread_local"):
            torch.zeros(1, device=device)


def copy_of(tensor: Tensor) -> Tensor:
    """A detached copy, dense in memory."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _detached(results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(result.detach() for result in results)


def _ordinary(work: Work, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The work without recordings inside it; autocast keeps no copies of weights, which a graph would go on reading."""
    keeps = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with eager(), together():
            return _detached(work(*inputs))
    finally:
        torch.set_autocast_cache_enabled(keeps)


def _stream(device: torch.device) -> Any:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


def _aside(device: torch.device, function: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Run on the recording's stream, so that libraries have there what they may not ask for during a recording."""
    usual, side = torch.cuda.current_stream(device), _stream(device)
    side.wait_stream(usual)
    with torch.cuda.stream(side):
        result = function()
    usual.wait_stream(side)
    for tensor in result:
        tensor.record_stream(usual)
    return result


def _distance(found: Tensor, wanted: Tensor) -> float:
    """Relative distance in norm; infinite where one is finite and the other is not."""
    if not bool((found.isfinite() == wanted.isfinite()).all()):
        return float("inf")
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(found, wanted) else float("inf")
    found, wanted = (tensor.double().nan_to_num(0.0, 0.0, 0.0) for tensor in (found, wanted))
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))
