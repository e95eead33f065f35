"""Training state on disk: written whole or not at all, and refused where it does not belong to the run.

Everything random in a run is a function of the seed and the step (`draws.step_generator`), so the step is the state
of the generators and of the data order, and resuming gives the bits of an uninterrupted run.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ..errors import TrainingError
from ..files import remove_abandoned, write_atomically

logger = logging.getLogger("invert3d")

FREE_SETTINGS = frozenset({"checkpoint_every", "preview_every", "gradient_checkpointing"})
"""Settings that do not change what is learned: a run may be resumed, and a finished one found again, with others."""

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

    Raises StorageError if it cannot be written; the state before is still there.
    """
    entry = {"schema": _SCHEMA, "step": state.step, "finished": finished, "fingerprint": fingerprint}
    tensors = {name: getattr(state, name).detach().to("cpu").contiguous() for name in _TENSORS}
    data = safetensors.torch.save(tensors, metadata={_METADATA_KEY: json.dumps(entry, sort_keys=True)})
    write_atomically(path, data)


def keep(path: Path, state: TrainingState, fingerprint: Mapping[str, Any], finished: bool) -> bool:
    """`save` for the middle of the work, which a full disk must not end: what cannot be written is a warning.

    Returns whether the state is on disk.
    """
    try:
        save(path, state, fingerprint, finished)
    except OSError as error:
        logger.warning("Step %d of the training is not on disk, and the training goes on: %s", state.step, error)
        return False
    return True


def load(path: Path, fingerprint: Mapping[str, Any]) -> tuple[TrainingState, bool] | None:
    """The state of a checkpoint and whether the run was finished; None if there is no file.

    Raises TrainingError if the file is not a checkpoint, or belongs to other settings or inputs (naming them).
    """
    remove_abandoned(path.parent, path.name)
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


def peek(path: Path) -> tuple[int, bool] | None:
    """How many steps a checkpoint holds and whether its run was finished; None if it is damaged or not one of ours.

    Raises OSError if the file cannot be read at all.
    """
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            entry = json.loads((file.metadata() or {})[_METADATA_KEY])
            if entry["schema"] != _SCHEMA or not {*_TENSORS} <= {*file.keys()}:
                return None
            return int(entry["step"]), bool(entry["finished"])
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError):
        return None


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
