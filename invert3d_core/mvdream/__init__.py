"""MVDream: loading (`checkpoint`), the model itself (`model`), and its parts.

`load` gives an `MVDream`. Nothing here imports diffusers or transformers before a network is made.
"""

from . import (
    attention,
    checkpoint,
    conversion,
    drawing,
    graphs,
    inspection,
    key_maps,
    known_models,
    layouts,
    metadata,
    networks,
    sampling,
    tokenizer,
    weights,
)
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
    "conversion",
    "drawing",
    "graphs",
    "inspection",
    "key_maps",
    "known_models",
    "layouts",
    "load",
    "metadata",
    "networks",
    "sampling",
    "tokenizer",
    "weights",
]
