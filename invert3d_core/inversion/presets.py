"""Settings of the inversion: every published one (`reference`), and ours (`recommended`)."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import TrainingError


@dataclass(frozen=True)
class InversionConfig:
    """All settings of one training run; the defaults are those of the preset "recommended".

    Views
        views: "bank" renders and encodes rings of views once; "fresh" renders and encodes four new ones each step,
            which needs a splat.
        azimuths_per_ring, ring_elevations_deg: the bank's rings; azimuths evenly over 360°, a multiple of four.
        fresh_elevation_deg, fresh_azimuth_deg: whole degrees a fresh set is drawn from, both ends included; the azimuth
            is that of the first view.
        radius, fov_y_deg: a fixed camera that looks at the origin; None fits the asset into the model's own view.
        align_front: turn the asset so that its front is where the model believes fronts to be.
        background: grey level behind the asset, 0 … 1.
    Token
        vectors: rows of the token. initial_words: words whose rows it starts from, repeated in order.
        add_position_row: add the text encoder's first position row to the start, as published.
    Captions
        captions: templates with one `{}`. suffix_use: the model's own caption ending "never", "always" or "both".
    Loss
        shared_timestep: one timestep for the four views of a set, else one per view.
        min_timestep, max_timestep: the range they are drawn from, both ends included.
        foreground_weight: how much more the object's latents count than the background's; 1 is plain.
        snr_gamma: weight the error by clamp(SNR,1,γ)/SNR; None is the plain ε-error.
    Optimiser (AdamW on the vectors)
        steps, sets_per_step. learning_rate: per step, in learning_rate_unit: "absolute", or "vocabulary" for multiples
            of the root mean square of the vocabulary's entries, which makes it independent of the encoder's scale.
        betas, epsilon, weight_decay. warmup_steps: linear from 0. final_learning_rate: fraction the cosine ends at; 1
            is constant.
        clip_gradient: largest norm of a token's gradient; None does not clip.
        norm_control: after each step give every vector the mean norm of the vocabulary's rows, so that it stays where
            the text encoder was trained (DTI, arXiv 2512.13672).
    Validation, on noises, timesteps and sets that never change
        validation_every: steps between validations; 0 does none and keeps the last vectors, else the best are kept.
        validation_sets: sets in one validation. patience: validations without a new best before stopping; 0 never.
    Run
        seed: of everything drawn. precision: "fp32", or "bf16" for autocast where the device is a GPU that has it.
        gradient_checkpointing: less memory, a slower step. checkpoint_every, preview_every: steps; 0 only at the end
            (checkpoint) or never (preview). Neither changes the result.
    """

    preset: str = "recommended"
    views: Literal["bank", "fresh"] = "bank"
    azimuths_per_ring: int = 8
    ring_elevations_deg: tuple[float, ...] = (5.0, 15.0, 27.0)
    fresh_elevation_deg: tuple[int, int] = (0, 30)
    fresh_azimuth_deg: tuple[int, int] = (-180, 179)
    radius: float | None = None
    fov_y_deg: float | None = None
    align_front: bool = True
    background: float = 1.0
    vectors: int = 16
    initial_words: str = "object"
    add_position_row: bool = False
    captions: tuple[str, ...] = ("a {}",)
    suffix_use: Literal["never", "always", "both"] = "both"
    shared_timestep: bool = True
    min_timestep: int = 300
    max_timestep: int = 999
    foreground_weight: float = 3.0
    snr_gamma: float | None = 5.0
    steps: int = 650
    sets_per_step: int = 1
    learning_rate: float = 0.05
    learning_rate_unit: Literal["absolute", "vocabulary"] = "vocabulary"
    betas: tuple[float, float] = (0.9, 0.99)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 10
    final_learning_rate: float = 0.1
    clip_gradient: float | None = None
    norm_control: bool = True
    validation_every: int = 100
    validation_sets: int = 8
    patience: int = 4
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "bf16"
    gradient_checkpointing: bool = False
    checkpoint_every: int = 100
    preview_every: int = 100

    def __post_init__(self) -> None:
        rules: list[tuple[str, bool, str]] = [
            ("azimuths_per_ring", self.azimuths_per_ring >= 4 and self.azimuths_per_ring % 4 == 0, "a multiple of 4"),
            ("ring_elevations_deg", all(abs(e) < 90 for e in self.ring_elevations_deg), "between -90 and 90"),
            ("ring_elevations_deg", len(self.ring_elevations_deg) > 0, "at least one ring"),
            ("fresh_elevation_deg", -90 < self.fresh_elevation_deg[0] <= self.fresh_elevation_deg[1] < 90, "low, high"),
            ("fresh_azimuth_deg", self.fresh_azimuth_deg[0] <= self.fresh_azimuth_deg[1], "low, high"),
            ("radius", self.radius is None or self.radius > 0, "a positive number or None"),
            ("fov_y_deg", self.fov_y_deg is None or 0 < self.fov_y_deg < 180, "between 0 and 180, or None"),
            (
                "radius",
                (self.radius is None) == (self.fov_y_deg is None),
                "given together with fov_y_deg, or both None",
            ),
            ("background", 0 <= self.background <= 1, "between 0 and 1"),
            ("vectors", self.vectors >= 1, "at least 1"),
            ("min_timestep", 0 <= self.min_timestep <= self.max_timestep, "between 0 and max_timestep"),
            ("foreground_weight", self.foreground_weight > 0, "above 0"),
            ("snr_gamma", self.snr_gamma is None or self.snr_gamma >= 1, "at least 1, or None"),
            ("steps", self.steps >= 1, "at least 1"),
            ("sets_per_step", self.sets_per_step >= 1, "at least 1"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("betas", all(0 <= b < 1 for b in self.betas), "two numbers from 0 to below 1"),
            ("epsilon", self.epsilon > 0, "above 0"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("warmup_steps", self.warmup_steps >= 0, "0 or more"),
            ("final_learning_rate", 0 <= self.final_learning_rate <= 1, "between 0 and 1"),
            ("clip_gradient", self.clip_gradient is None or self.clip_gradient > 0, "above 0, or None"),
            ("validation_every", self.validation_every >= 0, "0 or more"),
            ("validation_sets", self.validation_sets >= 1, "at least 1"),
            ("patience", self.patience >= 0, "0 or more"),
            ("seed", self.seed >= 0, "0 or more"),
            ("checkpoint_every", self.checkpoint_every >= 0, "0 or more"),
            ("preview_every", self.preview_every >= 0, "0 or more"),
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
    "views": ("bank", "fresh"),
    "suffix_use": ("never", "always", "both"),
    "learning_rate_unit": ("absolute", "vocabulary"),
    "precision": ("fp32", "bf16"),
}

_REFERENCE: dict[str, Any] = {
    "views": "fresh",
    # The published elevation is an integer in -30..29 that counts downwards.
    "fresh_elevation_deg": (-29, 30),
    "fresh_azimuth_deg": (-180, 179),
    "radius": 2.5,
    "fov_y_deg": 49.1,
    "align_front": False,
    "vectors": 32,
    "initial_words": "object",
    "add_position_row": True,
    "captions": ("{}",),
    "suffix_use": "never",
    "shared_timestep": False,
    "min_timestep": 0,
    "foreground_weight": 1.0,
    "snr_gamma": None,
    "steps": 6100,
    "learning_rate": 5e-3,
    "learning_rate_unit": "absolute",
    "betas": (0.9, 0.999),
    "weight_decay": 0.01,
    "warmup_steps": 0,
    "final_learning_rate": 1.0,
    "norm_control": False,
    "validation_every": 0,
    "seed": 23,
    "precision": "fp32",
    "checkpoint_every": 300,
    "preview_every": 500,
}

PRESETS: dict[str, dict[str, Any]] = {"recommended": {}, "reference": _REFERENCE}


def preset(name: str, **changes: Any) -> InversionConfig:
    """The settings of a preset, with any of them changed.

    "reference": the published settings of Invert3D (its released code, 2025). It needs a splat, as it renders new views
    at every step.
    "recommended": a bank encoded once, shared timesteps, a foreground-weighted loss, captions, norm control, a learning
    rate that falls, and the best vectors of a validation on fixed noise.

    Raises TrainingError for an unknown preset or setting, and for a value out of range.
    """
    if name not in PRESETS:
        raise TrainingError(f"There is no preset '{name}'. Expected one of {', '.join(PRESETS)}.")
    known = {field.name for field in dataclasses.fields(InversionConfig)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise TrainingError(f"There is no setting {', '.join(unknown)}. Expected one of {', '.join(sorted(known))}.")
    return InversionConfig(**{"preset": name, **PRESETS[name], **changes})
