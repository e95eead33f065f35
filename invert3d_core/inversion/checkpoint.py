"""Training state on disk: written whole or not at all, and refused where it does not belong to the run.

Everything random in a run is a function of the seed and the step (`draws.step_generator`), so the step is the state
of the generators and of the data order, and resuming gives the bits of an uninterrupted run.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ..errors import TrainingError
from ..tokens import write_atomically

_METADATA_KEY = "invert3d_training"
_SCHEMA = 1


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


def save(path: Path, state: TrainingState, fingerprint: Mapping[str, Any], finished: bool) -> None:
    """Write a state; a reader sees the one before or this one, whatever happens meanwhile.

    fingerprint: JSON-serialisable settings and input hashes that must be the same for the run to go on.
    """
    entry = {"schema": _SCHEMA, "step": state.step, "finished": finished, "fingerprint": fingerprint}
    tensors = {name: getattr(state, name).detach().to("cpu").contiguous() for name in _TENSORS}
    data = safetensors.torch.save(tensors, metadata={_METADATA_KEY: json.dumps(entry, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)


def load(path: Path, fingerprint: Mapping[str, Any]) -> tuple[TrainingState, bool] | None:
    """The state of a checkpoint and whether the run was finished; None if there is no file.

    Raises TrainingError if the file is not a checkpoint, or belongs to other settings or inputs (naming them).
    """
    for abandoned in path.parent.glob(f".{path.name}.*.tmp"):  # left by a process that was killed while writing
        abandoned.unlink(missing_ok=True)
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            entry = json.loads((file.metadata() or {})[_METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        schema, step, finished, before = (entry[k] for k in ("schema", "step", "finished", "fingerprint"))
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"'{path}' is not a training checkpoint of this package ({error!r}). Delete it, or name another file."
        ) from error
    if schema != _SCHEMA:
        raise TrainingError(
            f"'{path}' has checkpoint schema {schema!r}, this version reads {_SCHEMA}. Delete it, or name another file."
        )
    # Through JSON once, so that tuples and lists compare equal.
    differences = _differences(before, json.loads(json.dumps(fingerprint)))
    if differences:
        raise TrainingError(
            f"The checkpoint '{path}' belongs to another run: {'; '.join(differences)}. Use the same settings and "
            "inputs to go on, name another checkpoint file, or start anew without resuming."
        )
    return TrainingState(step=step, **tensors), finished


def _differences(before: object, now: object, name: str = "") -> list[str]:
    """What differs between two fingerprints, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            words
            for key in sorted({*before, *now})
            for words in _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if before == now else [f"{name} was {_short(before)} and is now {_short(now)}"]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
