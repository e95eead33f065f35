import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from invert3d_core.errors import ModelError
from invert3d_core.mvdream import tokenizer as module
from invert3d_core.mvdream.tokenizer import Tokenizer, add_tokenizer_folder, find_tokenizer

from .conftest import WORDS, word_backend

IDS: Any = {"max_length": 77, "bos_id": 0, "eos_id": 1, "pad_id": 1}
TEXTS = [
    "a photo of a cat",
    "A Cat,  sitting on\n a mat.",
    "don't we've 3d asset 2024",
    "café naïve — ¿qué?",
    "日本 🙂",
    "*, *. ** *'s a_b-c",
    "<|endoftext|> cat",
    "",
]


def small_merges() -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for word in ("cat", "photo", "of", "a", "mat", "sit", "ting"):
        done, end = word[0], word[1:]
        for i, letter in enumerate(end):
            right = letter + ("</w>" if i == len(end) - 1 else "")
            if (done, right) not in merges:
                merges.append((done, right))
            done += right
    return merges


@pytest.fixture(autouse=True)
def no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_host_folders", [])
    monkeypatch.setattr(module, "_CARRIERS", (("no_such_package_here", "bpe.txt.gz"),))


def write_clip(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    merges = small_merges()
    vocab = module._clip_vocabulary(merges)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]))
    return len(vocab)


def test_ids_are_those_of_the_transformers_tokenizer(tmp_path: Path) -> None:
    from transformers import CLIPTokenizerFast

    size = write_clip(tmp_path)
    ours = find_tokenizer(tmp_path, vocab_size=size, **IDS)
    theirs = CLIPTokenizerFast.from_pretrained(str(tmp_path))
    for text in TEXTS:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
    assert ours.vocab_size == size and ours.unknown_words("dragon 🙂") == []
    assert len(ours.encode("cat " * 200)) == 200


def test_bytes_come_first_in_the_vocabulary() -> None:
    """Byte-level BPE: ids 0 to 255 are bytes, visible ones first, 256 to 511 the same at the end of a word."""
    vocab = module._clip_vocabulary(small_merges())
    assert (vocab["!"], vocab["a"], vocab["!</w>"], vocab["a</w>"]) == (0, 64, 256, 320)
    assert len(vocab) == 512 + len(small_merges()) + 2
    assert vocab["<|endoftext|>"] == len(vocab) - 1


def test_the_three_places_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, host, package = tmp_path / "checkpoint", tmp_path / "host", tmp_path / "packages" / "carrier_of_words"
    checkpoint.mkdir()
    package.mkdir(parents=True)
    size = len(module._clip_vocabulary(small_merges()))

    with pytest.raises(ModelError) as raised:
        find_tokenizer(checkpoint, vocab_size=size, **IDS)
    for place in (str(checkpoint), "host", "no_such_package_here", "vocab.json"):
        assert place in str(raised.value)

    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    lines = ["version", *(" ".join(pair) for pair in small_merges())]
    with gzip.open(package / "bpe.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *lines[1:]]))
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(module, "_CARRIERS", (("carrier_of_words", "bpe.txt.gz"),))
    from_package = find_tokenizer(checkpoint, vocab_size=size, **IDS)

    write_clip(host)
    add_tokenizer_folder(host)
    add_tokenizer_folder(host)
    assert module._host_folders == [host]
    reads: list[Path] = []
    monkeypatch.setattr(module, "_read", lambda path, read=module._read: (reads.append(path), read(path))[1])
    from_host = find_tokenizer(checkpoint, vocab_size=size, **IDS)
    write_clip(checkpoint / "tokenizer")
    from_folder = find_tokenizer(checkpoint, vocab_size=size, **IDS)
    assert reads == [host / "vocab.json", checkpoint / "tokenizer" / "vocab.json"]
    for text in TEXTS:
        assert from_package.encode(text) == from_host.encode(text) == from_folder.encode(text)


def test_a_vocabulary_of_another_size_is_passed_over(tmp_path: Path) -> None:
    word_backend().save(str(tmp_path / "tokenizer.json"))
    size = write_clip(tmp_path / "tokenizer")
    assert find_tokenizer(tmp_path, vocab_size=size, **IDS).vocab_size == size
    assert find_tokenizer(tmp_path, vocab_size=len(WORDS), **IDS).vocab_size == len(WORDS)
    with pytest.raises(ModelError, match=rf"of 7 words .*tokenizer\.json' has {len(WORDS)} words"):
        find_tokenizer(tmp_path, vocab_size=7, **IDS)


@pytest.mark.parametrize("content", ["", "{", '{"version": "1.0"}', "[]"])
def test_a_broken_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json' cannot be read as a vocabulary"):
        find_tokenizer(tmp_path, vocab_size=10, **IDS)


def test_words(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("A red  Cup, 3d asset") == [4, 5, 7, 3, 8, 9]
    assert tokenizer.encode("a dragon") == [4, 2]
    assert tokenizer.unknown_words("a Dragon, blue dog") == ["Dragon", "dog"]
    assert tokenizer.vocab_size == len(WORDS)
