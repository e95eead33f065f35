"""MVDream: loading (`checkpoint`), the model itself (`model`), and its parts.

`load` gives an `MVDream`. Nothing here imports diffusers or transformers before a network is made.
"""

from . import attention, checkpoint, drawing, key_maps, metadata, networks, sampling, tokenizer
from .checkpoint import load
from .metadata import ModelInfo
from .model import MVDream
from .tokenizer import Tokenizer, add_tokenizer_folder

__all__ = [
    "MVDream",
    "ModelInfo",
    "Tokenizer",
    "add_tokenizer_folder",
    "attention",
    "checkpoint",
    "drawing",
    "key_maps",
    "load",
    "metadata",
    "networks",
    "sampling",
    "tokenizer",
]
