import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from invert3d_core import tokens
from invert3d_core.errors import TokenError
from invert3d_core.tokens import Token


def make(name="cup", count=5, width=128, base="toy", seed=0, **fields):
    g = torch.Generator().manual_seed(seed)
    vectors, initial = torch.randn(2, count, width, generator=g)
    return Token(name, vectors, initial, base, **fields)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize(("base", "width"), [("clip_l", 768), ("clip_h", 1024), ("toy", 128)])
def test_a_file_gives_back_every_field(tmp_path, base, width):
    provenance = {
        "seed": 23,
        "config": {"steps": 3, "learning_rate": 0.005},
        "versions": {"torch": "2"},
        "inputs": ["ab"],
    }
    token = make(base=base, width=width, model_hash="c0ffee", provenance=provenance)
    tokens.save(token, tmp_path / "cup.safetensors")
    back = tokens.load(tmp_path / "cup.safetensors")
    assert same_bits(back.vectors, token.vectors)
    assert same_bits(back.initial, token.initial)
    assert (back.name, back.base, back.model_hash, back.provenance) == ("cup", base, "c0ffee", provenance)
    assert back.is_host_embedding == (base != "toy")


def test_the_file_has_one_tensor_named_for_the_encoder(tmp_path):
    token = make(base="clip_l", width=768)
    tokens.save(token, tmp_path / "cup.safetensors")
    stored = safetensors.torch.load_file(tmp_path / "cup.safetensors")
    assert list(stored) == ["clip_l"]
    assert same_bits(stored["clip_l"], token.vectors)


def test_diffusers_reads_the_file(tmp_path):
    """`load_textual_inversion` of a real pipeline class puts the vectors into a real text encoder's table."""
    diffusers = pytest.importorskip("diffusers")
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    class Pipeline(diffusers.DiffusionPipeline, diffusers.loaders.TextualInversionLoaderMixin):
        def __init__(self, tokenizer, text_encoder):
            super().__init__()
            self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder)

    vocabulary = {word: i for i, word in enumerate(["a</w>", "!", "<|startoftext|>", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    config = CLIPTextConfig(vocab_size=4, hidden_size=768, intermediate_size=16, num_hidden_layers=1)
    pipe = Pipeline(tokenizer, CLIPTextModel(config))

    token = make(base="clip_l", width=768)
    tokens.save(token, tmp_path / "cup.safetensors")
    pipe.load_textual_inversion(str(tmp_path / "cup.safetensors"), token="<cup>")
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    assert same_bits(table[4:].contiguous(), token.vectors)
    assert tokenizer.convert_tokens_to_ids(["<cup>", "<cup>_1"]) == [4, 5]


def test_equal_tokens_give_equal_bytes_in_every_process(tmp_path):
    provenance = {f"key{i}": i for i in range(20)}
    tokens.save(make(provenance=provenance), tmp_path / "a.safetensors")
    tokens.save(make(provenance=dict(reversed(provenance.items()))), tmp_path / "b.safetensors")
    code = (
        "import sys, torch; from invert3d_core import tokens\n"
        "t = tokens.load(sys.argv[1]); tokens.save(t, sys.argv[2])\n"
    )
    root = Path(tokens.__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.safetensors", tmp_path / "c.safetensors"],
        check=True,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": "random"},
    )
    assert len({(tmp_path / f"{n}.safetensors").read_bytes() for n in "abc"}) == 1


def test_strength_zero_is_the_initial_words_and_one_the_token_bit_for_bit():
    token = make()
    token.initial[0, 0] = -0.0  # adding 0 · x would turn it into +0.0
    assert same_bits(token.at_strength(0.0), token.initial)
    assert same_bits(token.at_strength(1.0), token.vectors)
    torch.testing.assert_close(token.at_strength(0.25), 0.75 * token.initial + 0.25 * token.vectors)
    torch.testing.assert_close(token.at_strength(-1.0), 2 * token.initial - token.vectors)


def test_a_token_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(make(), "name", "hat")  # noqa: B010 (a type checker refuses the plain form)


@pytest.mark.parametrize("name", ["cup", "my_cup-2", "a.b", "Tasse_für_Tee", "杯", "7"])
def test_names_a_prompt_can_address(name):
    assert make(name=name).name == name


@pytest.mark.parametrize(
    "name", ["", "my cup", "<cup>", "cup[1]", "a<b", "cup.", ".cup", "a/b", "a:b", "(a)", "a,", "x" * 101]
)
def test_other_names_are_refused(name):
    with pytest.raises(TokenError, match="cannot be written in a prompt"):
        make(name=name)


def test_saving_never_overwrites_unasked(tmp_path):
    path = tmp_path / "cup.safetensors"
    tokens.save(make(), path)
    before = path.read_bytes()
    with pytest.raises(TokenError, match="exists already"):
        tokens.save(make(seed=1), path)
    assert path.read_bytes() == before
    tokens.save(make(seed=1), path, overwrite=True)
    assert same_bits(tokens.load(path).vectors, make(seed=1).vectors)


def test_saving_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "cup.safetensors"
    tokens.save(make(), path)
    before = path.read_bytes()

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        tokens.save(make(seed=1), path, overwrite=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["cup.safetensors"]


@pytest.mark.parametrize("name", ["my cup.safetensors", "a[1].safetensors", "cup.pt"])
def test_file_names_a_prompt_cannot_address_are_refused(tmp_path, name):
    with pytest.raises(TokenError, match=r"cannot be written in a prompt|\.safetensors file"):
        tokens.save(make(), tmp_path / name)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}])
def test_a_provenance_that_is_not_json_is_refused(tmp_path, value):
    with pytest.raises(TokenError, match="JSON"):
        tokens.save(make(provenance={"x": value}), tmp_path / "cup.safetensors")


@pytest.mark.parametrize(
    ("vectors", "initial", "base", "message"),
    [
        (torch.zeros(3), torch.zeros(3), "toy", r"expected \(n,d\)"),
        (torch.zeros(0, 8), torch.zeros(0, 8), "toy", "at least 1"),
        (torch.zeros(3, 8).half(), torch.zeros(3, 8), "toy", "float16"),
        (torch.full((3, 8), torch.nan), torch.zeros(3, 8), "toy", "NaN"),
        (torch.zeros(3, 8), torch.full((3, 8), torch.inf), "toy", "initial vectors .* infinite"),
        (torch.zeros(3, 8), torch.zeros(2, 8), "toy", "same shape"),
        (torch.zeros(3, 1024), torch.zeros(3, 1024), "clip_l", "width is 768"),
        (torch.zeros(3, 768), torch.zeros(3, 768), "toy", "belongs to a real encoder"),
        (torch.zeros(3, 8), torch.zeros(3, 8), "a b", "name of the text encoder"),
    ],
)
def test_impossible_tokens_are_refused(vectors, initial, base, message):
    with pytest.raises(TokenError, match=message):
        Token("cup", vectors, initial, base)


ABSENT = object()


def rewritten(path, **changes):
    """The token file of `path` with entries of its metadata changed, or removed (ABSENT)."""
    with safetensors.safe_open(path, framework="pt") as file:
        entry = json.loads(file.metadata()["invert3d"])
        stored = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a mapping)
    entry = {k: v for k, v in {**entry, **changes}.items() if v is not ABSENT}
    safetensors.torch.save_file(stored, path, metadata={"invert3d": json.dumps(entry)})


def test_unreadable_files_are_explained(tmp_path):
    path = tmp_path / "cup.safetensors"
    with pytest.raises(TokenError, match="no token file"):
        tokens.load(path)
    path.write_bytes(b"")
    with pytest.raises(TokenError, match="not a readable safetensors"):
        tokens.load(path)
    tokens.save(make(), path, overwrite=True)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(TokenError, match="not a readable safetensors"):
        tokens.load(path)
    safetensors.torch.save_file({"toy": torch.zeros(2, 8)}, path)
    with pytest.raises(TokenError, match="no 'invert3d' metadata"):
        tokens.load(path)
    safetensors.torch.save_file({"a": torch.zeros(2, 8), "b": torch.zeros(2, 8)}, path)
    with pytest.raises(TokenError, match="holds 2 tensors"):
        tokens.load(path)
    safetensors.torch.save_file({"toy": torch.zeros(2, 8).half()}, path, metadata={"invert3d": "{}"})
    with pytest.raises(TokenError, match="float16"):
        tokens.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema 2"),
        ({"base": "clip_l"}, "does not belong"),
        ({"initial": "AAAA"}, "does not belong"),
        ({"initial": "*"}, "damaged"),
        ({"initial": 5}, "damaged"),
        ({"name": ABSENT}, "damaged"),
        ({"provenance": [1]}, "does not belong"),
        ({"name": "my cup"}, "cannot be written"),
        ({"name": 7}, "cannot be written"),
    ],
)
def test_damaged_metadata_is_refused(tmp_path, changes, message):
    path = tmp_path / "cup.safetensors"
    tokens.save(make(), path)
    rewritten(path, **changes)
    with pytest.raises(TokenError, match=message):
        tokens.load(path)
