"""Token files of this package and of others, told apart by their content, and read without running any code of theirs.

What is known of the others: A1111 and its descendants write ``{"string_to_token", "string_to_param": {"*": (n,d)},
"name", "step", ...}``, the released Invert3D code the same with a `ParameterDict` and no name, as textual inversion
did (Gal et al. 2022); diffusers one tensor under the placeholder; the kohya trainers one under ``emb_params``; and
files for hosts one tensor per text encoder, named for it (``clip_l`` with ``clip_g`` for SDXL).
"""

import hashlib
import json
import os
import re
import struct
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import TokenError, first_line
from .entry import ENTRY_KEY, token_of
from .token import ENCODER_WIDTHS, Token, addressable, is_name

# Encoders by the width of their embeddings, and by the names that files give them.
_ENCODER_OF_WIDTH = {768: "clip_l", 1024: "clip_h", 1280: "clip_g", 4096: "t5xxl"}
_ENCODER_NAMES = {name: name for name in _ENCODER_OF_WIDTH.values()}
_ENCODER_NAMES |= {"text_encoders_0": "clip_l", "text_encoders_1": "clip_g"}
_MODELS = {"clip_l": "SD1.5", "clip_h": "SD2.x", "clip_g": "SDXL's second encoder", "t5xxl": "T5"}

_MOST_BYTES = 64 << 20  # a token of 77 places is below 2 MB; what is larger is a model
_MOST_ROWS = 1024
_MOST_CHARACTERS = 200  # of what a foreign file says about itself


@dataclass(frozen=True, eq=False)
class TokenFile:
    """What a token file holds.

    format: "invert3d", "a1111", "release" (Invert3D's own release, textual inversion's first format), "diffusers",
        "diffusers-bin", "kohya" or "encoders" (tensors named for text encoders, without more).
    name: of the token, as the file says, or else as it is called, with what a prompt cannot address replaced.
    vectors: text encoder → (n,d) float32; several for SDXL.
    details: what else the file says of itself: step, checkpoint.
    entry: the JSON text that `entry` writes, None in files of others.
    """

    path: Path
    format: str
    name: str
    vectors: Mapping[str, Tensor]
    details: Mapping[str, str | int]
    entry: str | None = None


def load(path: str | os.PathLike[str], encoder: str | None = None) -> Token:
    """Read a token from a file of any kind that `inspect` knows.

    encoder: "clip_l" or "clip_h"; needed only for a file with vectors for several text encoders (SDXL), to take those
        of one alone.

    A file of others does not say from which words its token started, so the initial vectors are zeros: at a strength
    below 1 the vectors are shorter. Its provenance names the file and its SHA-256.

    Raises TokenError if the file is missing, is no token file, is damaged, or has no vectors for a text encoder that
    MVDream can have.
    """
    file = inspect(path)
    base = _chosen_encoder(file, encoder)
    vectors = file.vectors[base]
    if file.entry is not None:
        return token_of(file.entry, vectors, file.path, base)
    about: dict[str, Any] = {"format": file.format, "file": file.path.name, **file.details}
    about["sha256"] = hashlib.sha256(file.path.read_bytes()).hexdigest()
    if len(file.vectors) > 1:
        about["encoders"] = sorted(file.vectors)
    return Token(file.name, vectors, torch.zeros_like(vectors), base, None, {"imported": about})


def inspect(path: str | os.PathLike[str]) -> TokenFile:
    """What a token file holds: its format, told by its content and not by its ending, its name and its vectors.

    A ``.pt`` or ``.bin`` goes through PyTorch's restricted unpickler, which runs nothing.

    Raises TokenError if the file is missing, too large for a token, damaged, or of no kind that is known.
    """
    path = Path(path)
    if not path.is_file():
        raise TokenError(f"There is no token file '{path}'. Check the path, or save a token there first.")
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise TokenError(
            f"'{path}' has {size / 1e6:,.0f} MB, too much for a token ({_MOST_BYTES / 1e6:.0f} MB at most). It is "
            "probably a model: put it into another folder and load it as one."
        )
    data = path.read_bytes()
    # The length of a safetensors header may begin with a pickle's first byte; only the header's own shape tells.
    is_safetensors = data[4:9] == b"\0\0\0\0{"
    if data[:2] == b"PK" or (data[:1] == b"\x80" and not is_safetensors):
        stored = _unpickled(path, data)
        if isinstance(stored.get("string_to_param"), _ParameterDict | Mapping):
            return _from_placeholders(path, stored)
        return _from_tensors(path, {k: v for k, v in stored.items() if isinstance(v, Tensor)}, "diffusers-bin")
    return _from_safetensors(path, data)


def _from_safetensors(path: Path, data: bytes) -> TokenFile:
    try:
        stored = safetensors.torch.load(data)
        (length,) = struct.unpack_from("<Q", data)
        metadata = _metadata(data[8 : 8 + length])
    except (safetensors.SafetensorError, struct.error, ValueError, KeyError) as error:
        raise TokenError(
            f"'{path}' is not a readable safetensors file ({error}), nor a file of PyTorch. It may be cut short or no "
            "token at all; restore it, or train it again."
        ) from error
    text = metadata.get(ENTRY_KEY)
    if text is None:
        return _from_tensors(path, stored, "diffusers")
    if len(stored) != 1:
        raise TokenError(f"'{path}' says that it is a token, but holds {len(stored)} tensors. Restore the file.")
    ((key, tensor),) = stored.items()
    if tensor.dtype != torch.float32 or tensor.ndim != 2:
        raise TokenError(
            f"'{path}' holds '{key}' as {tuple(tensor.shape)} {tensor.dtype}; expected (n,d) torch.float32."
        )
    if key.startswith("<"):  # no encoder is called that: it is the placeholder, as diffusers has it
        token = token_of(text, tensor, path)
        return TokenFile(path, "diffusers", token.name, {token.base: tensor}, {}, text)
    token = token_of(text, tensor, path, key)
    return TokenFile(path, "invert3d", token.name, {key: tensor}, {}, text)


def _from_placeholders(path: Path, stored: Mapping[str, Any]) -> TokenFile:
    """A file of A1111 or of the release: vectors by placeholder."""
    params = stored["string_to_param"]
    released = isinstance(params, _ParameterDict)
    rows = {str(key): value for key, value in (params.items() if not released else params.parameters().items())}
    if len(rows) != 1:
        raise TokenError(
            f"'{path}' holds {len(rows)} placeholders ({', '.join(sorted(rows)[:5])}); expected one token in a file. "
            "Save each of them in a file of its own."
        )
    ((key, value),) = rows.items()
    vectors = _rows(path, key, value)
    base = _encoder_of(path, key, vectors)
    name = stored.get("name")
    step, checkpoint = stored.get("step"), stored.get("sd_checkpoint_name")
    details: dict[str, str | int] = {}
    if isinstance(step, int):
        details["step"] = step
    if isinstance(checkpoint, str) and checkpoint:
        details["checkpoint"] = checkpoint[:_MOST_CHARACTERS]
    text = stored.get(ENTRY_KEY)
    if isinstance(text, str):
        name = token_of(text, vectors, path, base).name
    else:
        text = None
    return TokenFile(path, "release" if released else "a1111", _name(path, name, key), {base: vectors}, details, text)


def _from_tensors(path: Path, stored: Mapping[str, Tensor], single: str) -> TokenFile:
    """A file of bare tensors. single: the format when there is one, under its placeholder."""
    if not stored:
        raise TokenError(f"'{path}' holds no tensor. Expected a token: vectors under the name of one.")
    names = [_ENCODER_NAMES.get(key) for key in stored]
    if all(names):
        by_encoder = sorted((_ENCODER_NAMES[key], key) for key in stored)  # a file's own order is by chance
        vectors = {base: _rows(path, key, stored[key]) for base, key in by_encoder}
        for base, rows in vectors.items():
            if _ENCODER_OF_WIDTH.get(rows.shape[1]) != base:
                raise TokenError(f"'{path}' holds vectors for {base} of width {rows.shape[1]}, which it does not have.")
        return TokenFile(path, "encoders", _name(path), vectors, {})
    if len(stored) != 1:
        raise TokenError(
            f"'{path}' holds {len(stored)} tensors ({', '.join(sorted(stored)[:5])}); a token file holds exactly one, "
            "or one for each text encoder. It is probably a model, not a token."
        )
    ((key, value),) = stored.items()
    vectors = _rows(path, key, value)
    base = _encoder_of(path, key, vectors)
    if key == "emb_params":
        return TokenFile(path, "kohya", _name(path), {base: vectors}, {})
    return TokenFile(path, single, _name(path, key), {base: vectors}, {})


def _rows(path: Path, key: str, value: Any) -> Tensor:  # (d,) or (n,d) -> (n,d) float32
    """A tensor of a foreign file as the rows of a token, once it is certain that it is an ordinary one."""
    if not isinstance(value, Tensor):
        raise TokenError(f"'{path}' holds {type(value).__name__} at '{key[:50]}'; expected vectors (n,d).")
    usable = value.layout is torch.strided and value.device.type == "cpu" and value.is_floating_point()
    usable = usable and value.numel() <= _MOST_BYTES // 4
    if not usable or value.ndim not in (1, 2) or 0 in value.shape or value.shape[:-1].numel() > _MOST_ROWS:
        raise TokenError(
            f"'{path}' holds '{key[:50]}' as {tuple(value.shape)} {value.dtype}; expected the vectors of a token, "
            f"(d,) or (n,d) floats with at most {_MOST_ROWS} rows. It is probably no token."
        )
    with torch.inference_mode(False):
        return value.detach().reshape(-1, value.shape[-1]).to(torch.float32, copy=True).contiguous()


def _encoder_of(path: Path, key: str, vectors: Tensor) -> str:
    width = vectors.shape[1]
    if width not in _ENCODER_OF_WIDTH:
        known = ", ".join(f"{w} ({_MODELS[name]})" for w, name in _ENCODER_OF_WIDTH.items())
        raise TokenError(
            f"'{path}' holds '{key[:50]}' {tuple(vectors.shape)} and no '{ENTRY_KEY}' entry, and no text encoder that "
            f"is known has width {width}. Expected a width of {known}, or a token saved by Invert3D."
        )
    return _ENCODER_OF_WIDTH[width]


def _chosen_encoder(file: TokenFile, encoder: str | None) -> str:
    """The encoder whose vectors are meant. Raises TokenError when that is not clear, or none is of use."""
    found = ", ".join(f"{name} {tuple(rows.shape)}" for name, rows in file.vectors.items())
    usable = [name for name in file.vectors if name in ENCODER_WIDTHS]
    if file.entry is not None and encoder is None:
        return next(iter(file.vectors))
    if encoder is not None:
        if encoder not in file.vectors:
            raise TokenError(f"'{file.path}' has no vectors for the text encoder '{encoder}'. It has {found}.")
        if encoder not in usable and file.entry is None:
            raise TokenError(f"No MVDream model has the text encoder '{encoder}'; expected clip_l or clip_h.")
        return encoder
    if len(file.vectors) > 1:
        choice = f"choose encoder {' or '.join(usable)} to take that part alone" if usable else "none is of use here"
        raise TokenError(
            f"'{file.path}' is a token of a model with several text encoders, as SDXL ({found}), and MVDream has one: "
            f"{choice}. What the token means may be lost without the other."
        )
    if not usable:
        raise TokenError(
            f"'{file.path}' is a token for {_MODELS.get(next(iter(file.vectors)), found)} ({found}), which no MVDream "
            "model has. Expected one for SD1.5 (width 768) or SD2.x (width 1024)."
        )
    return usable[0]


def _name(path: Path, *said: object) -> str:
    for name in said:
        if isinstance(name, str) and is_name(plain := name.removeprefix("<").removesuffix(">")):
            return plain
    return addressable(path.stem)


def _metadata(header: bytes) -> Mapping[str, str]:
    return json.loads(header).get("__metadata__") or {}


# ------------------------------------------------------------------------------------------------- files of PyTorch


class _ParameterDict:
    """Stands for `torch.nn.ParameterDict` in a file: it keeps the state as data, and no module is ever made."""

    def __init__(self) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def parameters(self) -> dict[str, Tensor]:
        """Its parameters by name, which every version of PyTorch keeps in the same place."""
        held = self.state.get("_parameters") if isinstance(self.state, Mapping) else None
        if not isinstance(held, Mapping):
            return {}
        return {str(key): value for key, value in held.items() if isinstance(value, Tensor)}


_PARAMETER_DICT = "torch.nn.modules.container.ParameterDict"
_unpickling = threading.Lock()  # what may be unpickled is a setting of the process


def _unpickled(path: Path, data: bytes) -> Mapping[str, Any]:
    """The dict in a `torch.save` file, made of tensors and plain values only. Raises TokenError for anything else."""
    _check_unpacked_size(path, data)
    try:
        with _unpickling, torch.serialization.safe_globals([(_ParameterDict, _PARAMETER_DICT)]):
            stored = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere inside
        # PyTorch's text explains how to load the file unsafely; only what it stumbled over is passed on.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        # The format before PyTorch 1.6 writes the source of modules, and no restricted reader takes them.
        asked = found[1] if found else "a module" if "persistent_load" in str(error) else None
        if asked:
            raise TokenError(
                f"'{path}' asks for {asked}, which could run code, and is not loaded. Expected a token as A1111, "
                "diffusers or Invert3D write it; get it from its author as .safetensors."
            ) from error
        reason = "it does not hold plain tensors" if "weights_only" in str(error) else first_line(error)
        raise TokenError(f"'{path}' is damaged or no token ({reason}). Restore the file.") from error
    if not isinstance(stored, Mapping):
        if isinstance(stored, Tensor):
            return {"token": stored}
        raise TokenError(
            f"'{path}' holds a {type(stored).__name__}; expected a token, which is a dict with vectors in it."
        )
    return {str(key): value for key, value in stored.items()}


def _check_unpacked_size(path: Path, data: bytes) -> None:
    """A file of PyTorch may be packed, which PyTorch itself never does: a small one must not fill the memory."""
    if data[:2] != b"PK":
        return
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except zipfile.BadZipFile as error:
        raise TokenError(f"'{path}' is damaged or cut short ({error}). Restore the file.") from error
    if size > _MOST_BYTES:
        raise TokenError(f"'{path}' unpacks to {size / 1e6:,.0f} MB, too much for a token. It is not loaded.")
