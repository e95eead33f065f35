"""What a checkpoint's weights do not say: prediction type, scaling, heads, special ids, the camera it was trained for.

A safetensors checkpoint may carry it as one JSON object under the metadata key `METADATA_KEY`; its names are the
fields of `ModelInfo`. Whatever it leaves out, and everything for a published file (which has no metadata), takes the
published values in `PUBLISHED`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from ..errors import ModelError

METADATA_KEY = "invert3d_mvdream"
"""Key of the JSON string in a safetensors checkpoint's metadata."""


_CHOICES = {"prediction_type": ("epsilon", "v_prediction"), "text_activation": ("quick_gelu", "gelu")}
_MAY_BE_ZERO = frozenset(
    ("bos_id", "eos_id", "pad_id", "text_skip_last", "front_azimuth_deg", "guidance_scale", "guidance_rescale")
)


def _check(info: "ModelInfo") -> None:
    for field in fields(info):
        value = getattr(info, field.name)
        expected = _expected(field.name, field.default, value)
        if expected:
            raise ModelError(f"{field.name} is {value!r}; expected {expected}.")


def _expected(name: str, default: object, value: Any) -> str | None:
    """What a field should have been, if the value is not that."""
    if name in _CHOICES:
        return None if value in _CHOICES[name] else f"one of {', '.join(_CHOICES[name])}"
    if name in ("unet_heads", "text_heads"):
        heads = value if isinstance(value, tuple) else (value,)
        fits = value is None or all(type(n) is int and n > 0 for n in heads)
        return None if fits else "a positive number of attention heads"
    if name == "elevation_range_deg":
        fits = isinstance(value, tuple) and len(value) == 2 and all(type(v) in (int, float) for v in value)
        fits = fits and -90 <= value[0] <= value[1] <= 90
        return None if fits else "the lowest and the highest elevation, within [-90,90] degrees"
    if isinstance(default, str):
        return None if isinstance(value, str) else "text"
    if isinstance(default, (int, float)):
        number = type(value) is int or (isinstance(default, float) and type(value) is float)
        least = "at least 0" if name in _MAY_BE_ZERO else "more than 0"
        fits = number and math.isfinite(value) and (value > 0 or (value == 0 and name in _MAY_BE_ZERO))
        return None if fits else f"a {'whole ' if isinstance(default, int) else ''}number, {least}"
    return None


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a multi-view diffusion model beside its weights; the defaults are those of ``sd-v1.5-4view``."""

    title: str = "MVDream sd-v1.5-4view"
    licence: str = "CreativeML OpenRAIL-M"
    base: str = "clip_l"
    """Text encoder that tokens are for, and the name of their tensor: "clip_l", "clip_h", or a name of its own."""
    model_hash: str | None = None
    """SHA-256 of the weights file, for models whose tokens fit no other; None for a published base."""

    prediction_type: str = "epsilon"
    """What the U-Net predicts: "epsilon" or "v_prediction"."""
    beta_start: float = 0.00085
    beta_end: float = 0.012
    scaling_factor: float = 0.18215
    """Latents are the VAE's times this."""

    unet_heads: int | tuple[int, ...] | None = None
    """Attention heads of the U-Net, one number or one per level; None: 8, or of width 64 with linear projections."""
    unet_norm_groups: int = 32
    vae_norm_groups: int = 32
    text_heads: int | None = None
    """Attention heads of the text encoder; None: of width 64."""
    text_activation: str = "quick_gelu"
    """Activation of the text encoder: "quick_gelu" (CLIP-L) or "gelu" (OpenCLIP)."""
    text_skip_last: int = 1
    """Last blocks of an OpenCLIP text tower in the file that the model does not run; 0 where they were cut off."""
    bos_id: int = 49406
    eos_id: int = 49407
    pad_id: int = 49407

    image_size: int = 256
    """Width and height of a view in pixels."""
    latent_size: int = 32
    fov_y_deg: float = 40.0
    """Vertical field of view to show assets with. MVDream saw 15 to 60 and does not read it."""
    elevation_range_deg: tuple[float, float] = (0.0, 30.0)
    """Elevations above the horizon that the model was trained for."""
    fill: float = 0.9
    """Share of the picture's height that the asset's bounding sphere takes."""
    front_azimuth_deg: float = 90.0
    """Azimuth at which the model believes the front of an object to be; sources disagree about MVDream (0 or 90)."""

    steps: int = 50
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    caption_suffix: str = ", 3d asset"
    """What captions of three-dimensional assets end with; sampling views adds it to prompts that lack it."""

    def __post_init__(self) -> None:
        _check(self)

    def to_metadata(self) -> dict[str, str]:
        """Metadata for `safetensors.torch.save_file`; the same info always gives the same text."""
        values = {key: value for key, value in asdict(self).items() if key != "model_hash"}
        return {METADATA_KEY: json.dumps(values, sort_keys=True)}


PUBLISHED: Mapping[str, ModelInfo] = MappingProxyType(
    {
        "clip_l": ModelInfo(),
        # OpenCLIP's tokenizer pads with id 0, and its text tower uses the exact gelu.
        "clip_h": ModelInfo(title="MVDream sd-v2.1-base-4view", base="clip_h", text_activation="gelu", pad_id=0),
    }
)
"""Values of the two published checkpoints, by the text encoder in them."""


def read_metadata(metadata: Mapping[str, str] | None, defaults: ModelInfo, source: str) -> ModelInfo:
    """Info of a checkpoint: what its safetensors metadata says, else the defaults.

    source: the file's name, for messages. Raises ModelError if the entry is no JSON object, or names or values are not
    those of `ModelInfo`.
    """
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        return defaults
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ModelError(
            f"The '{METADATA_KEY}' metadata of {source} is not JSON ({error}). Restore the file or export it again."
        ) from error
    if not isinstance(values, dict):
        raise ModelError(
            f"The '{METADATA_KEY}' metadata of {source} is a JSON {type(values).__name__}; expected an object."
        )
    return override(defaults, values, f"The '{METADATA_KEY}' metadata of {source}")


def override(info: ModelInfo, values: Mapping[str, Any], source: str = "The given metadata") -> ModelInfo:
    """The info with some fields replaced; lists become tuples. Raises ModelError for unknown names and wrong values."""
    names = {field.name for field in fields(ModelInfo)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise ModelError(
            f"{source} names {', '.join(unknown)}, which this version does not know. Known: "
            f"{', '.join(sorted(names))}. Update Invert3D, or correct the names."
        )
    try:
        return replace(info, **{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    except ModelError as error:
        raise ModelError(f"{source} cannot be used: {error}") from error
