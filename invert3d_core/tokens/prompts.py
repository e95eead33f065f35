"""Tokens in prompts: from text with ``<name>`` to ids, and from ids to embeddings with the learned vectors in place.

A prompt is cut at its placeholders before the tokenizer sees it, so nothing can merge with them ("<cup>," stays a
placeholder and a comma). Each placeholder becomes one id from `vocab_size` upwards, which no tokenizer gives out, and
`expand` turns it into n embedding rows after the lookup and before the position embeddings are added.
"""

import logging
import re
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..errors import TokenError

logger = logging.getLogger("invert3d")

# `<…>` without inner edges of white space, so that "a < b > c" is text; `|` keeps "<|endoftext|>" for the tokenizer.
_PLACEHOLDER = re.compile(r"<(?P<angle>[^\s<>|](?:[^<>|]*[^\s<>|])?)>|(?<![^\s(])embedding:(?P<embedding>[\w.\-/\\]+)")
_EXTENSIONS = (".safetensors", ".pt", ".bin")


class Tokenizer(Protocol):
    """What this package needs of a tokenizer: text to ids without begin and end, and the special ids."""

    bos_id: int
    eos_id: int
    pad_id: int
    max_length: int
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without begin, end and padding."""
        ...


def encode_ids(prompt: str, tokenizer: Tokenizer, placeholders: Mapping[str, int]) -> tuple[list[int], dict[int, str]]:
    """Ids of a prompt whose placeholders become virtual ids.

    prompt: text; a token is written ``<name>``, or ``embedding:name`` as in ComfyUI (a subfolder and an extension may
        be written, a full stop or comma after it is text).
    placeholders: name → number of vectors, of every known token; their order gives the virtual ids
        ``tokenizer.vocab_size + i``, the same for every prompt.
    Returns the ids, ``tokenizer.max_length`` of them (begin, prompt, end, padding; each placeholder is one id), and
    the virtual ids that occur in them with their names.

    Raises TokenError if a placeholder is unknown (listing the known ones), or if the prompt with every placeholder
    expanded does not fit (naming the free places). A prompt without placeholders that is too long is cut with a
    warning, as the published tokenizers do.
    """
    virtual = {name: tokenizer.vocab_size + i for i, name in enumerate(placeholders)}
    body: list[int] = []
    occurrences: dict[str, int] = {}
    end = 0
    for match in _PLACEHOLDER.finditer(prompt):
        name, stop = _name_of(match, placeholders)
        body += tokenizer.encode(prompt[end : match.start()])
        body.append(virtual[name])
        occurrences[name] = occurrences.get(name, 0) + 1
        end = stop
    body += tokenizer.encode(prompt[end:])

    places = tokenizer.max_length - 2
    words = len(body) - sum(occurrences.values())
    needed = words + sum(count * placeholders[name] for name, count in occurrences.items())
    if occurrences and needed > places:
        parts = ", ".join(f"<{name}> {count} x {placeholders[name]}" for name, count in occurrences.items())
        raise TokenError(
            f"The prompt needs {needed} places but the text encoder has {places}: its words take {words}, so "
            f"{max(0, places - words)} are free for tokens, which need {needed - words} ({parts}). Write fewer words, "
            f"use a token less often, or train it with fewer vectors. Prompt: {prompt!r}"
        )
    if needed > places:
        logger.warning(
            "The prompt has %d places of words, the text encoder %d: the end is cut: %r", words, places, prompt
        )
        body = body[:places]
    ids = [tokenizer.bos_id, *body, tokenizer.eos_id]
    ids += [tokenizer.pad_id] * (tokenizer.max_length - len(ids))
    return ids, {virtual[name]: name for name in occurrences}


def expand(
    ids: Tensor,  # (B,L) int
    embeddings: Tensor,  # (B,L,D)
    vectors: Mapping[int, Tensor],  # placeholder id -> (n,D)
) -> Tensor:  # (B,L,D)
    """Token embeddings with each placeholder replaced by its vectors; differentiable in both.

    ids: (B,L), one id per placeholder. embeddings: (B,L,D), the lookup of those ids before position embeddings are
    added (what stands at a placeholder is dropped). vectors: placeholder id → (n,D).
    Each occurrence becomes n rows, what follows moves right, and what passes L is cut, as published for textual
    inversion with several vectors (Gal et al. 2022); `encode_ids` refuses prompts for which something would be cut.

    Raises TokenError if shapes disagree.
    """
    if embeddings.ndim != 3 or ids.shape != embeddings.shape[:2]:
        raise TokenError(
            f"Ids {tuple(ids.shape)} and embeddings {tuple(embeddings.shape)} do not fit; expected (B,L) and (B,L,D)."
        )
    width = embeddings.shape[2]
    for placeholder, rows in vectors.items():
        if rows.ndim != 2 or rows.shape[1] != width:
            raise TokenError(
                f"The vectors of placeholder {placeholder} are {tuple(rows.shape)}, but the text encoder's embeddings "
                f"have width {width}: the token was trained for another text encoder. Use it with its own model."
            )
    if not vectors:
        return embeddings
    # The batch's own embeddings and then the vectors, as one table from which every output place takes a row.
    table = torch.cat([embeddings.flatten(0, 1), *(rows.to(embeddings) for rows in vectors.values())])
    places = _rows_of_places(ids, {placeholder: rows.shape[0] for placeholder, rows in vectors.items()})
    return table[places.to(embeddings.device)]


def expand_ids(
    ids: Tensor,  # (B,L) int
    counts: Mapping[int, int],
) -> Tensor:  # (B,L)
    """Ids as `expand` places them: a placeholder id as often as it has vectors, the rest moved right, cut at L."""
    length = ids.shape[1]
    rows = [[value for value in row for _ in range(counts.get(value, 1))][:length] for row in ids.tolist()]
    return torch.tensor(rows, dtype=ids.dtype, device=ids.device).reshape(ids.shape)


def _rows_of_places(ids: Tensor, counts: Mapping[int, int]) -> Tensor:  # (B,L) -> (B,L)
    """For every output place its row in the table of B·L embeddings followed by the vectors of each placeholder."""
    first: dict[int, int] = {}
    end = ids.numel()
    for placeholder, count in counts.items():
        first[placeholder] = end
        end += count
    length = ids.shape[1]
    places: list[list[int]] = []
    for b, row in enumerate(ids.tolist()):
        out: list[int] = []
        for column, value in enumerate(row):
            if value in first:
                out.extend(range(first[value], first[value] + counts[value]))
            else:
                out.append(b * length + column)
        places.append(out[:length])
    return torch.tensor(places).reshape(ids.shape)


def _name_of(match: re.Match[str], placeholders: Mapping[str, int]) -> tuple[str, int]:
    """The known name a placeholder means, and where it ends in the prompt."""
    written = match["angle"]
    stop = match.end()
    name = written
    if written is None:
        written = match["embedding"].rstrip(".")
        stop = match.start("embedding") + len(written)
        name = re.split(r"[/\\]", written)[-1]
        for extension in _EXTENSIONS:
            name = name.removesuffix(extension)
    if name not in placeholders:
        known = [f"<{n}>" for n in placeholders]
        raise TokenError(
            f"The prompt asks for the token '{match[0]}', which is not applied to the model. "
            + (f"Known: {', '.join(known)}. " if known else "No token is applied. ")
            + "Check the spelling, or apply the token first."
        )
    return name, stop
