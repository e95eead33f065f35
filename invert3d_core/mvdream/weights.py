"""Weights on disk: reading tensors by name, mapped and never run as code, and writing them in a stream.

A safetensors file is 8 bytes of length (little-endian), a JSON header with each tensor's type, shape and place, and the
tensors' bytes (https://github.com/huggingface/safetensors#format).
"""

import json
import os
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from ..errors import ModelError
from . import key_maps

ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
"""Endings of the files that can hold weights."""

_GROUP_BYTES = 512 << 20  # of a source that are mapped at a time while it is cast or moved
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


@dataclass(frozen=True)
class Weights:
    """Named tensors, mapped from files.

    files: where they are, and what stands before the names of each file's own tensors here.
    """

    tensors: Mapping[str, Tensor]
    files: tuple[tuple[Path, str], ...]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The tensors on a device, floating ones in a dtype (None keeps theirs); still mapped where that is no change.

        Little of the source is mapped at a time, so the memory that this takes is that of the result.
        """
        target = torch.device(device)
        if target.type == "cpu" and all(_stored(value, dtype) == value.dtype for value in self.tensors.values()):
            return dict(self.tensors)
        if not all(_is_mapped(path) for path, _ in self.files):  # it is in memory already
            return {name: _in_dtype(value.to(target), dtype) for name, value in self.tensors.items()}
        result: dict[str, Tensor] = {}
        for path, prefix in self.files:
            own = _tensors_of(path)[0].keys()
            names = [name for name in self.tensors if name.startswith(prefix) and name[len(prefix) :] in own]
            for group in _groups(names, self.tensors):
                source, _ = _tensors_of(path)
                for name in group:
                    result[name] = _in_dtype(source[name[len(prefix) :]].to(target), dtype)
        return result


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a weights file, mapped from disk; metadata is empty but for safetensors.

    Raises ModelError if the file cannot be read, or holds anything but named tensors.
    """
    try:
        content, metadata = _tensors_of(path)
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        code = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
        if code:
            raise ModelError(
                f"'{path}' holds more than weights ({code[1]}): reading it would run code, so it is refused. "
                "Convert it to safetensors where you trust it, or get it from its publisher."
            ) from error
        reason = "" if type(error).__name__ == "UnpicklingError" else f" ({error})"  # torch's advice there is unsafe
        raise ModelError(
            f"'{path}' cannot be read as a checkpoint{reason}. It is of another kind, cut short or still downloading: "
            "compare its size with the source and fetch it again."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ModelError(f"'{path}' holds a {type(content).__name__}; expected a state dict, names with their tensors.")
    other = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if other:
        raise ModelError(
            f"'{path}' holds entries that are no tensors: {key_maps.list_keys(other)}. Expected weights alone."
        )
    return content, metadata


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
    between: Callable[[], None] = lambda: None,
    keep: Collection[str] = (),
) -> None:
    """Write a safetensors file tensor by tensor, floating ones in a dtype (None keeps theirs), and flush it to disk.

    The same tensors and metadata always give the same bytes. The file is not put in the place of another: the caller
    renames it when it is whole.
    between: called after each tensor; what it raises stops the writing. keep: tensors that keep their dtype.
    """

    def kind_of(name: str) -> torch.dtype:
        return _stored(tensors[name], None if name in keep else dtype)

    # Wide types first, so that every tensor begins at a multiple of its type's size.
    order = sorted(tensors, key=lambda name: (-kind_of(name).itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in order:
        kind = kind_of(name)
        start, end = end, end + tensors[name].numel() * kind.itemsize
        header[name] = {"dtype": _TYPES[kind], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            flat = tensors[name].detach().to("cpu", kind_of(name)).contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)
            between()
        file.flush()
        os.fsync(file.fileno())


def _tensors_of(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_mapped(path))
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    return content, {}


def _is_mapped(path: Path) -> bool:
    """Whether reading a file's names is cheap, its tensors coming in when they are used."""
    return path.suffix == ".safetensors" or zipfile.is_zipfile(path)


def _in_dtype(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(_stored(tensor, dtype))


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def _groups(names: Iterable[str], tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for name in names:
        group.append(name)
        size += tensors[name].nbytes
        if size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
