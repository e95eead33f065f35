"""From text to ids: CLIP's vocabulary or a small one of words, and where they are found.

The published checkpoints carry no vocabulary. It is looked for in the checkpoint's folder, in folders a host registered
(`add_tokenizer_folder`), and in installed packages that carry it; nothing is downloaded.
"""

import gzip
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError

if TYPE_CHECKING:
    import tokenizers

# Packages that ship CLIP's merges, and under what name inside them.
_CARRIERS = (("open_clip", "bpe_simple_vocab_16e6.txt.gz"), ("clip", "bpe_simple_vocab_16e6.txt.gz"))
_CLIP_WORDS = 49152 - 256 - 2  # merges of CLIP's vocabulary; the carriers' file goes on after them
_CLIP_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"

_host_folders: list[Path] = []


class Tokenizer:
    """Text to ids and the special ids of one text encoder.

    backend: a `tokenizers.Tokenizer`. max_length: places of the text encoder, begin and end included.
    bos_id, eos_id, pad_id: ids of begin, end and padding.
    """

    def __init__(
        self, backend: "tokenizers.Tokenizer", *, max_length: int, bos_id: int, eos_id: int, pad_id: int
    ) -> None:
        self.backend = backend
        self.max_length = max_length
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.vocab_size: int = backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without begin, end and padding, however many there are."""
        return self.backend.encode(_valid(text), add_special_tokens=False).ids

    def unknown_words(self, text: str) -> list[str]:
        """Words of the text that a vocabulary of words does not know, in order; always empty for CLIP's."""
        unknown = getattr(self.backend.model, "unk_token", None)
        unknown_id = None if unknown is None else self.backend.token_to_id(unknown)
        if unknown_id in (None, self.bos_id, self.eos_id):
            return []
        text = _valid(text)
        found = self.backend.encode(text, add_special_tokens=False)
        return [
            text[start:end] for id_, (start, end) in zip(found.ids, found.offsets, strict=True) if id_ == unknown_id
        ]


def _valid(text: str) -> str:
    """The text with a question mark for each half of a surrogate pair, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def add_tokenizer_folder(path: str | os.PathLike[str]) -> None:
    """Let `find_tokenizer` also look in a folder of the host that holds CLIP's vocabulary (vocab.json, merges.txt)."""
    folder = Path(path)
    if folder not in _host_folders:
        _host_folders.append(folder)


def own_vocabulary(checkpoint: Path) -> Path:
    """Where the vocabulary of one checkpoint file is, which is not for the others of its folder."""
    return checkpoint.with_name(f"{checkpoint.stem}.tokenizer.json")


def find_tokenizer(
    checkpoint: Path, *, vocab_size: int, max_length: int, bos_id: int, eos_id: int, pad_id: int
) -> Tokenizer:
    """The tokenizer of a text encoder with `vocab_size` embedding rows.

    checkpoint: its file, or its folder. Looks beside a file for `own_vocabulary`; in the checkpoint's folder (for a
    link, also in that of the file) and its ``tokenizer/``, then in the host's folders, for ``tokenizer.json`` or
    ``vocab.json`` with ``merges.txt``; then for CLIP's merges in installed packages. The first of the right size wins.

    Raises ModelError naming all three places if there is none, and if a file found cannot be read.
    """
    refused: list[str] = []
    for where, backend in _candidates(checkpoint):
        found = backend.get_vocab_size()
        if found == vocab_size:
            return Tokenizer(backend, max_length=max_length, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id)
        refused.append(f"{where} has {found} words")
    hosts = ", ".join(f"'{path}'" for path in _host_folders) or "no host registered a folder"
    packages = ", ".join(package for package, _ in _CARRIERS)
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    raise ModelError(
        f"No vocabulary of {vocab_size} words was found for the text encoder in '{folder}'. Looked in: "
        f"(1) the checkpoint's folder and its 'tokenizer' folder, for tokenizer.json or vocab.json and merges.txt, and "
        f"beside a file for {own_vocabulary(checkpoint).name}; "
        f"(2) the host ({hosts}); (3) the installed packages that carry it ({packages}). "
        + (f"Of another size: {'; '.join(refused)}. " if refused else "")
        + "Put CLIP's vocab.json and merges.txt beside the checkpoint, or install open_clip_torch."
    )


def _candidates(checkpoint: Path) -> "Iterator[tuple[str, tokenizers.Tokenizer]]":
    folders = [checkpoint]
    if not checkpoint.is_dir():
        target = checkpoint.resolve()
        for file in dict.fromkeys((own_vocabulary(checkpoint), own_vocabulary(target))):
            if file.is_file():
                yield f"'{file}'", _read(file)
        folders = list(dict.fromkeys((checkpoint.parent, target.parent)))
    for place in (*(place for folder in folders for place in (folder, folder / "tokenizer")), *_host_folders):
        if (place / "tokenizer.json").is_file():
            yield f"'{place / 'tokenizer.json'}'", _read(place / "tokenizer.json")
        if (place / "vocab.json").is_file() and (place / "merges.txt").is_file():
            yield f"'{place / 'vocab.json'}'", _read(place / "vocab.json")
    for package, name in _CARRIERS:
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(place) / name).is_file():
                yield f"package {package}", _read(Path(place) / name)


def _read(path: Path) -> "tokenizers.Tokenizer":
    import tokenizers

    try:
        if path.name.endswith("tokenizer.json"):
            return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        if path.name == "vocab.json":
            vocab = json.loads(path.read_text(encoding="utf-8"))
            lines = (path.parent / "merges.txt").read_text(encoding="utf-8").split("\n")
            return _clip_backend(vocab, _merges(lines))
        with gzip.open(path, "rt", encoding="utf-8") as file:
            merges = _merges(file.read().split("\n")[: _CLIP_WORDS + 1])
        return _clip_backend(_clip_vocabulary(merges), merges)
    except Exception as error:  # `tokenizers` raises bare Exception for a broken file
        raise ModelError(
            f"'{path}' cannot be read as a vocabulary ({error}). Restore the file or remove it."
        ) from error


def _merges(lines: list[str]) -> list[tuple[str, str]]:
    pairs = (line.split() for line in (lines[1:] if "#version" in lines[0] else lines))
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]


def _clip_vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """CLIP's numbering: bytes, bytes that end a word, merges in their order, begin and end."""
    characters = _byte_characters()
    words = [*characters, *(c + "</w>" for c in characters), *("".join(pair) for pair in merges), _BEGIN, _END]
    return {word: i for i, word in enumerate(words)}


def _byte_characters() -> list[str]:
    """A visible character for each byte, in the order byte-level BPE numbers them (Radford et al. 2019)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in visible] + [chr(256 + n) for n in range(256 - len(visible))]


def _clip_backend(vocab: dict[str, int], merges: list[tuple[str, str]]) -> "tokenizers.Tokenizer":
    """CLIP's tokenizer: lower case, white space joined, words split off punctuation and digits, byte-level BPE."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    backend: Any = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=_END,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.add_special_tokens([AddedToken(word, special=True) for word in (_BEGIN, _END) if word in vocab])
    return backend
