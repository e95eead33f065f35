"""A learned token: what it is made of, and what it may be called."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..errors import TokenError

ENCODER_WIDTHS: Mapping[str, int] = MappingProxyType({"clip_l": 768, "clip_h": 1024})
"""Tensor name → embedding width of the text encoders a host knows; any other name is a model of its own."""

# Widths of real text encoders: a file of another base must not have them, or a host would take it for its own.
_REAL_WIDTHS = frozenset({768, 1024, 1280, 2048, 4096})
_NAME = re.compile(r"[\w](?:[\w.\-]*[\w\-])?")
_NAME_LENGTH = 100
_PLAIN_LENGTH = 50  # of a name made from another, whose letters may have four bytes each
_NAME_BYTES = 200  # a file of that name has an ending, too, and most file systems end at 255


def check_name(name: str, what: str = "token name") -> str:
    """The name itself, if a prompt can address it as ``<name>`` and as ``embedding:name``.

    Letters, digits, ``_``, ``-`` and inner dots, at most 100 characters and 200 bytes in UTF-8: ComfyUI's prompt
    parser ends a name at a space, ``<`` or ``[``, and reads ``(``, ``)`` and ``:`` as weights.

    Raises TokenError otherwise.
    """
    if not is_name(name):
        raise TokenError(
            f"The {what} {name!r} cannot be written in a prompt: expected 1 to {_NAME_LENGTH} letters, digits, '_', "
            f"'-' or dots inside ({_NAME_BYTES} bytes at most), no spaces, '<' or '['. Choose another name, for "
            "example 'my_cup'."
        )
    return name


def is_name(name: object) -> bool:
    """Whether a prompt can address it (`check_name`)."""
    fits = isinstance(name, str) and len(name) <= _NAME_LENGTH and bool(_NAME.fullmatch(name))
    return fits and len(str(name).encode()) <= _NAME_BYTES


def addressable(name: str) -> str:
    """The name with everything that a prompt cannot address replaced by ``_``; "token" when nothing else is left."""
    if is_name(name):
        return name
    plain = re.sub(r"[^\w.\-]+", "_", name)[:_PLAIN_LENGTH].strip("._-")
    return plain if is_name(plain) else "token"


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
