"""Training in a process of its own that is killed at a chosen moment."""

from pathlib import Path

import torch

from invert3d_core import inversion, tokens
from invert3d_core.inversion.finished import TrainingStore, training_key
from tests.unit.inversion.tiny_model import make_model, make_views
from tests.unit.kills import die_while_saving, steps_told

CONFIG = inversion.preset(
    "recommended",
    steps=24,
    vectors=3,
    initial_words="red cup",
    validation_every=5,
    validation_sets=2,
    checkpoint_every=1,
)


def train(folder: str, started, die_in: str | None = None, save: int = 0, reached=None) -> None:
    """Train to the end and save the token, unless killed; `started` is set after the first step.

    reached: a shared number that follows the steps that are done and saved. die_in, save: see `die_while_saving`.
    """
    torch.set_num_threads(1)
    die_while_saving(die_in, save)

    path = Path(folder)
    result = inversion.train_token(
        make_model(),
        make_views(),
        CONFIG,
        name="cup",
        checkpoint=path / "run.safetensors",
        progress=steps_told(started, reached),
    )
    tokens.save(result.token, path / "cup.safetensors", overwrite=True)


def train_in_store(folder: str, together, steps) -> None:
    """Train in a store at the same moment as others, and add the steps it took to a shared number."""
    torch.set_num_threads(1)
    model, views = make_model(), make_views()

    def progress(step, total, *, metrics=None, preview=None):
        if metrics is not None:
            with steps.get_lock():
                steps.value += 1

    together.wait(60)
    with TrainingStore(Path(folder)).training(
        "cup", training_key(CONFIG, "cup", views, "", ""), lambda seconds: None
    ) as kept:
        inversion.train_token(model, views, CONFIG, name="cup", checkpoint=kept.checkpoint, progress=progress)
