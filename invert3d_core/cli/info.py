"""`invert3d info`: what a file is, and what is in it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from . import assets
from .command import Command, InputError, as_text
from .convert import file_size


@dataclass(kw_only=True)
class Info(Command):
    """Say what a file is: a splat, a token, a training checkpoint, or a multi-view model."""

    file: Positional[Path]
    """A file, a model's folder, or the name of a built-in sample or model."""

    def run(self) -> None:
        values = describe(self.file)
        self.report(values, as_text(values))


def describe(file: Path) -> dict[str, Any]:
    """Everything `info` says about a file. Raises Invert3DError when it is nothing that is known."""
    from ..errors import FormatError
    from ..mvdream.checkpoint import BUILT_IN
    from ..mvdream.weights import ENDINGS
    from ..splats import formats as splat_formats

    if (file / "meta.json").is_file():
        return _describe_splat(file / "meta.json")
    if file.is_dir() or (not file.exists() and str(file) in BUILT_IN):
        return _describe_model(str(file))
    if not file.exists():
        return _describe_splat(assets.find(file))
    weights = file.suffix in ENDINGS
    if splat_formats.known(file):
        try:
            return _describe_splat(file)
        except FormatError:
            if not weights:  # a model in a zip archive may begin as a .sog does
                raise
    if file.suffix == ".safetensors":
        metadata = _safetensors_metadata(file)
        if "invert3d" in metadata:
            return _describe_token(file)
        if "invert3d_training" in metadata:
            return _describe_training(file, metadata["invert3d_training"])
    if weights:
        return _describe_token_or_model(file)
    return _describe_splat(file)


def _describe_splat(file: Path) -> dict[str, Any]:
    from ..cameras import Orientation, fit_sphere
    from ..splats.formats import FORMATS
    from ..splats.metadata import metadata_of, without_metadata
    from ..splats.orientation import guess_orientation

    asset = assets.load(file)
    splat = asset.splat
    low, high = splat.positions.amin(0), splat.positions.amax(0)
    sphere = fit_sphere(splat)
    guess = guess_orientation(splat)
    stands = guess.orientation if guess.stated else Orientation()
    orientation: dict[str, Any] = {
        "up": stands.up,
        "front": stands.front,
        "source": "stated by the file" if guess.stated else "a guess: the usual frame of trained splats",
    }
    if not guess.stated:
        orientation["perhaps"] = {
            "up": guess.orientation.up,
            "front": guess.orientation.front,
            "confidence": guess.confidence,
            "reasons": list(guess.reasons),
        }
    return {
        "kind": "splat",
        "file": str(asset.path),
        "sample": asset.sample,
        "format": asset.format,
        "format_limits": FORMATS[asset.format].limits,
        "not_read": asset.remarks,
        "bytes": file_size(asset.path),
        "splats": len(splat),
        "sh_degree": splat.degree,
        "extent": {"low": low.tolist(), "high": high.tolist(), "size": (high - low).tolist()},
        "visible_sphere": {"center": sphere.center.tolist(), "radius": sphere.radius},
        "median_scale": float(splat.scales.median()),
        "median_opacity": float(splat.opacities.median()),
        "orientation": orientation,
        "comment": without_metadata(splat.comment),
        "metadata": list(metadata_of(splat.comment)),
    }


def _describe_token(file: Path) -> dict[str, Any]:
    from .token import describe

    return describe(file)


def _describe_token_or_model(file: Path) -> dict[str, Any]:
    """Tokens of other programs have the endings of models, and nothing else to be known by than what is in them."""
    from ..errors import TokenError

    try:
        return _describe_token(file)
    except TokenError:
        return _describe_model(str(file))


def _describe_training(file: Path, entry: str) -> dict[str, Any]:
    try:
        values = json.loads(entry)
        fingerprint = values["fingerprint"]
        return {
            "kind": "training checkpoint",
            "file": str(file),
            "names": fingerprint["names"],
            "step": values["step"],
            "steps": fingerprint["config"]["steps"],
            "finished": values["finished"],
            "model": fingerprint["model"],
            "config": fingerprint["config"],
        }
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"'{file}' is a training checkpoint of another version, or damaged ({error!r}). Delete it, or restore it."
        ) from error


def _describe_model(name: str) -> dict[str, Any]:
    from ..mvdream.inspection import inspect

    return inspect(name)


def _safetensors_metadata(file: Path) -> dict[str, str]:
    import safetensors

    from ..errors import ModelError

    try:
        with safetensors.safe_open(file, framework="pt", device="cpu") as opened:
            return opened.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ModelError(
            f"'{file}' is not a readable safetensors file ({error}). It is of another kind or cut short: restore it."
        ) from error
