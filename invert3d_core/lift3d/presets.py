"""Settings of a fit: those of 3D Gaussian splatting (`reference`), ours for objects, and the metric's."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import TrainingError
from ..splats.spherical_harmonics import MAX_DEGREE


@dataclass(frozen=True)
class FitConfig:
    """All settings of one fit; the defaults are those of the preset "recommended".

    Lengths are relative to the radius of the region that the cameras look at, so that a fit does not depend on units.

    Splats
        splats: how many there are at the start. max_splats: how many there may be. start: "hull" puts them on the
            surface of the silhouettes' visual hull, "random" into the region's sphere.
        start_opacity: of all splats at the start.
        sh_degree: degree of the colours, 0 … 4. sh_every: steps until one more degree of them is used; 0 uses all at
            once.
    Loss: (1 − ssim_weight) · L1 + ssim_weight · (1 − SSIM) + mask_weight · L1 of alpha and mask
        + opacity_weight · mean opacity + scale_weight · mean scale
        background: what is put behind picture and splats at each step: "random" colours (where masks are given), or
            the pictures' "own".
    Optimiser (Adam, a rate for each kind of value)
        steps, views_per_step. position_rate falls exponentially to final_position_rate. scale_rate (of the logarithm),
        rotation_rate, opacity_rate (of the logit), color_rate; higher degrees of colour have a twentieth of it.
    Number of splats
        density: "fixed" keeps the number; "adaptive" clones small and splits large splats that pictures pull at, and
            removes faint ones (Kerbl et al. 2023); "mcmc" moves faint splats to where others are and lets all wander
            (Kheradmand et al. 2024; needs gsplat).
        refine_from, refine_until, refine_every: steps. grow_gradient: the mean pull, in units of half a picture, above
            which a splat grows. split_scale: splats larger than this are split, others cloned. prune_opacity: fainter
            ones go. prune_scale: larger ones go once opacities were reset. reset_every: steps between resets of the
            opacities to twice prune_opacity; 0 never. noise_rate: how far "mcmc" lets splats wander.
    Run
        seed: of everything drawn. checkpoint_every, preview_every: steps; 0 only at the end (checkpoint) or never
        (preview). Neither changes the result.
    """

    preset: str = "recommended"
    splats: int = 2500
    max_splats: int = 5000
    start: Literal["hull", "random"] = "hull"
    start_opacity: float = 0.3
    sh_degree: int = 0
    sh_every: int = 200
    ssim_weight: float = 0.2
    mask_weight: float = 0.2
    opacity_weight: float = 0.0
    scale_weight: float = 0.0
    background: Literal["random", "own"] = "random"
    steps: int = 700
    views_per_step: int = 2
    position_rate: float = 5e-3
    final_position_rate: float = 5e-5
    scale_rate: float = 2e-2
    rotation_rate: float = 1e-2
    opacity_rate: float = 5e-2
    color_rate: float = 2e-2
    density: Literal["fixed", "adaptive", "mcmc"] = "adaptive"
    refine_from: int = 100
    refine_until: int = 450
    refine_every: int = 100
    grow_gradient: float = 2e-4
    split_scale: float = 0.05
    prune_opacity: float = 0.02
    prune_scale: float = 0.5
    reset_every: int = 0
    noise_rate: float = 5e5
    seed: int = 0
    checkpoint_every: int = 100
    preview_every: int = 50

    def __post_init__(self) -> None:
        positive = ("position_rate", "final_position_rate", "scale_rate", "rotation_rate", "opacity_rate", "color_rate")
        positive += ("grow_gradient", "split_scale", "prune_scale")
        counts = ("sh_every", "refine_from", "refine_until", "reset_every", "seed", "checkpoint_every", "preview_every")
        weights = ("mask_weight", "opacity_weight", "scale_weight", "noise_rate")
        rules: list[tuple[str, bool, str]] = [
            ("max_splats", self.max_splats >= 1, "at least 1"),
            ("splats", self.splats >= 1, "at least 1"),
            ("max_splats", self.max_splats >= self.splats, f"at least the {self.splats} splats of the start"),
            ("start_opacity", 0 < self.start_opacity < 1, "between 0 and 1, both excluded"),
            ("sh_degree", 0 <= self.sh_degree <= MAX_DEGREE, f"0 to {MAX_DEGREE}"),
            ("ssim_weight", 0 <= self.ssim_weight <= 1, "between 0 and 1"),
            ("steps", self.steps >= 1, "at least 1"),
            ("views_per_step", self.views_per_step >= 1, "at least 1"),
            ("refine_every", self.refine_every >= 1, "at least 1"),
            ("prune_opacity", 0 < self.prune_opacity < 0.5, "between 0 and 0.5, both excluded"),
            *((name, getattr(self, name) > 0, "above 0") for name in positive),
            *((name, getattr(self, name) >= 0, "0 or more") for name in (*counts, *weights)),
        ]
        for name, holds, expected in rules:
            if not holds:
                raise TrainingError(f"The setting {name} is {getattr(self, name)!r}; expected {expected}.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise TrainingError(
                    f"The setting {name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}."
                )


_CHOICES = {
    "start": ("hull", "random"),
    "background": ("random", "own"),
    "density": ("fixed", "adaptive", "mcmc"),
}

FREE_SETTINGS = frozenset({"checkpoint_every", "preview_every"})
"""Settings that do not change the result: a fit may be resumed, and a finished one found again, with others."""

_REFERENCE: dict[str, Any] = {
    "splats": 100_000,
    "max_splats": 5_000_000,
    "start": "random",
    "start_opacity": 0.1,
    "sh_degree": 3,
    "sh_every": 1000,
    "mask_weight": 0.0,
    "background": "own",
    "steps": 30_000,
    "views_per_step": 1,
    "position_rate": 1.6e-4,
    "final_position_rate": 1.6e-6,
    "scale_rate": 5e-3,
    "rotation_rate": 1e-3,
    "opacity_rate": 5e-2,
    "color_rate": 2.5e-3,
    "refine_from": 500,
    "refine_until": 15_000,
    "split_scale": 0.01,
    "prune_opacity": 0.005,
    "prune_scale": 0.1,
    "reset_every": 3000,
    "checkpoint_every": 1000,
    "preview_every": 500,
}

_MCMC: dict[str, Any] = {
    "splats": 20_000,
    "max_splats": 100_000,
    "sh_degree": 3,
    "sh_every": 500,
    "opacity_weight": 0.01,
    "scale_weight": 0.01,
    "steps": 5000,
    "position_rate": 1e-3,
    "final_position_rate": 1e-5,
    "scale_rate": 5e-3,
    "color_rate": 5e-3,
    "density": "mcmc",
    "noise_rate": 1e5,
    "refine_from": 200,
    "refine_until": 4000,
    "prune_opacity": 0.005,
    "checkpoint_every": 500,
    "preview_every": 250,
}

_CONSISTENCY: dict[str, Any] = {
    "splats": 1000,
    "max_splats": 1000,
    "background": "own",
    "density": "fixed",
    "steps": 80,
    "views_per_step": 4,
    "position_rate": 1e-2,
    "final_position_rate": 1e-4,
    "scale_rate": 4e-2,
    "opacity_rate": 0.1,
    "color_rate": 5e-2,
    "checkpoint_every": 0,
    "preview_every": 0,
}

PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {},
    "reference": _REFERENCE,
    "mcmc": _MCMC,
    "consistency": _CONSISTENCY,
}


def preset(name: str, **changes: Any) -> FitConfig:
    """The settings of a preset, with any of them changed.

    "recommended": an object seen from all around, in a minute or two on a CPU.
    "reference": the published settings of 3D Gaussian splatting (Kerbl et al. 2023), for a GPU.
    "mcmc": more detail under a fixed limit of splats, through gsplat's strategy (Kheradmand et al. 2024).
    "consistency": what `view_consistency` measures with: degree 0, a fixed number, few steps.

    Where max_splats is changed alone, no more splats than that are there at the start either.

    Raises TrainingError for an unknown preset or setting, and for a value out of range.
    """
    if name not in PRESETS:
        raise TrainingError(f"There is no preset '{name}'. Expected one of {', '.join(PRESETS)}.")
    known = {field.name for field in dataclasses.fields(FitConfig)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise TrainingError(f"There is no setting {', '.join(unknown)}. Expected one of {', '.join(sorted(known))}.")
    values = {"preset": name, **PRESETS[name], **changes}
    if "max_splats" in changes and "splats" not in changes:
        values["splats"] = min(values.get("splats", FitConfig.splats), changes["max_splats"])
    return FitConfig(**values)
