"""Gaussian splats in memory."""

import re
from dataclasses import InitVar, dataclass, replace

import torch
from torch import Tensor

from ..errors import FormatError
from ..rotations import rotation_matrices
from . import spherical_harmonics

_DEGREES = {spherical_harmonics.coefficients(degree): degree for degree in range(spherical_harmonics.MAX_DEGREE + 1)}
_FIELDS = ("positions", "scales", "rotations", "opacities", "sh")


@dataclass(frozen=True, eq=False, repr=False)
class GaussianSplats:
    """N Gaussian splats, activated, in the frame of their file; field for field the host's ``SPLAT``, one item of it.

    positions: (N,3) centres, scene units.
    scales: (N,3) linear standard deviations ≥ 0 along the splat's own axes, scene units (0: a flat splat).
    rotations: (N,4) unit quaternions w,x,y,z, from the splat's own axes to the scene's.
    opacities: (N,1) in [0,1]; (N,) is accepted and becomes (N,1).
    sh: (N,K,3) spherical harmonics, K = (degree + 1)², DC first; colour = max(0, Σ sh_k Y_k + 0.5), display space.
    comment: what the file says about itself in words, lines separated by newlines.
    check_values: False skips the look at the values (a pass over all of them, and on a GPU a wait for it), for loops
        that build splats from values known to be good.

    All tensors are float32 (other floating types are converted) on one device, and may carry gradients.
    Raises FormatError for wrong shapes, types and devices, for NaN and infinite values, for negative scales and for
    opacities outside [0,1].
    """

    positions: Tensor  # (N,3)
    scales: Tensor  # (N,3)
    rotations: Tensor  # (N,4)
    opacities: Tensor  # (N,1)
    sh: Tensor  # (N,K,3)
    comment: str = ""
    check_values: InitVar[bool] = True

    def __post_init__(self, check_values: bool) -> None:
        for name in _FIELDS:
            value = getattr(self, name)
            if not isinstance(value, Tensor) or not value.is_floating_point():
                found = f"of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
                raise FormatError(f"Splat {name} must be a floating-point torch tensor, found {found}.")
            object.__setattr__(self, name, value.float())
        if self.opacities.ndim == 1:
            object.__setattr__(self, "opacities", self.opacities[:, None])
        count = len(self.positions) if self.positions.ndim else 0
        for name, width in (("positions", 3), ("scales", 3), ("rotations", 4), ("opacities", 1)):
            shape = tuple(getattr(self, name).shape)
            if shape != (count, width):
                raise FormatError(
                    f"Splat {name} have shape {shape}; expected ({count if name != 'positions' else 'N'},{width})."
                )
        shape = tuple(self.sh.shape)
        if len(shape) != 3 or shape[0] != count or shape[1] not in _DEGREES or shape[2] != 3:
            raise FormatError(
                f"Splat sh have shape {shape}; expected ({count},K,3) with K = {', '.join(map(str, _DEGREES))} for "
                "degree 0 to 4 (coefficients before channels, DC first)."
            )
        devices = {str(getattr(self, name).device) for name in _FIELDS}
        if len(devices) > 1:
            raise FormatError(f"The splats are spread over {', '.join(sorted(devices))}. Move them to one device.")
        if not isinstance(self.comment, str):
            raise FormatError(f"The comment of splats must be text, found {type(self.comment).__name__}.")
        if check_values:
            self.validate()

    def validate(self) -> "GaussianSplats":
        """These splats, if their values are what the class says: finite, scales ≥ 0, opacities in [0,1].

        Raises FormatError otherwise, naming the first splat that is not.
        """
        for name in _FIELDS:
            value = getattr(self, name).detach()
            # One sum instead of a mask of all values: NaN and infinity survive it.
            if not bool(torch.isfinite(value.sum())):
                self._refuse(name, ~torch.isfinite(value), "NaN or infinite values", "Remove those splats")
        scales, opacities = self.scales.detach(), self.opacities.detach()
        self._refuse("scales", scales < 0, "negative values", "They are linear, not logarithms: apply exp")
        self._refuse(
            "opacities",
            (opacities < 0) | (opacities > 1),
            "values outside [0,1]",
            "They are activated, not logits: apply a sigmoid",
        )
        return self

    def _refuse(
        self,
        name: str,
        bad: Tensor,  # (N,...) bool
        what: str,
        remedy: str,
    ) -> None:
        rows = bad.flatten(1).any(1)
        count = int(rows.sum())
        if count:
            raise FormatError(
                f"The {name} of {count} of {len(self)} splats hold {what}; the first is splat "
                f"{int(rows.int().argmax())}. {remedy}."
            )

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        return f"GaussianSplats({len(self)} splats, SH degree {self.degree}, {self.device})"

    @property
    def degree(self) -> int:
        """The degree of the spherical harmonics, 0 to 4."""
        return _DEGREES[self.sh.shape[1]]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.positions.device

    @property
    def stated_axes(self) -> tuple[str, str] | None:
        """(up, front) such as ("+y", "+z") where the comment states both as ``up="+y"`` and ``front="+z"``; else None.

        The signed axis of the splats' own frame that points up, and the one that the asset's front faces.
        """
        found = [re.search(rf'\b{name}="([+-][xyz])"', self.comment) for name in ("up", "front")]
        up, front = (match.group(1) if match else None for match in found)
        return (up, front) if up and front and up[1] != front[1] else None

    def to(self, device: torch.device | str) -> "GaussianSplats":
        """The same splats on another device (these, where they are there already)."""
        moved = {name: getattr(self, name).to(device) for name in _FIELDS}
        if all(moved[name] is getattr(self, name) for name in _FIELDS):
            return self
        return replace(self, **moved, check_values=False)

    def covariances(self) -> Tensor:  # (N,3,3)
        """The 3D covariances R S Sᵀ Rᵀ, (N,3,3), scene units squared; differentiable.

        Equation 6 of 3D Gaussian Splatting (Kerbl et al. 2023); quaternions are normalised on the way.
        """
        spread = rotation_matrices(self.rotations) * self.scales[:, None, :]  # R S
        return spread @ spread.transpose(1, 2)
