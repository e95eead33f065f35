"""The multi-view diffusion model: its loader and its sampler."""

import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..invert3d_core import cameras as core
from ..invert3d_core.cameras import Cameras
from ..invert3d_core.inversion.views import model_orbit
from ..invert3d_core.mvdream import ModelInfo
from . import host
from .cameras import azimuth_start_input
from .types import Cameras as CamerasSocket
from .types import MVDream as MVDreamSocket

BUILT_IN = "built-in toy"
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODEL_FOLDERS = (host.MODEL_FOLDER, "checkpoints")
CAMERA_KEY = b"camera_embed"  # in the key names of every multi-view checkpoint, of no other
LARGEST_HEADER = 64 << 20


def model_names() -> list[str]:
    """What the loader offers: the toy, all of models/mvdream, and of models/checkpoints what reads cameras."""
    own, shared = (host.list_models(folder) for folder in MODEL_FOLDERS)
    found = {}
    for name in shared:
        path = host.find_model("checkpoints", name)
        if path is not None and path.suffix.lower() in host.MODEL_ENDINGS:
            found[name] = _has_cameras(path, host.path_fingerprint(path))
    return [BUILT_IN, *own, *(name for name, fits in found.items() if fits and name not in own)]


def model_file(name: str) -> Path | str:
    """What the core loads for the widget's value. ValueError when there is no such file."""
    if name == BUILT_IN:
        return "toy"
    paths = (host.find_model(folder, name) for folder in MODEL_FOLDERS)
    path = next((path for path in paths if path is not None), None)
    if path is None or path.suffix.lower() not in host.MODEL_ENDINGS:
        raise ValueError(
            f"there is no model {name!r}: put an MVDream checkpoint ({', '.join(sorted(host.MODEL_ENDINGS))}) into "
            f"models/{host.MODEL_FOLDER} or models/checkpoints, or choose {BUILT_IN!r}"
        )
    return path


@lru_cache(maxsize=4096)
def _has_cameras(path: Path, fingerprint: str) -> bool:
    """Whether a checkpoint's key names say that it reads cameras; nothing but the names is looked at.

    fingerprint: of the file, so that a changed one is looked at again.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith("data.pkl")]
                return any(CAMERA_KEY in archive.open(name).read(LARGEST_HEADER) for name in names)
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return path.suffix.lower() == ".safetensors" and CAMERA_KEY in file.read(min(length, LARGEST_HEADER))
    except (OSError, zipfile.BadZipFile):
        return False


def describe(model: host.HostMVDream) -> str:
    """What a person wants to know of a loaded model, a line each."""
    info = model.info
    low, high = info.elevation_range_deg
    return "\n".join(
        [
            info.title,
            f"licence {info.licence}",
            f"views of {info.image_size} × {info.image_size} pixels, from {low:g}° to {high:g}° above the horizon",
            f"text encoder {info.base}, tokens of width {model.token_width}",
            f"by itself {info.steps} steps at guidance {info.guidance_scale:g}",
            f"U-Net in {str(model.dtype).removeprefix('torch.')}",
        ]
    )


def view_cameras(given: Cameras | None, info: ModelInfo, views: int, azimuth_start: float, elevation: float) -> Cameras:
    """The cameras of the sampler's inputs at the model's picture size: those given, else a ring as it knows it."""
    if given is not None:
        return given.resized(info.image_size, info.image_size)
    return model_orbit(info, core.azimuths(views, azimuth_start), elevation)


class MVDreamLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DMVDreamLoader",
            display_name="MVDream Loader",
            category="Invert3D/mvdream",
            description="Loads a multi-view diffusion model: the built-in toy, or an MVDream checkpoint in one file.",
            search_aliases=["mvdream", "multi view diffusion", "checkpoint", "toy model"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=model_names(),
                    default=BUILT_IN,
                    tooltip="The built-in toy needs no download and knows a small world of simple things. Others: "
                    "files in models/mvdream, and in models/checkpoints those that read cameras.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="auto",
                    tooltip="Precision of the U-Net. auto takes what suits the device; float16 is for sampling only.",
                    advanced=True,
                ),
            ],
            outputs=[
                MVDreamSocket.Output("mvdream", display_name="mvdream"),
                io.String.Output("info", display_name="info", tooltip="What the model is, in words."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None) -> bool | str:
        if model is None:  # linked: known only when it runs
            return True
        try:
            model_file(model)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model: str | None = None, **others) -> str:
        path = model_file(model) if model else ""
        return host.path_fingerprint(path) if isinstance(path, Path) else path

    @classmethod
    def execute(cls, model: str, dtype: str) -> io.NodeOutput:
        loaded = host.HostMVDream.load(model_file(model), DTYPES[dtype])
        return io.NodeOutput(loaded, describe(loaded))


class MVDreamSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DMVDreamSampler",
            display_name="MVDream Sampler",
            category="Invert3D/mvdream",
            description="Views of what a prompt says from all around, consistent with each other.",
            search_aliases=["mvdream", "multi view", "text to views", "text to 3d", "ksampler"],
            inputs=[
                MVDreamSocket.Input("mvdream"),
                CamerasSocket.Input(
                    "cameras",
                    optional=True,
                    tooltip="Cameras to use instead of the ring below. The model was trained with four of equal "
                    "elevation, a quarter turn apart.",
                ),
                io.String.Input(
                    "prompt",
                    default="a red chair",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to draw. An applied token is written <name>.",
                ),
                io.String.Input(
                    "negative",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to stay away from; may be empty.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**63 - 1, control_after_generate=True, tooltip="Of the first noise."
                ),
                io.Int.Input(
                    "steps", default=0, min=0, max=1000, tooltip="Denoising steps; 0 takes the model's own number."
                ),
                io.Float.Input(
                    "guidance_scale",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    tooltip="How closely to follow the prompt; 1 is without guidance, 0 takes the model's own value.",
                ),
                io.Float.Input(
                    "guidance_rescale",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Takes back the glare of strong guidance, 0 not at all, 1 wholly; -1 takes the model's own "
                    "value.",
                    advanced=True,
                ),
                io.Int.Input("views", default=4, min=1, max=64, tooltip="Cameras on the ring, evenly spaced."),
                azimuth_start_input(advanced=True),
                io.Float.Input(
                    "elevation_deg",
                    default=15.0,
                    min=-90.0,
                    max=90.0,
                    step=1.0,
                    tooltip="Height of the ring in degrees. The models were trained for 0 to 30.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Image.Output("images", display_name="images"),
                CamerasSocket.Output("view_cameras", display_name="cameras"),
                io.Latent.Output("latents", display_name="latents", tooltip="The views before the VAE."),
            ],
        )

    @classmethod
    def execute(
        cls,
        mvdream: host.HostMVDream,
        prompt: str,
        negative: str,
        seed: int,
        steps: int,
        guidance_scale: float,
        guidance_rescale: float,
        views: int,
        azimuth_start_deg: float,
        elevation_deg: float,
        cameras: Cameras | None = None,
    ) -> io.NodeOutput:
        info = mvdream.info
        cams = view_cameras(cameras, info, views, azimuth_start_deg, elevation_deg)
        choices: dict[str, Any] = {
            "steps": steps or None,
            "guidance_scale": guidance_scale or None,
            "guidance_rescale": guidance_rescale if guidance_rescale >= 0 else None,
        }
        with mvdream.ready(len(cams)) as model:
            latents = model.sample(
                prompt, cams, negative=negative, seed=seed, progress=host.HostProgress(), decode=False, **choices
            )
            images = model.decode_latents(latents)
        return io.NodeOutput(host.image_to_host(images), cams, host.latents_to_host(latents, info.scaling_factor))


NODES = [MVDreamLoader, MVDreamSampler]
