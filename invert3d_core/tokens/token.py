"""A learned token and its file: one safetensors tensor that ComfyUI, diffusers and this package read alike.

The tensor is named for the text encoder it was trained for (``clip_l`` (n,768) for SD1.5, ``clip_h`` (n,1024) for
SD2.x), because ComfyUI looks a width up by that name. Everything else, the initial vectors included, lives in one
metadata entry, ``invert3d``: ComfyUI takes the first tensor of a file whatever it holds, so there may be no second.
"""

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import TokenError

ENCODER_WIDTHS: Mapping[str, int] = MappingProxyType({"clip_l": 768, "clip_h": 1024})
"""Tensor name → embedding width of the text encoders a host knows; any other name is a model of its own."""

# Widths of real text encoders: a file of another base must not have them, or a host would take it for its own.
_REAL_WIDTHS = frozenset({768, 1024, 1280, 2048, 4096})
_NAME = re.compile(r"[\w](?:[\w.\-]*[\w\-])?")
_NAME_LENGTH = 100
_METADATA_KEY = "invert3d"
_SCHEMA = 1


def check_name(name: str, what: str = "token name") -> str:
    """The name itself, if a prompt can address it as ``<name>`` and as ``embedding:name``.

    Letters, digits, ``_``, ``-`` and inner dots, at most 100 characters: ComfyUI's prompt parser ends a name at a
    space, ``<`` or ``[``, and reads ``(``, ``)`` and ``:`` as weights.

    Raises TokenError otherwise.
    """
    if not isinstance(name, str) or len(name) > _NAME_LENGTH or not _NAME.fullmatch(name):
        raise TokenError(
            f"The {what} {name!r} cannot be written in a prompt: expected 1 to {_NAME_LENGTH} letters, digits, '_', "
            "'-' or dots inside, no spaces, '<' or '['. Choose another name, for example 'my_cup'."
        )
    return name


@dataclass(frozen=True, eq=False)
class Token:
    """A learned text embedding: n vectors that stand where ``<name>`` is written in a prompt.

    name: what a prompt writes between ``<`` and ``>``.
    vectors: (n,d) float32, the learned rows, on the scale of the text encoder's token embeddings.
    initial: (n,d) float32, the rows training started from (those of the initial words).
    base: the text encoder, which is also the tensor's name in the file: "clip_l" (d = 768), "clip_h" (d = 1024), or
        another name for an encoder no host has, such as "toy" (d none of a real encoder's widths).
    model_hash: hash of the weights it was trained for, where they are not a published base; else None.
    provenance: JSON-serialisable settings, seed, versions and input hashes; never a clock.

    Raises TokenError for a name a prompt cannot address, a width that is not the base's, and values that are not
    finite.
    """

    name: str
    vectors: Tensor  # (n,d)
    initial: Tensor  # (n,d)
    base: str
    model_hash: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name)
        check_name(self.base, "name of the text encoder")
        for what, rows in (("vectors", self.vectors), ("initial vectors", self.initial)):
            if rows.ndim != 2 or 0 in rows.shape or rows.dtype != torch.float32:
                raise TokenError(
                    f"The {what} of token '{self.name}' are {tuple(rows.shape)} {rows.dtype}; expected (n,d) "
                    "torch.float32 with n and d at least 1."
                )
            if not bool(torch.isfinite(rows.detach()).all()):
                raise TokenError(
                    f"The {what} of token '{self.name}' hold NaN or infinite values: the training diverged or the "
                    "file is damaged. Train again with a lower learning rate, or restore the file."
                )
        if self.initial.shape != self.vectors.shape:
            raise TokenError(
                f"Token '{self.name}' has vectors {tuple(self.vectors.shape)} but initial vectors "
                f"{tuple(self.initial.shape)}; both must have the same shape."
            )
        width = self.vectors.shape[1]
        expected = ENCODER_WIDTHS.get(self.base)
        if expected is not None and width != expected:
            raise TokenError(
                f"Token '{self.name}' is for the text encoder {self.base}, whose width is {expected}, but its vectors "
                f"have width {width}. Use the model it was trained with."
            )
        if expected is None and width in _REAL_WIDTHS:
            raise TokenError(
                f"Token '{self.name}' of the text encoder '{self.base}' has width {width}, which belongs to a real "
                f"encoder: a host would mistake it for one. Expected base {dict(ENCODER_WIDTHS)} or another width."
            )

    @property
    def is_host_embedding(self) -> bool:
        """Whether a host's own text encoder can use the file, as ``embedding:name``."""
        return self.base in ENCODER_WIDTHS

    def at_strength(self, strength: float) -> Tensor:  # (n,d)
        """The vectors at a strength: initial + strength · (learned − initial), (n,d) float32.

        0 gives the initial vectors and 1 the learned ones, bit for bit; values outside [0,1] extrapolate.
        """
        if strength == 0:
            return self.initial
        if strength == 1:
            return self.vectors
        return self.initial + strength * (self.vectors - self.initial)


def save(token: Token, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write a token as ``<name>.safetensors``, whole or not at all; the same token always gives the same bytes.

    path: its stem is what a host's prompt writes after ``embedding:``, so it obeys the rules of `check_name`.
    overwrite: replace a file that is already there.

    Raises TokenError if the file exists and overwrite is False, if the file's name cannot be addressed in a prompt,
    and if the provenance is not JSON.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise TokenError(f"A token is saved as a .safetensors file, not as '{path.name}'. Give it that ending.")
    check_name(path.stem, "file name")
    _refuse_overwrite(path, overwrite)
    vectors = token.vectors.detach().to("cpu").clone().contiguous()
    initial = token.initial.detach().to("cpu").clone().contiguous()
    entry = {
        "schema": _SCHEMA,
        "name": token.name,
        "base": token.base,
        "model_hash": token.model_hash,
        "initial": base64.b64encode(initial.numpy().astype("<f4").tobytes()).decode("ascii"),
        "provenance": token.provenance,
    }
    try:
        text = json.dumps(entry, sort_keys=True, allow_nan=False, default=_plain_mapping)
    except (TypeError, ValueError) as error:
        raise TokenError(
            f"The provenance of token '{token.name}' cannot be written as JSON ({error}). Keep to text, finite "
            "numbers, lists and mappings."
        ) from error
    # One metadata entry: safetensors writes several in no fixed order, and the file must be the same each time.
    data = safetensors.torch.save({token.base: vectors}, metadata={_METADATA_KEY: text})
    path.parent.mkdir(parents=True, exist_ok=True)
    _refuse_overwrite(path, overwrite)
    write_atomically(path, data)


def load(path: str | os.PathLike[str]) -> Token:
    """Read a token file written by `save`.

    Raises TokenError if the file is missing, is no safetensors file, holds other than one float32 tensor, lacks this
    package's metadata, or if the two disagree.
    """
    path = Path(path)
    if not path.is_file():
        raise TokenError(f"There is no token file '{path}'. Check the path, or save a token there first.")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            keys = list(file.keys())
            tensors = {key: file.get_tensor(key) for key in keys} if len(keys) == 1 else {}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise TokenError(
            f"'{path}' is not a readable safetensors file ({error}). It may be cut short; restore or train it again."
        ) from error
    if len(keys) != 1:
        raise TokenError(
            f"'{path}' holds {len(keys)} tensors ({', '.join(sorted(keys)[:5])}); a token file holds exactly one. "
            "It is probably a model, not a token."
        )
    (base, vectors) = next(iter(tensors.items()))
    if _METADATA_KEY not in metadata:
        raise TokenError(
            f"'{path}' holds the tensor '{base}' but no '{_METADATA_KEY}' metadata, so its initial vectors are "
            "unknown. Expected a token saved by Invert3D."
        )
    if vectors.dtype != torch.float32 or vectors.ndim != 2:
        raise TokenError(
            f"'{path}' holds '{base}' as {tuple(vectors.shape)} {vectors.dtype}; expected (n,d) torch.float32."
        )
    try:
        entry = json.loads(metadata[_METADATA_KEY])
        schema, name, model_hash, provenance = (entry[k] for k in ("schema", "name", "model_hash", "provenance"))
        raw = base64.b64decode(entry["initial"], validate=True)
        named_base = entry["base"]
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise TokenError(
            f"The '{_METADATA_KEY}' metadata of '{path}' is damaged ({error!r}). Restore the file."
        ) from error
    if schema != _SCHEMA:
        raise TokenError(
            f"'{path}' has token schema {schema!r}, this version reads {_SCHEMA}. Update Invert3D to read it."
        )
    if named_base != base or len(raw) != vectors.numel() * 4 or not isinstance(provenance, dict):
        raise TokenError(
            f"The '{_METADATA_KEY}' metadata of '{path}' does not belong to its tensor '{base}' "
            f"{tuple(vectors.shape)}. Restore the file."
        )
    initial = torch.from_numpy(np.frombuffer(raw, dtype="<f4").astype(np.float32)).reshape(vectors.shape)
    return Token(name, vectors, initial, base, model_hash, provenance)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a machine that loses power, sees the old bytes or the new, never a mixture."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _refuse_overwrite(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise TokenError(
            f"'{path}' exists already and a token is never overwritten unasked. Choose another name, or ask to "
            "overwrite it."
        )


def _plain_mapping(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
