"""Learned text embeddings: the token and its file (`token`), and its place in a prompt (`prompts`)."""

from . import prompts
from .token import ENCODER_WIDTHS, Token, check_name, load, save, write_atomically

__all__ = ["ENCODER_WIDTHS", "Token", "check_name", "load", "prompts", "save", "write_atomically"]
