"""States of long jobs on disk: written whole or not at all, and refused where they do not belong to the job."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .errors import TrainingError
from .files import remove_abandoned, write_atomically

logger = logging.getLogger("invert3d")


def digest(tensors: Iterable[Tensor], label: str = "") -> str:
    """SHA-256 of a label and of every tensor's dtype, shape and values: what a state belongs to."""
    found = hashlib.sha256(label.encode())
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@dataclass(frozen=True)
class CheckpointFormat:
    """How one kind of job keeps its states: safetensors files with an entry in their metadata.

    job: what messages call it. key: of the entry. schema: the version that is written and read. tensors: names that
    every file has.
    """

    job: str
    key: str
    schema: int
    tensors: frozenset[str]

    def save(
        self, path: Path, step: int, tensors: Mapping[str, Tensor], fingerprint: Mapping[str, Any], finished: bool
    ) -> None:
        """Write a state; a reader sees the one before or this one, whatever happens meanwhile.

        fingerprint: JSON-serialisable settings and input hashes that must be the same for the job to go on.

        Raises StorageError if it cannot be written; the state before is still there.
        """
        entry = {"schema": self.schema, "step": step, "finished": finished, "fingerprint": fingerprint}
        stored = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        data = safetensors.torch.save(stored, metadata={self.key: json.dumps(entry, sort_keys=True)})
        write_atomically(path, data)

    def keep(
        self, path: Path, step: int, tensors: Mapping[str, Tensor], fingerprint: Mapping[str, Any], finished: bool
    ) -> bool:
        """`save` for the middle of the work, which a full disk must not end: what cannot be written is a warning.

        Returns whether the state is on disk.
        """
        try:
            self.save(path, step, tensors, fingerprint, finished)
        except OSError as error:
            logger.warning("Step %d of the %s is not on disk, and the %s goes on: %s", step, self.job, self.job, error)
            return False
        return True

    def load(self, path: Path, fingerprint: Mapping[str, Any]) -> tuple[int, dict[str, Tensor], bool] | None:
        """The step, the tensors on the CPU, and whether the job was finished; None if there is no file.

        Raises TrainingError if the file is not such a checkpoint, or belongs to other settings or inputs (naming them).
        """
        remove_abandoned(path.parent, path.name)
        if not path.exists():
            return None
        try:
            with safetensors.safe_open(path, framework="pt", device="cpu") as file:
                entry = json.loads((file.metadata() or {})[self.key])
                tensors = {name: file.get_tensor(name) for name in {*file.keys()} | self.tensors}
            schema, step, finished, before = (entry[k] for k in ("schema", "step", "finished", "fingerprint"))
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(
                f"'{path}' is not a {self.job} checkpoint of this package ({error!r}). Delete it, or name another file."
            ) from error
        if schema != self.schema:
            raise TrainingError(
                f"'{path}' has checkpoint schema {schema!r}, this version reads {self.schema}. Delete it, or name "
                "another file."
            )
        # Through JSON once, so that tuples and lists compare equal.
        differences = _differences(before, json.loads(json.dumps(fingerprint)))
        if differences:
            raise TrainingError(
                f"The checkpoint '{path}' belongs to another run: {'; '.join(differences)}. Use the same settings and "
                "inputs to go on, name another checkpoint file, or start anew without resuming."
            )
        return step, tensors, finished

    def peek(self, path: Path) -> tuple[int, bool] | None:
        """How many steps a checkpoint holds and whether its job was finished; None if it is damaged or not one of ours.

        Raises OSError if the file cannot be read at all.
        """
        try:
            with safetensors.safe_open(path, framework="pt", device="cpu") as file:
                entry = json.loads((file.metadata() or {})[self.key])
                if entry["schema"] != self.schema or not self.tensors <= {*file.keys()}:
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
