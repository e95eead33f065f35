"""Learned text embeddings: the token (`token`), its files and those of others (`reading`, `writing`), and its place in
a prompt (`prompts`).
"""

from . import prompts
from .reading import TokenFile, inspect, load
from .token import ENCODER_WIDTHS, Token, addressable, check_name, is_name
from .writing import FORMATS, is_saved_as, save

__all__ = [
    "ENCODER_WIDTHS",
    "FORMATS",
    "Token",
    "TokenFile",
    "addressable",
    "check_name",
    "inspect",
    "is_name",
    "is_saved_as",
    "load",
    "prompts",
    "save",
]
