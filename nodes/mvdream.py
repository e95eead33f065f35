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
from ..invert3d_core.mvdream import ModelInfo, checkpoint, inspection, known_models, layouts
from ..invert3d_core.mvdream.graphs import hindrance
from ..invert3d_core.mvdream.sampling import SAMPLERS
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
    """What the loader offers: the toy, all of models/mvdream, and of models/checkpoints what reads cameras.

    A folder in diffusers' manner in models/mvdream is one model, by its own name.
    """
    own, shared = (host.list_models(folder) for folder in MODEL_FOLDERS)
    folders = list(model_folders())
    own = folders + [name for name in own if not name.startswith((".", *(f"{folder}/" for folder in folders)))]
    found = {}
    for name in shared:
        path = host.find_model("checkpoints", name)
        if path is not None and path.suffix.lower() in host.MODEL_ENDINGS:
            found[name] = _has_cameras(path, host.path_fingerprint(path))
    return [BUILT_IN, *own, *(name for name, fits in found.items() if fits and name not in own)]


def model_folders() -> dict[str, Path]:
    """Folders in diffusers' manner in models/mvdream, by their names there."""
    found = {}
    for name in host.list_models(host.MODEL_FOLDER):
        folder, part, _ = name.rpartition("/unet/")
        path = host.find_model(host.MODEL_FOLDER, name) if part and not folder.startswith(".") else None
        whole = layouts.folder_of(path) if path is not None else None
        if whole is not None:
            found[folder] = whole
    return found


def model_file(name: str) -> Path | str:
    """What the core loads for the widget's value. ValueError when there is no such file or folder."""
    if name == BUILT_IN:
        return "toy"
    paths = (host.find_model(folder, name) for folder in MODEL_FOLDERS)
    path = next((path for path in paths if path is not None), None) or model_folders().get(name)
    if path is None or not (path.is_dir() or path.suffix.lower() in host.MODEL_ENDINGS):
        raise ValueError(
            f"there is no model {name!r}: put an MVDream checkpoint ({', '.join(sorted(host.MODEL_ENDINGS))}, or a "
            f"folder in diffusers' manner) into models/{host.MODEL_FOLDER}, or a file into models/checkpoints, or "
            f"choose {BUILT_IN!r}. {known_models.where_to_get(name)}"
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


def describe(model: host.HostMVDream, source: Path | str) -> str:
    """What a person wants to know of a loaded model, a line each."""
    return f"{inspection.summary(source)}\nU-Net in {str(model.dtype).removeprefix('torch.')}"


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
            description="Loads a multi-view diffusion model: the built-in toy, or an MVDream checkpoint of any layout.",
            search_aliases=["mvdream", "multi view diffusion", "checkpoint", "toy model"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=model_names(),
                    default=BUILT_IN,
                    tooltip="The built-in toy needs no download and knows a small world of simple things. Others: "
                    "files and folders in models/mvdream, and in models/checkpoints files that read cameras.",
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
                io.String.Output(
                    "info", display_name="info", tooltip="Its layout, base and licence, and what it can do."
                ),
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
        if not isinstance(path, Path):
            return path
        return " ".join(map(host.path_fingerprint, layouts.files_of(checkpoint.find_checkpoint(path))))

    @classmethod
    def execute(cls, model: str, dtype: str) -> io.NodeOutput:
        source = model_file(model)
        loaded = host.HostMVDream.load(source, DTYPES[dtype])
        slow = hindrance(host.torch_device())
        if slow is not None:
            host.tell(slow)
        return io.NodeOutput(loaded, describe(loaded, source))


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
                io.Combo.Input(
                    "sampler",
                    options=list(SAMPLERS),
                    default="ddim",
                    optional=True,  # prompts saved before it was there stay valid
                    tooltip="ddim is the one published with MVDream; dpmpp_2m (DPM-Solver++) and euler often need "
                    "fewer steps.",
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
        sampler: str = "ddim",
        cameras: Cameras | None = None,
    ) -> io.NodeOutput:
        host.check_finite(
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            azimuth_start_deg=azimuth_start_deg,
            elevation_deg=elevation_deg,
        )
        info = mvdream.info
        cams = view_cameras(cameras, info, views, azimuth_start_deg, elevation_deg)
        choices: dict[str, Any] = {
            "steps": steps or None,
            "guidance_scale": guidance_scale or None,
            "guidance_rescale": guidance_rescale if guidance_rescale >= 0 else None,
            "sampler": sampler,
        }
        with mvdream.ready(len(cams)) as model:
            latents = model.sample(
                prompt, cams, negative=negative, seed=seed, progress=host.HostProgress(), decode=False, **choices
            )
            images = model.decode_latents(latents)
        return io.NodeOutput(host.image_to_host(images), cams, host.latents_to_host(latents, info.scaling_factor))


NODES = [MVDreamLoader, MVDreamSampler]
