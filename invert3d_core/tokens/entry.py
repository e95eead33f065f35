"""What a file of ours says beside the vectors, as one JSON text: everything of a token that no other format has.

It is the safetensors metadata entry ``invert3d`` (and the entry of that name in a ``.pt``), and holds the initial
vectors too: ComfyUI takes the first tensor of a file whatever it holds, so there may be no second.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import TokenError
from .token import Token

ENTRY_KEY = "invert3d"
_SCHEMA = 1


def entry_of(token: Token) -> str:
    """The JSON text of a token; equal tokens give equal texts. Raises TokenError if the provenance is not JSON."""
    initial = token.initial.detach().to("cpu").contiguous()
    entry = {
        "schema": _SCHEMA,
        "name": token.name,
        "base": token.base,
        "model_hash": token.model_hash,
        "initial": base64.b64encode(initial.numpy().astype("<f4").tobytes()).decode("ascii"),
        "provenance": token.provenance,
    }
    try:
        return json.dumps(entry, sort_keys=True, allow_nan=False, default=_plain_mapping)
    except (TypeError, ValueError) as error:
        raise TokenError(
            f"The provenance of token '{token.name}' cannot be written as JSON ({error}). Keep to text, finite "
            "numbers, lists and mappings."
        ) from error


def token_of(
    text: str,
    vectors: Tensor,  # (n,d) float32
    path: Path,
    base: str | None = None,
) -> Token:
    """The token of an entry and the tensor beside it. base: the encoder that the tensor is named for, where it is.

    Raises TokenError, naming the file, if the entry is damaged, of a later version, or of another tensor.
    """
    try:
        entry = json.loads(text)
        schema, name, model_hash, provenance = (entry[k] for k in ("schema", "name", "model_hash", "provenance"))
        raw = base64.b64decode(entry["initial"], validate=True)
        named_base = entry["base"]
    except (KeyError, TypeError, ValueError, RecursionError, binascii.Error) as error:
        raise TokenError(f"The '{ENTRY_KEY}' entry of '{path}' is damaged ({error!r}). Restore the file.") from error
    if schema != _SCHEMA:
        raise TokenError(
            f"'{path}' has token schema {schema!r}, this version reads {_SCHEMA}. Update Invert3D to read it."
        )
    if base not in (None, named_base) or len(raw) != vectors.numel() * 4 or not isinstance(provenance, dict):
        raise TokenError(
            f"The '{ENTRY_KEY}' entry of '{path}' does not belong to its tensor {base or ''} {tuple(vectors.shape)}. "
            "Restore the file."
        )
    initial = torch.from_numpy(np.frombuffer(raw, dtype="<f4").astype(np.float32)).reshape(vectors.shape)
    return Token(name, vectors, initial, named_base, model_hash, provenance)


def _plain_mapping(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
