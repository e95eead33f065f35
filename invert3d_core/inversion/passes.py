"""The passes through the networks that training is made of: a step of all tokens, and a validation.

On a GPU each is replayed as a CUDA graph (`mvdream.graphs`). Where memory runs out they become smaller: the sets of a
step pass one after the other with their gradients added up, then activations are computed twice, then the VAE leaves
the GPU. The result stays the same but for rounding.
"""

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..devices import sent
from ..errors import TrainingError
from ..mvdream import MVDream
from ..mvdream.graphs import Graphs
from ..mvdream.memory import fitting
from .objective import Batch, Objective
from .optimizer import adamw_scalars, adamw_update, clip_norm, with_norm
from .presets import InversionConfig

logger = logging.getLogger("invert3d")

T = TypeVar("T")
_VALIDATED_AT_ONCE = 4  # sets


class Moved(NamedTuple):
    """What a step makes of the vectors and AdamW's moments, all (A,n,d); its numbers may still be on their way."""

    vectors: Tensor
    first_moment: Tensor
    second_moment: Tensor
    copied: Tensor  # (2,A)
    arrived: Any = None  # torch.cuda.Event

    def numbers(self) -> Tensor:
        """Losses and sums of the vectors, (2,A) on the CPU, as soon as this step is done."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.copied


class Passes:
    """Steps and validations of an objective, in as little memory as it takes.

    norm: what `InversionConfig.norm_control` sets vectors to. As a context it puts back what it did to the model.
    """

    def __init__(self, model: MVDream, objective: Objective, config: InversionConfig, norm: float) -> None:
        self._model = model
        self._objective = objective
        self._config = config
        self._norm = norm
        self._networks = [model.unet, model.text_encoder]
        self._graphs = Graphs()
        self._at_once = config.sets_per_step
        # Without gradients, several sets take less memory than a training step of one.
        several = model.device.type == "cuda" and len(objective.tokens) == 1 and not config.gradient_checkpointing
        self._validated_at_once = _VALIDATED_AT_ONCE if several else 1
        self._checkpointing = config.gradient_checkpointing
        self._undo: list[Callable[[], object]] = []
        self._begun: tuple[int, Tensor, Moved] | None = None

    def __enter__(self) -> "Passes":
        if self._checkpointing:
            self._checkpoint()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._begun is not None:
            self._begun[2].numbers()  # the graph must not go while it runs
        self._graphs.release()
        while self._undo:
            self._undo.pop()()

    def step(
        self, step: int, vectors: Tensor, first_moment: Tensor, second_moment: Tensor, active: Tensor, rate: float
    ) -> Moved:
        """One step of AdamW on the losses of a step; tokens that are not active (A,) stay where they are.

        Raises TrainingError if the GPU's memory is too small in every way.
        """
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] == step and begun[1] is vectors:
            return begun[2]
        config, device = self._config, vectors.device
        scalars = adamw_scalars(step + 1, learning_rate=rate, betas=config.betas, weight_decay=config.weight_decay)

        def attempt() -> Moved:
            inputs = [vectors, first_moment, second_moment, active.to(device), *self._objective.batch(step)]
            if device.type != "cuda":
                return Moved(*self._advance(scalars, *inputs))
            # As a tensor, since a recording keeps the numbers it was made with.
            inputs.insert(0, sent(torch.tensor(scalars, dtype=torch.float32), device))
            key = self._at_once, self._checkpointing
            vectors_after, first, second, numbers = self._graphs.run(
                "The training step", self._advance, inputs, self._networks, key
            )
            arrived = torch.cuda.Event()
            moved = Moved(vectors_after, first, second, numbers.to("cpu", non_blocking=True), arrived)
            arrived.record()
            if step + 1 < config.steps:
                self._objective.draw_ahead(step + 1)
            return moved

        return self._fitting(attempt)

    def begin(self, step: int, moved: Moved, active: Tensor, rate: float) -> None:
        """Give a GPU the step that will follow before the numbers of this one are read, so that it need not wait.

        moved: what the step before made. `step` with the same vectors then returns the result.
        """
        if moved.arrived is not None:
            following = self.step(step, moved.vectors, moved.first_moment, moved.second_moment, active, rate)
            self._begun = step, moved.vectors, following

    @torch.no_grad()
    def validation_losses(self, vectors: Tensor) -> Tensor:  # (A,n,d) -> (A,)
        """Losses on sets, timesteps, noises and captions that are the same at every call."""

        def work(vectors: Tensor, *batch: Tensor) -> tuple[Tensor, ...]:
            return (self._objective.losses_on(vectors, Batch(*batch)),)

        def attempt() -> Tensor:
            batches = self._objective.validation_batches(self._validated_at_once)
            losses = [
                len(batch.captions) * self._graphs.run("The validation", work, [vectors, *batch], self._networks)[0]
                for batch in batches
            ]
            return torch.stack(losses).sum(dim=0) / self._config.validation_sets

        def step_down(reason: str) -> bool:
            if self._validated_at_once == 1:
                return self._step_down(reason)
            self._validated_at_once = 1
            return True

        return self._fitting(attempt, step_down)

    def _advance(
        self,
        scalars: Tensor | tuple[float, float, float],
        vectors: Tensor,
        first_moment: Tensor,
        second_moment: Tensor,
        active: Tensor,
        *parts: Tensor,
    ) -> tuple[Tensor, ...]:
        """The work of a step on tensors alone."""
        config, batch = self._config, Batch(*parts)
        losses, gradient = self._gradient(vectors, batch)
        with torch.no_grad():
            if config.clip_gradient is not None:
                gradient = clip_norm(gradient, config.clip_gradient)
            moved, first, second = adamw_update(
                vectors,
                gradient,
                first_moment,
                second_moment,
                scalars if isinstance(scalars, tuple) else scalars.unbind(),
                betas=config.betas,
                epsilon=config.epsilon,
            )
            if config.norm_control:
                moved = with_norm(moved, self._norm)
            moved = torch.where(active[:, None, None], moved, vectors)
            return moved, first, second, torch.stack([losses.to(moved), moved.flatten(1).sum(dim=1)])

    def _gradient(self, vectors: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses (A,) and their gradient in the vectors (A,n,d), of as many sets at once as fit."""
        sets = len(batch.captions)
        parts: list[tuple[Tensor, Tensor]] = []
        for start in range(0, sets, self._at_once):
            some = batch.sets(start, start + self._at_once)
            leaf = vectors.detach().requires_grad_()
            losses = self._objective.losses_on(leaf, some) * (len(some.captions) / sets)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
            parts.append((losses.detach(), gradient))
        losses, gradients = zip(*parts, strict=True)
        return torch.stack(losses).sum(0), torch.stack(gradients).sum(0)

    # Memory

    def _fitting(self, attempt: Callable[[], T], step_down: Callable[[str], bool] | None = None) -> T:
        """What the attempt gives, in smaller passes after each time that memory runs out."""
        return fitting(attempt, step_down or self._step_down, lambda reason: TrainingError(self._too_large(reason)))

    def _step_down(self, reason: str) -> bool:
        """Go over to the next smaller way of doing the same, with a word in the log; False where there is none."""
        if self._at_once > 1:
            self._at_once = -(-self._at_once // 2)
            how = f"the {self._config.sets_per_step} sets of a step now pass {self._at_once} at a time"
        elif not self._checkpointing:
            self._checkpoint()
            how = "activations are now computed twice (gradient checkpointing)"
        elif self._offload():
            how = "the VAE now waits in the CPU's memory"
        else:
            return False
        logger.warning("Memory ran out in training (%s): %s. The result is the same, steps take longer.", reason, how)
        return True

    def _checkpoint(self) -> None:
        unet = self._model.unet
        self._checkpointing = True
        if getattr(unet, "is_gradient_checkpointing", False):
            return

        # Nothing in it is random, and asking for the state of the generator would end a recording.
        def twice(module: torch.nn.Module, *args: object) -> object:
            return checkpoint(module.__call__, *args, use_reentrant=False, preserve_rng_state=False)

        unet.enable_gradient_checkpointing(twice)
        self._undo.append(unet.disable_gradient_checkpointing)

    def _offload(self) -> bool:
        """Move the VAE away from the memory that is full; False if it is not there, or views are encoded each step."""
        vae = self._model.vae
        if vae is None or self._config.views == "fresh":
            return False
        device = next(vae.parameters()).device
        if device.type == "cpu" or device != self._model.device:
            return False
        torch.nn.Module.to(vae, "cpu")

        def back() -> None:
            try:
                torch.nn.Module.to(vae, device)
            except torch.OutOfMemoryError:
                torch.nn.Module.to(vae, "cpu")
                logger.warning("The VAE stays in the CPU's memory: there is no room for it on %s.", device)

        self._undo.append(back)
        return True

    def _too_large(self, reason: str) -> str:
        model, tokens = self._model, len(self._objective.tokens)
        weights = sum(p.numel() * p.element_size() for network in self._networks for p in network.parameters()) / 1e9
        text = (
            f"The training does not fit into the memory of {model.device} ({reason}), not even one set of views at a "
            "time with gradient checkpointing and without the VAE."
        )
        if model.device.type == "cuda":
            free, total = (number / 1e9 for number in torch.cuda.mem_get_info(model.device))
            text += f" Of {total:.1f} GB, {free:.1f} are free beside this model."
        advice = ["close what else uses the device"]
        if model.dtype == torch.float32:
            advice.insert(
                0, f"load the model in bfloat16, whose weights take {weights / 2:.1f} GB and not {weights:.1f}"
            )
        if tokens > 1:
            advice.insert(0, f"train fewer than {tokens} tokens together")
        return f"{text} What would fit: {'; '.join([*advice, 'or train on the CPU'])}."
