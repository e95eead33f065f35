"""Token files: our own, and those that others read.

Ours is one safetensors tensor, named for the text encoder it was trained for (``clip_l`` (n,768) for SD1.5, ``clip_h``
(n,1024) for SD2.x), because ComfyUI looks a width up by that name, with the rest in its metadata (`entry`). ComfyUI and
diffusers read it as it is.
"""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import safetensors.torch
import torch
from torch import Tensor

from ..errors import TokenError
from ..files import write_atomically
from .entry import ENTRY_KEY, entry_of
from .reading import inspect
from .token import ENCODER_WIDTHS, Token, check_name

_ASTERISK = 265  # the id of "*" in CLIP's vocabulary, the placeholder of A1111 and of the release


@dataclass(frozen=True)
class Format:
    """A kind of file. ending: its names'. whole: whether it keeps the initial vectors and the provenance."""

    ending: str
    whole: bool
    readers: str


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "invert3d": Format(".safetensors", True, "Invert3D, ComfyUI, and diffusers when told the token's name"),
        "diffusers": Format(".safetensors", True, "diffusers, ComfyUI, A1111"),
        "diffusers-bin": Format(".bin", False, "diffusers, ComfyUI, A1111"),
        "a1111": Format(".pt", True, "A1111 and its descendants, ComfyUI, diffusers"),
        "release": Format(".pt", True, "the released Invert3D code, ComfyUI"),
    }
)
"""What `save` writes, by name; the first of an ending is what that ending alone means."""


def save(token: Token, path: str | os.PathLike[str], overwrite: bool = False, format: str | None = None) -> None:
    """Write a token's file, whole or not at all; the same token always gives the same bytes.

    path: its stem is what a host's prompt writes after ``embedding:``, so it obeys the rules of `check_name`.
    overwrite: replace a file that is already there.
    format: of `FORMATS`; None takes "invert3d" for .safetensors, "a1111" for .pt and "diffusers-bin" for .bin. Those
        of others want a token of a published text encoder, "release" one of SD1.5.

    Raises TokenError if the file exists and overwrite is False, if the file's name cannot be addressed in a prompt or
    has another ending than the format, if the format cannot hold the token, and if the provenance is not JSON;
    StorageError if the file cannot be written.
    """
    path = Path(path)
    chosen = _chosen_format(path, format)
    check_name(path.stem, "file name")
    _refuse_overwrite(path, overwrite)
    data = _encoded(token, chosen)
    _refuse_overwrite(path, overwrite)
    write_atomically(path, data)


def is_saved_as(token: Token, path: str | os.PathLike[str], format: str | None = None) -> bool:
    """Whether a file already holds this very token, in this format (as for `save`): saving would change nothing."""
    path = Path(path)
    chosen = _chosen_format(path, format)
    try:
        file = inspect(path)
    except (TokenError, OSError):
        return False
    if file.format != chosen or file.name != token.name or set(file.vectors) != {token.base}:
        return False
    if not torch.equal(file.vectors[token.base], token.vectors.detach().cpu()):
        return False
    return not FORMATS[chosen].whole or file.entry == entry_of(token)


def _chosen_format(path: Path, format: str | None) -> str:
    if format is None:
        format = next((name for name, kind in FORMATS.items() if kind.ending == path.suffix), None)
        if format is None:
            raise TokenError(
                f"A token is saved as a .safetensors file (or .pt or .bin for others), not as '{path.name}'. Give it "
                "that ending."
            )
    if format not in FORMATS:
        raise TokenError(f"There is no token format {format!r}. Expected one of {', '.join(FORMATS)}.")
    if path.suffix != FORMATS[format].ending:
        raise TokenError(
            f"A token in the format {format} is a {FORMATS[format].ending} file, not '{path.name}'. Give it that "
            "ending, or choose another format."
        )
    return format


def _encoded(token: Token, format: str) -> bytes:
    if format != "invert3d" and not token.is_host_embedding:
        raise TokenError(
            f"Token '{token.name}' is for the text encoder '{token.base}', which no other program has, so it cannot be "
            f"written in the format {format}. Save it in the format invert3d."
        )
    with torch.inference_mode(False):  # so that neither clones nor parameters are inference tensors
        vectors = token.vectors.detach().to("cpu").clone().contiguous()
        text = entry_of(token)
        # One metadata entry: safetensors writes several in no fixed order, and the file must be the same each time.
        if format == "invert3d":
            return safetensors.torch.save({token.base: vectors}, metadata={ENTRY_KEY: text})
        if format == "diffusers":
            return safetensors.torch.save({f"<{token.name}>": vectors}, metadata={ENTRY_KEY: text})
        if format == "diffusers-bin":  # takes the only entry of a file, so there is no place for ours
            return _pickled({f"<{token.name}>": vectors})
        if format == "a1111":
            return _pickled(
                {
                    "string_to_token": {"*": _ASTERISK},
                    "string_to_param": {"*": vectors},
                    "name": token.name,
                    "step": _steps(token),
                    "sd_checkpoint": None,
                    "sd_checkpoint_name": None,
                    ENTRY_KEY: text,
                }
            )
        return _pickled(_released(token, vectors, text))


def _released(token: Token, vectors: Tensor, text: str) -> dict[str, object]:
    if token.base != "clip_l":
        raise TokenError(
            f"Token '{token.name}' is for {token.base} (width {ENCODER_WIDTHS[token.base]}), and the released Invert3D "
            "code knows SD1.5's clip_l (width 768) alone. Choose another format."
        )
    return {
        "string_to_token": {"*": torch.tensor(_ASTERISK)},
        "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)}),
        ENTRY_KEY: text,
    }


def _steps(token: Token) -> int | None:
    config = token.provenance.get("config")
    steps = config.get("steps") if isinstance(config, Mapping) else None
    return steps if isinstance(steps, int) else None


def _pickled(stored: Mapping[str, object]) -> bytes:
    file = io.BytesIO()
    torch.save(dict(stored), file)
    return file.getvalue()


def _refuse_overwrite(path: Path, overwrite: bool) -> None:
    if os.path.exists(path) and not overwrite:
        raise TokenError(
            f"'{path}' exists already and a token is never overwritten unasked. Choose another name, or ask to "
            "overwrite it."
        )
