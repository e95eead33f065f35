"""Gaussian splats from pictures with cameras, kept on disk so that no fit is ever done twice."""

from functools import partial
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..invert3d_core import lift3d
from ..invert3d_core.cameras import Cameras
from ..invert3d_core.errors import TrainingError
from ..invert3d_core.inversion.finished import KeptTraining
from ..invert3d_core.lift3d.finished import FitStore, fit_key
from . import host
from .inversion import of_presets
from .types import Cameras as CamerasSocket

PRESETS = [name for name in lift3d.PRESETS if name != "consistency"]
DENSITIES = ["preset", "fixed", "adaptive", "mcmc"]

# Estimates of what a fit takes on the device: all views and what is known of them; values, moments and gradients.
BYTES_PER_PIXEL = 64
BYTES_PER_SPLAT = 2 << 10


def tell_what_is_kept(kept: KeptTraining, resume: bool) -> None:
    """Say that a fit is found again, or that one is left aside."""
    if not kept.step:
        return
    if not resume:
        host.tell(f"The splat is fitted anew: {kept.step} steps were kept, and resume is off.")
    elif kept.finished:
        host.tell(f"The splat is found again, with all its {kept.step} steps: {kept.checkpoint}")
    else:
        host.tell(f"The fit is found again and goes on from step {kept.step}: {kept.checkpoint}")


class SplatFromViews(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DSplatFromViews",
            display_name="Splat From Views",
            category="Invert3D/splats",
            description="Fits a Gaussian splat to pictures with cameras; can be cancelled and goes on later.",
            search_aliases=["3d reconstruction", "gaussian splatting training", "views to splat", "fit splat", "3dgs"],
            inputs=[
                io.Image.Input("images", tooltip="Views of one object from all around, one for each camera."),
                CamerasSocket.Input("cameras", tooltip="The camera of each of the images."),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="1 on the object in each of the images. Without them the object is what differs from a "
                    "plain background.",
                ),
                io.Combo.Input(
                    "preset",
                    options=PRESETS,
                    default="recommended",
                    tooltip="recommended fits an object in a few minutes on a CPU. reference has the published "
                    "settings of 3D Gaussian splatting, and mcmc more detail under a limit of splats: both are for a "
                    "GPU, mcmc for one with gsplat.",
                ),
                io.Int.Input(
                    "max_splats",
                    default=0,
                    min=0,
                    max=10_000_000,
                    tooltip=f"How many splats there may be; 0 takes the preset's ({_of_presets('max_splats')}).",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip=f"Steps of the fit; 0 takes the preset's ({_of_presets('steps')}).",
                ),
                io.Int.Input(
                    "sh_degree",
                    default=-1,
                    min=-1,
                    max=4,
                    tooltip="How much colors may change with the direction: 0 not at all, 3 as usual for captures; "
                    f"-1 takes the preset's ({_of_presets('sh_degree')}).",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,  # a seed that changes after each run would fit again each time
                    tooltip="Of everything drawn in the fit.",
                ),
                io.Boolean.Input(
                    "resume",
                    default=True,
                    tooltip="Go on from where the same fit was cancelled or killed, and return a finished one at once, "
                    "also when other workflows ran in between. Switch off to fit anew, in place of what is kept.",
                ),
                io.Combo.Input(
                    "density",
                    options=DENSITIES,
                    default="preset",
                    tooltip="How the number of splats changes: fixed keeps it, adaptive adds where the views ask for "
                    "more and removes what does not show, mcmc moves faint ones to where they help (needs gsplat).",
                    advanced=True,
                ),
                io.Int.Input(
                    "preview_every",
                    default=50,
                    min=0,
                    max=1_000_000,
                    tooltip="Steps between pictures of the splat beside the views; 0 makes none.",
                    advanced=True,
                ),
                io.Int.Input(
                    "checkpoint_every",
                    default=100,
                    min=1,
                    max=1_000_000,
                    tooltip="Steps between saved states: a killed host loses at most these. A cancel loses none.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Splat.Output(
                    "splat",
                    display_name="splat",
                    tooltip="In the frame of the cameras: y up and front +z for orbits and paths, the file's own for "
                    "cameras of a file.",
                ),
                io.LossMap.Output("loss", display_name="loss", tooltip="The loss of each step."),
                io.Image.Output(
                    "preview", display_name="preview", tooltip="Some of the views, and below them the splat."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, preset: str | None = None, density: str | None = None) -> bool | str:
        if preset is None or density is None:  # linked: known only when it runs
            return True
        # The host leaves what is asked for here to us.
        for name, value, choices in (("preset", preset, PRESETS), ("density", density, DENSITIES)):
            if value not in choices:
                return f"{name} is {value!r}: choose one of {', '.join(choices)}"
        try:
            lift3d.check_device(settings(preset, 0, 0, -1, density, 0), host.torch_device())
        except TrainingError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        images: Tensor,
        cameras: Cameras,
        preset: str,
        max_splats: int,
        steps: int,
        sh_degree: int,
        seed: int,
        resume: bool,
        density: str,
        masks: Tensor | None = None,
        **free: Any,
    ) -> io.NodeOutput:
        config = settings(preset, max_splats, steps, sh_degree, density, seed, **free)
        device = host.torch_device()
        host.make_room(images[..., 0].numel() * BYTES_PER_PIXEL + config.max_splats * BYTES_PER_SPLAT)
        pictures = images[..., :3].to(device, torch.float32)
        silhouettes = None if masks is None else masks.to(device, torch.float32)
        key = fit_key(config, pictures, silhouettes, cameras)
        store = FitStore(host.runs_folder().with_name("fits"))
        waiting = partial(host.wait_for_another, "Another process is fitting these views: waiting for its result.")
        with store.training("splat", key, waiting, anew=not resume) as kept:
            tell_what_is_kept(kept, resume)
            result = lift3d.fit_splats(
                pictures,
                silhouettes,
                cameras,
                config,
                progress=host.HostProgress(),
                checkpoint=kept.checkpoint,
                resume=resume,
            )
        host.tell(f"{len(result.splats):,} splats, {result.psnr:.1f} dB on the views they were fitted to")
        return io.NodeOutput(
            host.splat_to_host([result.splats]), {"loss": result.losses}, host.image_to_host(result.picture[None])
        )


def settings(
    preset: str, max_splats: int, steps: int, sh_degree: int, density: str, seed: int, **free: Any
) -> lift3d.FitConfig:
    """The fit that the widgets ask for; 0, -1 and "preset" leave a setting to the preset."""
    changes: dict[str, Any] = {}
    if max_splats:
        changes["max_splats"] = max_splats
    if steps:
        changes["steps"] = steps
    if sh_degree >= 0:
        changes["sh_degree"] = sh_degree
    if density != "preset":
        changes["density"] = density
    return lift3d.preset(preset, seed=seed, **changes, **free)


def _of_presets(setting: str) -> str:
    return of_presets(lift3d, PRESETS, setting)


NODES = [SplatFromViews]
