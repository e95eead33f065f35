"""A fit in a process of its own that is killed at a chosen moment."""

from pathlib import Path

import torch

from invert3d_core import lift3d, splats
from tests.unit.kills import die_while_saving, steps_told
from tests.unit.lift3d.scenes import balls, rig, tiny, views

CONFIG = tiny(start="random", steps=20, checkpoint_every=1)  # the hull would take most of the time


def fit(folder: str, started, die_in: str | None = None, save: int = 0, reached=None) -> None:
    """Fit to the end and save the splats, unless killed; `started` is set after the first step.

    reached: a shared number that follows the steps that are done and saved. die_in, save: see `die_while_saving`.
    """
    torch.set_num_threads(1)
    die_while_saving(die_in, save)

    path, cams = Path(folder), rig(3, 16)
    images, masks = views(balls(), cams)
    told = steps_told(started, reached)
    result = lift3d.fit_splats(images, masks, cams, CONFIG, checkpoint=path / "run.safetensors", progress=told)
    splats.save(result.splats, path / "balls.ply")
