"""`invert3d invert`: a splat becomes a token."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from . import assets
from .assets import Asset, Axis
from .command import (
    Bar,
    Command,
    InputError,
    OptionalInt,
    OptionalPath,
    OptionalText,
    Switch,
    load_model,
    stopping_between_steps,
    writable_folder,
)

if TYPE_CHECKING:
    from ..inversion import InversionConfig, InversionResult
    from ..mvdream import MVDream

TAIL = 50  # steps that the last training loss is the mean of: single ones say little


@dataclass(kw_only=True)
class Invert(Command):
    """Learn a token that means the object of a splat to a multi-view model.

    Ctrl-C keeps what was learned; the same command goes on from there.
    """

    file: Positional[Path]
    """A splat file, or the name of a built-in sample."""
    model: str
    """toy, or an MVDream checkpoint: a file, or a folder that holds one."""
    name: str
    """What prompts will write between < and >."""
    out: Path
    """The token's file, ending in .safetensors; its stem is what ComfyUI writes after embedding:"""
    words: OptionalText = None
    """Words the token starts from, as you would describe the object; by default object, or a sample's own caption."""
    preset: Literal["recommended", "reference"] = "recommended"
    """Settings: ours, or those published with Invert3D."""
    vectors: OptionalInt = None
    """Vectors of the token: more say more, and take more places of a prompt. By default the preset's."""
    steps: OptionalInt = None
    """Training steps; by default the preset's."""
    seed: OptionalInt = None
    """Seed of everything that is drawn; by default the preset's."""
    checkpoint_every: OptionalInt = None
    """Steps between two checkpoints, 0 for one at the end alone; by default the preset's, 100 or 300."""
    checkpoint: OptionalPath = None
    """File that keeps the state of the training; by default beside the token, and removed when that is saved."""
    resume: bool = True
    """Go on from the checkpoint where there is one, or start anew."""
    overwrite: Switch = False
    """Replace a token file that is there already."""
    up: Axis = "auto"
    """Axis of the file that points up; auto is what the file states, else -y."""
    front: Axis = "auto"
    """Axis of the file that the front faces; auto is what the file states, else -z."""
    device: OptionalText = None
    """Where to train, such as cpu or cuda; by default CUDA where it works."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the model's weights; bf16 halves the memory."""

    def run(self) -> None:
        from .. import inversion, tokens
        from ..files import locked

        began = time.monotonic()
        # Whatever could spoil the end is looked at before the work.
        checkpoint = self._check_paths()
        changes = {
            "vectors": self.vectors,
            "steps": self.steps,
            "seed": self.seed,
            "checkpoint_every": self.checkpoint_every,
        }
        config = inversion.preset(self.preset, **{key: value for key, value in changes.items() if value is not None})
        asset = assets.load(self.file)
        model = load_model(self.model, self.device, self.dtype)
        words = self.words or initial_words(asset.sample, model, config)
        self.say(
            f"Learning <{self.name}> from {asset.path.name} ({len(asset.splat):,} splats): {config.vectors} vectors "
            f"from the words {words!r}, up to {config.steps} steps on {model.device}."
        )
        with locked(checkpoint):  # the same command may run twice
            result, first = self._train(model, asset, config, words, checkpoint)
            tokens.save(result.token, self.out, overwrite=self.overwrite)
            if self.checkpoint is None:
                checkpoint.unlink(missing_ok=True)
        tail = result.losses[-TAIL:]
        self.report(
            {
                "command": "invert",
                "token": str(self.out),
                "name": self.name,
                "vectors": config.vectors,
                "initial_words": words,
                "file": str(asset.path),
                "model": model.info.title,
                "preset": config.preset,
                "seed": config.seed,
                "steps": len(result.losses),
                "resumed_from_step": first,
                "best_step": result.best_step,
                "stopped_early": result.stopped_early,
                "loss": sum(tail) / len(tail),
                "validation_losses": result.validation_losses,
                "device": str(model.device),
                "seconds": round(time.monotonic() - began, 3),
            },
            f"The token <{self.name}> is in {self.out}: the vectors of step {result.best_step} of "
            f"{len(result.losses)}. Try: invert3d sample --model {self.model} --prompt 'a <{self.name}>' --token "
            f"{self.out} --out views",
        )

    def _check_paths(self) -> Path:
        """The checkpoint's path, once name and files are known to be usable. Raises Invert3DError or OSError."""
        from ..tokens import check_name

        check_name(self.name)
        if self.out.suffix != ".safetensors":
            raise InputError(f"--out is '{self.out}'; a token is a .safetensors file: give it that ending.")
        check_name(self.out.stem, "file name")
        if self.out.exists() and not self.overwrite:
            raise InputError(f"'{self.out}' exists already. Choose another name, or add --overwrite.")
        checkpoint = self.checkpoint or self.out.with_name(f"{self.out.stem}.checkpoint.safetensors")
        if checkpoint.resolve() == self.out.resolve():
            raise InputError(f"--checkpoint and --out are both '{self.out}'. Give the checkpoint another name.")
        for file in (self.out, checkpoint):
            writable_folder(file.parent)
        return checkpoint

    def _train(
        self, model: "MVDream", asset: Asset, config: "InversionConfig", words: str, checkpoint: Path
    ) -> "tuple[InversionResult, int]":
        """The result, and the step it went on from."""
        from .. import inversion

        stands = assets.orientation(asset.splat, self.up, self.front)
        views = inversion.SplatViews(asset.splat.to(model.device), stands)
        with stopping_between_steps() as check, Bar("training", check) as bar:
            try:
                result = inversion.train_token(
                    model,
                    views,
                    config,
                    name=self.name,
                    initial_words=words,
                    progress=bar,
                    checkpoint=checkpoint,
                    resume=self.resume,
                )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(kept(bar, checkpoint)) from None
        return result, first_step(bar, result)


def initial_words(sample: str | None, model: "MVDream", config: "InversionConfig") -> str:
    """The words a token starts from when the user names none: of a sample its caption, as much as the vectors hold."""
    from ..toy import samples

    if sample is None or model.tokenizer is None:
        return config.initial_words
    captions = samples.captions(sample)
    for words in (captions.initial_words, captions.short.split(" ", 1)[1]):
        if len(model.tokenizer.encode(words)) <= config.vectors:
            return words
    return config.initial_words


def first_step(bar: Bar, result: "InversionResult") -> int:
    """The step a training went on from; one that was finished already reports no step at all."""
    return bar.first if bar.first is not None else len(result.losses)


def kept(bar: Bar, checkpoint: Path) -> str:
    """What to tell someone who stopped a training."""
    if not bar.step or not checkpoint.exists():
        return "stopped before the first step: there is nothing to keep yet"
    return (
        f"stopped at step {bar.step} of {bar.total}; the training is kept in '{checkpoint}': run the same command "
        "again to go on"
    )
