"""Training state on disk; how it is kept there is `CheckpointFormat`'s.

Everything random in a run is a function of the seed and the step (`draws.step_generator`), so the step is the state
of the generators and of the data order, and resuming gives the bits of an uninterrupted run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoints import CheckpointFormat

FREE_SETTINGS = frozenset({"checkpoint_every", "preview_every", "gradient_checkpointing"})
"""Settings that do not change what is learned: a run may be resumed, and a finished one found again, with others."""


@dataclass(frozen=True)
class TrainingState:
    """One step of a run of A tokens; a step makes a new one, so that an interruption always leaves a whole one.

    step: steps done. vectors, first_moment, second_moment: (A,n,d), the tokens and AdamW's moments.
    active: (A,) bool, False once a token has stopped early. losses: (step,A) training losses, NaN after its stop.
    validation_steps: (K,) int64; validation_losses: (K,A). best_vectors: (A,n,d), best_loss: (A,), best_step: (A,)
    int64, waiting: (A,) int64 validations since the best; all of the lowest validation loss so far.
    """

    step: int
    vectors: Tensor
    first_moment: Tensor
    second_moment: Tensor
    active: Tensor
    losses: Tensor
    validation_steps: Tensor
    validation_losses: Tensor
    best_vectors: Tensor
    best_loss: Tensor
    best_step: Tensor
    waiting: Tensor


_TENSORS = [name for name in TrainingState.__dataclass_fields__ if name != "step"]

FORMAT = CheckpointFormat(
    job="training",
    key="invert3d_training",
    schema=1,
    tensors=frozenset(_TENSORS),
)


def save(path: Path, state: TrainingState, fingerprint: Mapping[str, Any], finished: bool) -> None:
    """Write a state, see `CheckpointFormat.save`."""
    FORMAT.save(path, state.step, _tensors(state), fingerprint, finished)


def keep(path: Path, state: TrainingState, fingerprint: Mapping[str, Any], finished: bool) -> bool:
    """`save` for the middle of the work, see `CheckpointFormat.keep`."""
    return FORMAT.keep(path, state.step, _tensors(state), fingerprint, finished)


def load(path: Path, fingerprint: Mapping[str, Any]) -> tuple[TrainingState, bool] | None:
    """The state of a checkpoint and whether the run was finished; None if there is no file.

    Raises TrainingError as `CheckpointFormat.load`.
    """
    found = FORMAT.load(path, fingerprint)
    if found is None:
        return None
    step, tensors, finished = found
    return TrainingState(step=step, **{name: tensors[name] for name in _TENSORS}), finished


peek = FORMAT.peek


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    return {name: getattr(state, name) for name in _TENSORS}
