"""The words of the toy model: a word-level tokenizer with the layout of any tokenizer file of the field."""

import json

from .colors import NAMES
from .families import ALL, KNOWN

BEGIN, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"
MAX_LENGTH = 48
FILLERS = ("a", "an", "the", "of", "with", "and", "on", "in", "3d", "asset", "photo", "picture", "view", "object")


def words() -> list[str]:
    """Every word in the order of its id: begin, end (also padding), unknown, punctuation, then words by kind."""
    parts = sorted({part for family in ALL.values() for part in family.parts} - {f.name for f in KNOWN})
    return [BEGIN, END, UNKNOWN, ",", ".", *FILLERS, *NAMES, *(family.name for family in KNOWN), *parts]


def tokenizer_json() -> str:
    """The vocabulary as a ``tokenizer.json``: lower case, split at white space and punctuation, one id a word."""
    ids = {word: index for index, word in enumerate(words())}
    special = [
        {"id": ids[word], "content": word, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for word in (BEGIN, END, UNKNOWN)
    ]
    layout = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": UNKNOWN},
    }
    return json.dumps(layout, indent=1)
