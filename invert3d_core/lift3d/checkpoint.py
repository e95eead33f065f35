"""The state of a fit on disk; how it is kept there is `CheckpointFormat`'s."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints import CheckpointFormat

_GROUPS = ("params", "moments", "stats")
_LOSSES = "losses"
_VALUES = ("means", "scales", "quats", "opacities", "sh0")

FORMAT = CheckpointFormat(
    job="fit", key="invert3d_fit", schema=1, tensors=frozenset({_LOSSES, *(f"params/{name}" for name in _VALUES)})
)


@dataclass(frozen=True)
class FitState:
    """One step of a fit.

    step: steps done. params: the splats, see `parameters.Parameters`. moments: Adam's, by the name of the parameter and
    theirs, as in "means.exp_avg"; empty before the first step and in a finished fit. stats: of the density control.
    losses: (step,).
    """

    step: int
    params: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    stats: Mapping[str, Tensor]
    losses: Tensor


def save(path: Path, state: FitState, fingerprint: Mapping[str, object], finished: bool) -> None:
    """Write a state, see `CheckpointFormat.save`."""
    FORMAT.save(path, state.step, _tensors(state), fingerprint, finished)


def keep(path: Path, state: FitState, fingerprint: Mapping[str, object], finished: bool) -> bool:
    """`save` for the middle of the work, see `CheckpointFormat.keep`."""
    return FORMAT.keep(path, state.step, _tensors(state), fingerprint, finished)


def load(path: Path, fingerprint: Mapping[str, object], device: torch.device) -> tuple[FitState, bool] | None:
    """The state of a checkpoint, on a device, and whether the fit was finished; None if there is no file.

    Raises TrainingError as `CheckpointFormat.load`.
    """
    found = FORMAT.load(path, fingerprint)
    if found is None:
        return None
    step, tensors, finished = found
    groups = {
        group: {
            name.removeprefix(f"{group}/"): tensor.to(device)
            for name, tensor in tensors.items()
            if name.startswith(f"{group}/")
        }
        for group in _GROUPS
    }
    return FitState(step, **groups, losses=tensors[_LOSSES]), finished


peek = FORMAT.peek


def _tensors(state: FitState) -> dict[str, Tensor]:
    tensors = {f"{group}/{name}": value for group in _GROUPS for name, value in getattr(state, group).items()}
    return {**tensors, _LOSSES: state.losses}
