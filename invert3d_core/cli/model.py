"""`invert3d model`: what a checkpoint is, and the same checkpoint in another layout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitSubcommandPrefixes, Positional, subcommand

from .command import Bar, Command, as_text, stopping_between_steps


@dataclass(kw_only=True)
class ModelInfo(Command):
    """Say what a checkpoint is: layout, base, licence, what it can do, and whether it is whole."""

    file: Positional[str]
    """A checkpoint file, a model's folder in any layout, or toy."""

    def run(self) -> None:
        from ..mvdream.inspection import inspect

        values = inspect(self.file, whole=True)
        self.report(values, as_text(values))


@dataclass(kw_only=True)
class ModelConvert(Command):
    """Write a checkpoint anew: one safetensors file as published, or a folder of stock diffusers networks."""

    source: Positional[str]
    """A checkpoint file, a model's folder in any layout, or toy."""
    destination: Positional[Path]
    """A new file that ends with .safetensors, or a new folder."""
    dtype: Literal["keep", "fp32", "fp16", "bf16"] = "keep"
    """Type of the weights; keep changes no bit of them."""

    def run(self) -> None:
        import torch

        from ..mvdream.conversion import convert

        kinds = {"keep": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        with stopping_between_steps() as check, Bar("writing", check) as bar:
            done = convert(self.source, self.destination, dtype=kinds[self.dtype], progress=bar)
        values = {"file": str(done.path), "layout": done.layout, "bytes": done.bytes, "notes": list(done.notes)}
        notes = "".join(f"\n{note}" for note in done.notes)
        self.report(values, f"wrote {done.path} ({done.layout}, {done.bytes / 1e9:.2f} GB){notes}")


@dataclass(kw_only=True)
class Model:
    """Look at multi-view models, and convert them."""

    action: OmitSubcommandPrefixes[
        Annotated[ModelInfo, subcommand("info")] | Annotated[ModelConvert, subcommand("convert")]
    ]

    def run(self) -> None:
        self.action.run()
