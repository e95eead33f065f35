"""`invert3d token`: what a token file holds, and the same token in another program's format."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitSubcommandPrefixes, Positional, subcommand

from .command import Command, InputError, OptionalText, Switch, as_text

FormatName = Literal["auto", "invert3d", "diffusers", "diffusers-bin", "a1111", "release"]
EncoderName = Literal["auto", "clip_l", "clip_h"]


@dataclass(kw_only=True)
class TokenInfo(Command):
    """Say what a token file holds: format, text encoder, vectors, and what it tells of its making."""

    file: Positional[Path]
    """A token of this program, of A1111, of diffusers, or of the Invert3D release."""

    def run(self) -> None:
        values = describe(self.file)
        encoders = [
            f"{name} {each['vectors']} x {each['width']}" + ("" if each["usable"] else " (no MVDream model has it)")
            for name, each in values["text_encoders"].items()
        ]
        self.report(values, as_text({**values, "text_encoders": encoders}))


@dataclass(kw_only=True)
class TokenConvert(Command):
    """Write a token anew, in the format of another program."""

    source: Positional[Path]
    """A token of this program, of A1111, of diffusers, or of the Invert3D release."""
    destination: Positional[Path]
    """The new file: .safetensors, .pt or .bin."""
    format: FormatName = "auto"
    """What to write. auto goes by the ending: .safetensors is invert3d, .pt is a1111, .bin is diffusers-bin."""
    encoder: EncoderName = "auto"
    """Text encoder whose vectors to take, of a file with several (SDXL)."""
    name: OptionalText = None
    """New name of the token; without it the token keeps its name."""
    overwrite: Switch = False
    """Replace a file that is already there."""

    def run(self) -> None:
        from .. import tokens

        token = tokens.load(self.source, None if self.encoder == "auto" else self.encoder)
        if self.name is not None:
            token = replace(token, name=self.name)
        if self.overwrite and self.destination.exists() and self.destination.samefile(self.source):
            raise InputError(f"'{self.destination}' is the source itself. Name another file.")
        tokens.save(token, self.destination, self.overwrite, None if self.format == "auto" else self.format)
        written = tokens.inspect(self.destination)
        kind = tokens.FORMATS[written.format]
        values = {
            "file": str(self.destination),
            "format": written.format,
            "readers": kind.readers,
            "name": written.name,
            "vectors": len(token.vectors),
            "text_encoder": token.base,
            "keeps_everything": kind.whole,
        }
        lost = "" if kind.whole else "\nnot kept in this format: the initial vectors and the provenance"
        self.report(values, f"wrote <{written.name}> to {self.destination} for {kind.readers}{lost}")


@dataclass(kw_only=True)
class Token:
    """Look at learned tokens, and convert them from and for other programs."""

    action: OmitSubcommandPrefixes[
        Annotated[TokenInfo, subcommand("info")] | Annotated[TokenConvert, subcommand("convert")]
    ]

    def run(self) -> None:
        self.action.run()


def describe(path: Path) -> dict[str, Any]:
    """Everything that is said about a token file. Raises TokenError when it is none."""
    from .. import tokens

    file = tokens.inspect(path)
    values: dict[str, Any] = {
        "kind": "token",
        "file": str(path),
        "format": file.format,
        "name": file.name,
        "written": f"<{file.name}>",
        "text_encoders": {
            base: {
                "vectors": len(rows),
                "width": rows.shape[1],
                "mean_norm": float(rows.norm(dim=1).mean()),
                "usable": file.entry is not None or base in tokens.ENCODER_WIDTHS,
            }
            for base, rows in file.vectors.items()
        },
        **file.details,
    }
    if file.entry is None:
        values["initial_vectors"] = "not in the file: zeros stand for them"
        return values
    token = tokens.load(path)
    moved = (token.vectors - token.initial).norm(dim=1) / token.initial.norm(dim=1).clamp_min(1e-12)
    known = bool(token.initial.any())
    values["model_sha256"] = token.model_hash
    values["moved_from_initial"] = float(moved.mean()) if known else None
    values["provenance"] = dict(token.provenance)
    return values
