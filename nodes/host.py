"""The host as the nodes see it: the only module that touches comfy.*.

Splats and cameras to and from the host's types, models in its memory management, progress with previews and cancel,
devices, and the files a widget may name. A node imports from here and from the core, and nothing of the host's besides
`comfy_api`.
"""

import contextlib
import copy
import hashlib
import io
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd1_clip
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy.cli_args import args
from comfy_api.latest import Types
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..invert3d_core import mvdream
from ..invert3d_core.errors import StorageError
from ..invert3d_core.files import write_atomically
from ..invert3d_core.mvdream import MVDream
from ..invert3d_core.splats import GaussianSplats
from ..invert3d_core.tokens import Token

logger = logging.getLogger("invert3d")

SHOW_INTERVAL_S = 0.5  # a preview costs a picture to make and to send; more often than this nobody can look

SAMPLES = Path(__file__).resolve().parent.parent / "invert3d_core" / "toy" / "samples"
SAMPLE_SUFFIX = " [sample]"  # marks a built-in file in a list, as the host marks its folders with " [input]"

MODEL_FOLDER = "mvdream"  # models/mvdream
MODEL_ENDINGS = {".safetensors", ".pt", ".pth", ".ckpt", ".bin"}

# Estimates of what the work takes beside the weights, for each pixel of a view.
SAMPLING_BYTES_PER_PIXEL = 8 << 10
TRAINING_BYTES_PER_PIXEL = 24 << 10

folder_paths.add_model_folder_path(MODEL_FOLDER, os.path.join(folder_paths.models_dir, MODEL_FOLDER))
folder_paths.folder_names_and_paths[MODEL_FOLDER][1].update(MODEL_ENDINGS)
# The host carries CLIP's vocabulary, which the published checkpoints lack.
mvdream.add_tokenizer_folder(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer")


# ---------------------------------------------------------------------------------------------------- splats, cameras


def splat_to_host(items: Sequence[GaussianSplats]) -> Types.SPLAT:
    """A batch of splats as the host's SPLAT: rows and SH coefficients padded with zeros to the longest item.

    The comments of the files travel along in an attribute of ours; the host's own nodes drop it.
    """
    rows, coefficients = max(map(len, items)), max(item.sh.shape[1] for item in items)
    device = comfy.model_management.intermediate_device()

    def padded(tensors: Iterable[Tensor], *shape: int) -> Tensor:  # N × (n,…) -> (B,*shape)
        batch = torch.zeros(len(items), *shape, device=device)
        for target, tensor in zip(batch, tensors, strict=True):
            target[tuple(slice(size) for size in tensor.shape)] = tensor.to(device)
        return batch

    uniform = all(len(item) == rows for item in items)
    splat = Types.SPLAT(
        positions=padded((item.positions for item in items), rows, 3),
        scales=padded((item.scales for item in items), rows, 3),
        rotations=padded((item.rotations for item in items), rows, 4),
        opacities=padded((item.opacities for item in items), rows, 1),
        sh=padded((item.sh for item in items), rows, coefficients, 3),
        counts=None if uniform else torch.tensor([len(item) for item in items], device=device),
    )
    splat.invert3d_comments = [item.comment for item in items]
    return splat


def splat_from_host(splat: Types.SPLAT) -> list[GaussianSplats]:
    """The items of a SPLAT without their padding, on its device. FormatError when its values are not splats."""
    batch = splat.positions.shape[0]
    lengths = [splat.positions.shape[1]] * batch if splat.counts is None else splat.counts.tolist()
    comments = getattr(splat, "invert3d_comments", [""] * batch)
    return [
        GaussianSplats(
            positions=splat.positions[i, :length],
            scales=splat.scales[i, :length],
            rotations=splat.rotations[i, :length],
            opacities=splat.opacities[i, :length],
            sh=splat.sh[i, :length],
            comment=comments[i],
        )
        for i, length in enumerate(lengths)
    ]


def to_host(tensor: Tensor) -> Tensor:
    """A result where the host keeps results between nodes."""
    return tensor.to(comfy.model_management.intermediate_device())


def image_to_host(tensor: Tensor) -> Tensor:
    """Pictures and masks where the host keeps them, in its dtype."""
    return to_host(tensor).to(comfy.model_management.intermediate_dtype())


def resize_images(images: Tensor, width: int, height: int) -> Tensor:  # (B,h,w,C) -> (B,height,width,C)
    """Pictures scaled to fill a size, what stands over cut off evenly."""
    channels_first = images.movedim(-1, 1).float()
    return comfy.utils.common_upscale(channels_first, width, height, "bicubic", "center").clamp(0, 1).movedim(1, -1)


def latents_to_host(latents: Tensor, scaling_factor: float) -> dict[str, Tensor]:  # (B,C,h,w)
    """Latents on the U-Net's scale as the host's LATENT, which has the VAE's own."""
    return {"samples": to_host(latents / scaling_factor)}


# -------------------------------------------------------------------------------------------------------------- models


class MVDreamNetwork(torch.nn.Module):
    """A network as the host's patchers want it: with a device that they can set (diffusers' own is read-only)."""

    def __init__(self, network: torch.nn.Module, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self.device = device


class HostMVDream:
    """The core's MVDream with its three networks in the host's model patchers, so that the host moves and frees them.

    source: a digest of the weights' file.
    """

    def __init__(self, model: MVDream, source: str) -> None:
        management = comfy.model_management
        places = (
            (model.unet, management.get_torch_device(), management.unet_offload_device()),
            (model.vae, management.vae_device(), management.vae_offload_device()),
            (model.text_encoder, management.text_encoder_device(), management.text_encoder_offload_device()),
        )
        self._model = model
        self._patchers = []
        for network, load_device, offload_device in places:
            held = MVDreamNetwork(network, offload_device).to(offload_device)
            # Not CoreModelPatcher: where the host pages weights ("dynamic VRAM"), that one copies all of a network of
            # plain layers to the GPU anew for each prompt, and what was recorded with the copies before is lost.
            self._patchers.append(comfy.model_patcher.ModelPatcher(held, load_device, offload_device))
        self.source = source

    @classmethod
    def load(cls, path_or_name: Path | str, dtype: torch.dtype | None = None) -> "HostMVDream":
        """A model of the core's `mvdream.load`. dtype: of the U-Net; None asks the host what suits its device."""
        model = mvdream.load(path_or_name, device="cpu")
        files = mvdream.layouts.files_of(mvdream.checkpoint.find_checkpoint(path_or_name))
        source = "".join(sampled_digest(file) for file in files)
        with torch.inference_mode(False):
            torch.nn.Module.to(model.unet, dtype=dtype or _unet_dtype(model.unet))
            return cls(model, source)

    @property
    def info(self) -> mvdream.ModelInfo:
        """What is known of the model beside its weights."""
        return self._model.info

    @property
    def dtype(self) -> torch.dtype:
        """The U-Net's dtype."""
        return self._model.dtype

    @property
    def token_width(self) -> int:
        """The width of a token's vectors."""
        return self._model.text_encoder.get_input_embeddings().embedding_dim

    def with_token(self, token: Token, strength: float) -> "HostMVDream":
        """A copy that knows one more token; networks and patchers are shared."""
        other = copy.copy(self)
        other._model = self._model.with_token(token, strength)
        return other

    @contextlib.contextmanager
    def ready(self, views: int, training: bool = False) -> Iterator[MVDream]:
        """The model with its networks on their devices and room for the work on so many views beside them.

        Inside, inference mode is off, since what a model keeps from one call to the next must do for training too; and
        a cancel takes effect before every pass through a network and every block of the VAE, in jobs without steps too.
        """
        per_pixel = TRAINING_BYTES_PER_PIXEL if training else SAMPLING_BYTES_PER_PIXEL
        memory = views * self.info.image_size**2 * per_pixel
        cancel = comfy.model_management.throw_exception_if_processing_interrupted
        with torch.inference_mode(False), torch.no_grad(), contextlib.ExitStack() as hooks:
            # Networks of plain layers work whole or not at all: the host can page only layers of its own.
            comfy.model_management.load_models_gpu(self._patchers, memory_required=memory, force_full_load=True)
            for patcher in self._patchers:
                if patcher.loaded_size() < patcher.model_size():  # --novram leaves where it is what it cannot page
                    patcher.load(patcher.load_device, full_load=True)
            for module in (self._model.unet, self._model.text_encoder, *_blocks(self._model.vae)):
                hook: Any = module.register_forward_pre_hook(lambda *_: cancel())
                hooks.callback(hook.remove)
            yield self._model


def _blocks(network: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The parts of a network that it calls one after another. Of the VAE nothing else is called: it has no one pass."""
    for module in network.modules():
        if isinstance(module, torch.nn.ModuleList):
            yield from module


def _unet_dtype(unet: torch.nn.Module) -> torch.dtype:
    """What the host would choose, with its command line's wishes, among the dtypes in which a token can be trained."""
    choices = [torch.bfloat16, torch.float32]
    size = sum(parameter.numel() for parameter in unet.parameters())
    device = comfy.model_management.get_torch_device()
    chosen = comfy.model_management.unet_dtype(device, size, choices)
    return chosen if chosen in (*choices, torch.float16) else torch.float32


def list_models(folder: str) -> list[str]:
    """Names of the files in one of the host's model folders, at any depth."""
    return [name.replace(os.sep, "/") for name in folder_paths.get_filename_list(folder)]


def find_model(folder: str, name: str) -> Path | None:
    """The file of that name in one of the host's model folders, None when there is none; it never leaves the folder."""
    found = folder_paths.get_full_path(folder, name)
    return Path(found) if found else None


def embeddings_folder() -> Path:
    """Where new text embeddings go."""
    return Path(folder_paths.get_folder_paths("embeddings")[0])


# ----------------------------------------------------------------------------------------------------------- long jobs


def runs_folder() -> Path:
    """Where trainings are kept: user/__invert3d/runs, which none of the host's routes serves."""
    return Path(folder_paths.get_system_user_directory("invert3d")) / "runs"


def check_finite(**widgets: float) -> None:
    """ValueError for a widget that is no number: the host's own limits let NaN pass."""
    for name, value in widgets.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}: give it a finite number")


def tell(text: str) -> None:
    """A line in the host's log and on the node that runs."""
    logger.info(text)
    context = get_executing_context()
    if context is not None:
        PromptServer.instance.send_progress_text(text, context.node_id)


def raise_if_cancelled() -> None:
    """Leave through the host's own interrupt (a BaseException) when its user has cancelled the prompt."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def wait_for_another(text: str, seconds: float) -> None:
    """While another process on the same folder does the very same: its result will do, unless the user cancels.

    text: what is said of it, once. seconds: waited so far.
    """
    if seconds == 0:
        tell(text)
    raise_if_cancelled()


def torch_device() -> torch.device:
    """The device on which the host computes."""
    return comfy.model_management.get_torch_device()


def make_room(memory: int) -> None:
    """Let the host take models off its device until so many bytes are free there, for work that needs no model."""
    comfy.model_management.free_memory(memory, torch_device())


class HostProgress:
    """The core's progress protocol on the host's progress bar: bar, preview, metrics as text, and cancel at every step.

    bar_alone: send nothing but the bar, as numbers and pictures are shown elsewhere; pictures are still asked for.
    A cancelled prompt leaves through the host's own interrupt (a BaseException), raised from the call.
    """

    def __init__(self, bar_alone: bool = False) -> None:
        self._bar_alone = bar_alone
        self._bar: comfy.utils.ProgressBar | None = None
        self._last_shown = self._last_drawn = float("-inf")  # pictures are offered rarely: numbers must not use them up

    def __call__(
        self,
        step: int,
        total: int,
        *,
        metrics: Mapping[str, float] | None = None,
        preview: Callable[[], Tensor] | None = None,
    ) -> None:
        # The bar looks for a cancel only when it sends something, which it does not do at every step.
        raise_if_cancelled()
        bar = self._bar = self._bar or comfy.utils.ProgressBar(total)
        now = time.monotonic()
        shown = now - self._last_shown >= SHOW_INTERVAL_S or step == total
        if shown:
            self._last_shown = now
        # No size with the picture: the host would scale it up to its own.
        picture = None
        if preview is not None and (now - self._last_drawn >= SHOW_INTERVAL_S or step == total):
            drawn = preview()
            picture = None if self._bar_alone else ("JPEG", _to_pil(drawn), None)
            self._last_drawn = time.monotonic()
        bar.update_absolute(step, total, picture)
        context = get_executing_context()
        if shown and metrics and context is not None and not self._bar_alone:
            text = " · ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            PromptServer.instance.send_progress_text(f"step {step} of {total} · {text}", context.node_id)


def running_node() -> tuple[str, str]:
    """The ids of the prompt and of the node that run now."""
    context = get_executing_context()
    return ("", "") if context is None else (context.prompt_id, context.node_id)


def page_routes() -> Any:
    """Where a module adds routes for the page, as decorators of aiohttp."""
    return PromptServer.instance.routes


def send_to_pages(event: str, data: Mapping[str, Any]) -> None:
    """Tell every open page something over its websocket."""
    PromptServer.instance.send_sync(event, data)


def jpeg_of(picture: Tensor) -> bytes:  # (H,W,3) in [0,1]
    """A picture as a JPEG file."""
    buffer = io.BytesIO()
    _to_pil(picture).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _to_pil(picture: Tensor) -> Image.Image:  # (H,W,3) in [0,1]
    values = picture.detach().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    return Image.fromarray(values.contiguous().numpy())


def _from_pil(image: Image.Image) -> Tensor:  # (H,W,3) in [0,1]
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)


def save_picture(picture: Tensor, path: Path) -> Tensor:  # (H,W,3) in [0,1] -> (H,W,3)
    """Keep a PNG, whole or, with a warning, not at all; returns the picture as it will be read, in 256 levels."""
    buffer = io.BytesIO()
    image = _to_pil(picture)
    image.save(buffer, "PNG")
    try:
        write_atomically(path, buffer.getvalue())
    except StorageError as error:  # it can be drawn again
        logger.warning("A picture is not kept: %s", error)
    return _from_pil(image)


def load_picture(path: Path) -> Tensor | None:  # (H,W,3) in [0,1]
    """A picture file, None when it is missing or damaged."""
    try:
        with Image.open(path) as picture:
            return _from_pil(picture)
    except (OSError, SyntaxError):  # Pillow's word for a broken PNG
        return None


# --------------------------------------------------------------------------------------------------------------- files


def list_files(extensions: Iterable[str]) -> list[str]:
    """What a file widget offers: the built-in samples, then what lies in the input folder, at any depth."""
    wanted = {extension.lower() for extension in extensions}
    samples = [path.name + SAMPLE_SUFFIX for path in sorted(SAMPLES.glob("*")) if path.suffix.lower() in wanted]
    folder = folder_paths.get_input_directory()
    found = []
    for directory, _, names in os.walk(folder):
        paths = (os.path.join(directory, name) for name in names if os.path.splitext(name)[1].lower() in wanted)
        for path in paths:
            name = os.path.relpath(path, folder).replace(os.sep, "/")
            # The host opens no link that leads out of its folders; to ask it of every file would take its time.
            if not os.path.islink(path) or folder_paths.exists_annotated_filepath(name):
                found.append(name)
    return samples + sorted(found)


def find_file(name: str) -> Path | None:
    """The file that a file widget's value names, None when there is no such file or it lies outside the known folders.

    Known are the built-in samples and, with " [input]" or " [output]" and the like behind the name, the host's folders.
    """
    name = str(name)  # an API prompt may hold anything
    if name.endswith(SAMPLE_SUFFIX):
        path = SAMPLES / name.removesuffix(SAMPLE_SUFFIX)
        return path if path.parent == SAMPLES and os.path.isfile(path) else None  # False for every impossible name
    if not folder_paths.exists_annotated_filepath(name):
        return None
    path = Path(folder_paths.get_annotated_filepath(name))
    return path if path.is_file() else None


def check_output_prefix(prefix: str) -> None:
    """ValueError for a file name prefix that is empty, no path, or leads out of the output folder."""
    folder = os.path.realpath(folder_paths.get_output_directory())
    name = os.path.basename(os.path.normpath(prefix))
    if not prefix.strip() or "\0" in prefix or name in ("", ".", ".."):
        raise ValueError(f"filename_prefix is {prefix!r}: write a name, or folders and a name such as 3d/splat")
    if not Path(os.path.realpath(os.path.join(folder, os.path.normpath(prefix)))).is_relative_to(folder):
        raise ValueError(
            f"filename_prefix is {prefix!r}, which leads out of ComfyUI's output folder: write a name, or folders and "
            "a name such as 3d/splat"
        )


def new_output_file(prefix: str, ending: str) -> Path:
    """Where the next file of a prefix goes, by the host's own rules: folders, %year% and the like, a counter.

    The folder is made. ValueError as `check_output_prefix`.
    """
    check_output_prefix(prefix)
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    return Path(folder) / f"{name}_{counter:05}_{ending}"


def within_output(path: Path) -> str:
    """The path of a file in the output folder as the page names it."""
    return os.path.relpath(path, folder_paths.get_output_directory()).replace(os.sep, "/")


def saved_in_output(path: Path) -> dict[str, str]:
    """A file in the output folder as an entry of a node's UI result."""
    folder, _, name = within_output(path).rpartition("/")
    return {"filename": name, "subfolder": folder, "type": "output"}


def metadata_to_save(hidden: Any) -> dict[str, Any]:
    """The prompt and the workflow that run, for a node with these hidden inputs; nothing with --disable-metadata."""
    if args.disable_metadata:
        return {}
    values = {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    plain = {name: value for name, value in values.items() if name.isidentifier() and name.isascii()}
    return {name: value for name, value in plain.items() if isinstance(value, (dict, list))}


def file_fingerprint(name: str) -> str:
    """A text that changes when the file does: the host runs a node again when it differs."""
    path = find_file(name)
    if path is None:
        return f"missing {name}"
    return path_fingerprint(path)


def path_fingerprint(path: Path) -> str:
    """A text that changes when the file at a path does."""
    status = path.stat()
    return hashlib.sha256(f"{path}|{status.st_size}|{status.st_mtime_ns}".encode()).hexdigest()


def sampled_digest(path: Path, samples: int = 64, block: int = 1 << 16) -> str:
    """A digest of a large file's size and of blocks spread evenly over it; it survives copying and touching."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(samples):
            file.seek(max(0, size - block) * i // (samples - 1))
            digest.update(file.read(block))
    return digest.hexdigest()
