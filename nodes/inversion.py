"""Learning a token from a splat or from prepared views, kept on disk so that no work is ever done twice."""

from collections.abc import Iterable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from comfy_api.latest import Types, io
from torch import Tensor

from ..invert3d_core import inversion
from ..invert3d_core.cameras import Cameras
from ..invert3d_core.errors import TokenError
from ..invert3d_core.inversion import SplatViews, ViewSet
from ..invert3d_core.inversion.finished import KeptTraining, TrainingStore, training_key
from ..invert3d_core.inversion.views import SET_SIZE
from ..invert3d_core.tokens import check_name
from . import desk, host
from .cameras import orientation_inputs, orientation_of
from .types import Cameras as CamerasSocket
from .types import MVDream as MVDreamSocket
from .types import Token as TokenSocket


def views_of(
    splat: Types.SPLAT | None,
    images: Tensor | None,
    masks: Tensor | None,
    cameras: Cameras | None,
    up: str,
    front: str,
) -> SplatViews | ViewSet:
    """What the node's inputs show of the object. ValueError when they are not one splat, or pictures with cameras."""
    if splat is not None:
        others = {"images": images, "masks": masks, "cameras": cameras}
        given = [name for name, value in others.items() if value is not None]
        if given:
            raise ValueError(f"splat and {', '.join(given)} are connected: connect a splat, or images with cameras")
        items = host.splat_from_host(splat)
        if len(items) != 1:
            raise ValueError(f"splat holds a batch of {len(items)} objects: a token is learned from one, so split them")
        return SplatViews(items[0].to(host.torch_device()), orientation_of(items[0], up, front))
    if images is None or cameras is None:
        raise ValueError(
            "nothing to learn from: connect a splat, or images with their cameras (and masks), both from Render Views"
        )
    return ViewSet(images[..., :3].float(), cameras, None if masks is None else masks.float())


def tell_what_is_kept(name: str, kept: KeptTraining, steps: int, resume: bool) -> None:
    """Say that a training of so many steps is found again, or that one is left aside."""
    if not kept.step:
        return
    if not resume:
        host.tell(f"<{name}> is trained anew: {kept.step} steps were kept, and resume is off.")
    elif kept.finished and kept.step < steps:
        host.tell(
            f"<{name}> is found again as it ended, at step {kept.step} of {steps}: {kept.checkpoint}. "
            "To train it anew, switch resume off."
        )
    elif kept.finished:
        host.tell(f"<{name}> is found again, with all its {kept.step} steps: {kept.checkpoint}")
    else:
        host.tell(f"<{name}> is found again and goes on from step {kept.step}: {kept.checkpoint}")


class TrainInversionToken(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DTrainInversionToken",
            display_name="Train Inversion Token",
            category="Invert3D/tokens",
            description="Learns a token that means this very object to the model; can be cancelled and goes on later.",
            search_aliases=["textual inversion", "personalize", "train embedding", "learn concept"],
            inputs=[
                MVDreamSocket.Input("mvdream"),
                io.Splat.Input(
                    "splat",
                    optional=True,
                    tooltip="The object. Views of it are rendered as the model needs them. "
                    "Connect this, or images with cameras.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Square views of the object, among them four a quarter turn apart at one elevation.",
                ),
                io.Mask.Input("masks", optional=True, tooltip="1 on the object in each of the images."),
                CamerasSocket.Input("cameras", optional=True, tooltip="The camera of each of the images."),
                io.String.Input(
                    "name",
                    default="my_object",
                    tooltip="What prompts will write between < and >: letters, digits, _, - and inner dots.",
                ),
                io.String.Input(
                    "initial_words",
                    default="",
                    tooltip="Words that describe the object, from which the token starts, such as: red mug with blue "
                    "handle. What they name, prompts can change better: a green <token>. Empty takes the preset's, "
                    "which fit everything.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(inversion.PRESETS),
                    default="recommended",
                    tooltip="reference has every published setting of Invert3D and needs a splat; recommended learns "
                    "more in less time.",
                ),
                io.Int.Input(
                    "vectors",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="Places that the token takes in a prompt: more hold more detail. 0 takes the preset's "
                    f"({_of_presets('vectors')}).",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip=f"Training steps; 0 takes the preset's ({_of_presets('steps')}).",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,  # a seed that changes after each run would train again each time
                    tooltip="Of everything drawn in the training; the published one is 23.",
                ),
                io.Boolean.Input(
                    "resume",
                    default=True,
                    tooltip="Go on from where the same training was cancelled or killed, and return a finished one at "
                    "once, also when other workflows ran in between. Switch off to train anew, in place of what is "
                    "kept.",
                ),
                *orientation_inputs(),
                io.Int.Input(
                    "preview_every",
                    default=100,
                    min=0,
                    max=100_000,
                    tooltip="Steps between pictures of what the token means by then; 0 makes none.",
                    advanced=True,
                ),
                io.Int.Input(
                    "checkpoint_every",
                    default=25,
                    min=1,
                    max=100_000,
                    tooltip="Steps between saved states: a killed host loses at most these. A cancel loses none.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=False,
                    tooltip="Needs less memory and more time.",
                    advanced=True,
                ),
            ],
            hidden=[io.Hidden.extra_pnginfo],
            outputs=[
                TokenSocket.Output("token", display_name="token"),
                io.LossMap.Output("loss", display_name="loss", tooltip="The training loss of each step."),
                io.Image.Output("preview", display_name="preview", tooltip="What the token alone looks like."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        try:
            check_name("linked" if name is None else name)
        except TokenError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        mvdream: host.HostMVDream,
        name: str,
        initial_words: str,
        preset: str,
        vectors: int,
        steps: int,
        seed: int,
        resume: bool,
        up: str,
        front: str,
        splat: Types.SPLAT | None = None,
        images: Tensor | None = None,
        masks: Tensor | None = None,
        cameras: Cameras | None = None,
        **free: Any,
    ) -> io.NodeOutput:
        views = views_of(splat, images, masks, cameras, up, front)
        chosen = {"vectors": vectors, "steps": steps, "initial_words": initial_words.strip()}
        changes = {setting: value for setting, value in chosen.items() if value}
        config = inversion.preset(preset, seed=seed, **changes, **free)
        if config.precision == "fp32" and mvdream.dtype != torch.float32:
            raise ValueError(
                f"the preset {preset} trains in float32, but the model is loaded in {mvdream.dtype}: "
                "choose the dtype float32 in MVDream Loader"
            )
        key = training_key(config, name, views, mvdream.source, str(mvdream.dtype))
        waiting = partial(host.wait_for_another, "Another process is training this token: waiting for its result.")
        with (
            TrainingStore(host.runs_folder()).training(name, key, waiting, anew=not resume) as kept,
            mvdream.ready(SET_SIZE * config.sets_per_step, training=True) as model,
            desk.training(name, config.steps, cls.hidden.extra_pnginfo) as progress,
        ):
            tell_what_is_kept(name, kept, config.steps, resume)
            result = inversion.train_token(
                model,
                views,
                config,
                name=name,
                progress=progress,
                checkpoint=kept.checkpoint,
                resume=resume,
            )
            picture = host.load_picture(kept.picture) if resume and kept.finished else None
            if picture is None:
                picture = inversion.preview_strip(model.with_token(result.token), f"a <{name}>")
                picture = host.save_picture(picture, kept.picture)
            progress.finish(result, picture)
        return io.NodeOutput(result.token, {"loss": result.losses}, host.image_to_host(picture[None]))


def _of_presets(setting: str) -> str:
    return of_presets(inversion, inversion.PRESETS, setting)


def of_presets(job: ModuleType, names: Iterable[str], setting: str) -> str:
    """What each of a job's presets sets, for a tooltip."""
    return ", ".join(f"{getattr(job.preset(name), setting)} in {name}" for name in names)


NODES = [TrainInversionToken]
