import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from invert3d_core import tokens
from invert3d_core.errors import TokenError
from tests.unit.tokens.some_tokens import make, same_bits

OTHERS = [name for name in tokens.FORMATS if name != "invert3d"]


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


@pytest.fixture
def pipe(tmp_path):
    """A pipeline class of diffusers with a real, small text encoder, whose vocabulary has four words."""
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
    return Pipeline(tokenizer, CLIPTextModel(config))


@pytest.mark.parametrize(
    ("format", "said"), [("invert3d", "<cup>"), ("diffusers", None), ("diffusers-bin", None), ("a1111", None)]
)
def test_diffusers_reads_the_file(pipe, tmp_path, format, said):
    """`load_textual_inversion` puts the vectors into the text encoder's table, under the name that the file gives."""
    token = make(base="clip_l", width=768)
    path = tmp_path / f"cup{tokens.FORMATS[format].ending}"
    tokens.save(token, path, format=format)
    pipe.load_textual_inversion(str(path), token=said)
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    assert same_bits(table[4:].contiguous(), token.vectors)
    name = "cup" if format == "a1111" else "<cup>"  # A1111's files hold the bare name
    assert pipe.tokenizer.convert_tokens_to_ids([name, f"{name}_1"]) == [4, 5]


@pytest.mark.parametrize("format", tokens.FORMATS)
def test_every_format_comes_back_as_far_as_it_can_hold(tmp_path, format):
    token = make(base="clip_l", width=768, model_hash="c0ffee", provenance={"config": {"steps": 7}})
    kind = tokens.FORMATS[format]
    path = tmp_path / f"cup{kind.ending}"
    assert not tokens.is_saved_as(token, path, format)
    tokens.save(token, path, format=format)
    file = tokens.inspect(path)
    assert (file.format, file.name, list(file.vectors)) == (format, "cup", ["clip_l"])
    back = tokens.load(path)
    assert same_bits(back.vectors, token.vectors)
    if kind.whole:
        assert same_bits(back.initial, token.initial)
        assert (back.model_hash, back.provenance) == ("c0ffee", token.provenance)
    assert tokens.is_saved_as(token, path, format)
    other = make(base="clip_l", width=768, seed=1, model_hash="c0ffee", provenance=token.provenance)
    assert not tokens.is_saved_as(other, path, format)
    again = tmp_path / f"again{kind.ending}"
    tokens.save(token, again, format=format)
    assert again.read_bytes() == path.read_bytes()


def test_the_ending_alone_says_the_format(tmp_path):
    token = make(base="clip_h", width=1024)
    for ending, format in ((".safetensors", "invert3d"), (".pt", "a1111"), (".bin", "diffusers-bin")):
        tokens.save(token, tmp_path / f"cup{ending}")
        assert tokens.inspect(tmp_path / f"cup{ending}").format == format
    with pytest.raises(TokenError, match=r"format a1111 is a \.pt file, not 'cup.bin'"):
        tokens.save(token, tmp_path / "cup.bin", overwrite=True, format="a1111")
    with pytest.raises(TokenError, match="no token format 'png'"):
        tokens.save(token, tmp_path / "cup.png", format="png")


def test_others_read_plain_tensors(tmp_path):
    """What A1111 and the restricted unpickler see: no class of ours, no parameter, nothing of a device."""
    token = make(base="clip_l", width=768, provenance={"config": {"steps": 7}})
    with torch.inference_mode():  # as in a node
        tokens.save(token, tmp_path / "cup.pt")
        tokens.save(token, tmp_path / "released.pt", format="release")
    stored = torch.load(tmp_path / "cup.pt", weights_only=True)
    assert (stored["name"], stored["step"], stored["string_to_token"]) == ("cup", 7, {"*": 265})
    assert type(stored["string_to_param"]["*"]) is torch.Tensor
    with torch.serialization.safe_globals([torch.nn.ParameterDict]):  # as the released code, which allows everything
        released = torch.load(tmp_path / "released.pt", weights_only=True)
    (parameter,) = released["string_to_param"].parameters()
    assert same_bits(parameter.detach(), token.vectors)
    assert released["string_to_token"]["*"] == 265


def test_release_holds_its_vectors_where_a_host_looks_for_them(tmp_path):
    """A host cannot unpickle it, and takes the first data of the archive, from its end, that is long enough."""
    token = make(base="clip_l", width=768)
    tokens.save(token, tmp_path / "cup.pt", format="release")
    with zipfile.ZipFile(io.BytesIO((tmp_path / "cup.pt").read_bytes())) as archive:
        found = [archive.read(name) for name in reversed(archive.namelist()) if "data/" in name]
    assert next(data for data in found if len(data) >= 4 * 768) == token.vectors.numpy().tobytes()


@pytest.mark.parametrize("format", OTHERS)
def test_a_token_that_others_cannot_use_is_not_written_for_them(tmp_path, format):
    path = tmp_path / f"cup{tokens.FORMATS[format].ending}"
    with pytest.raises(TokenError, match="text encoder 'toy', which no other program has"):
        tokens.save(make(), path, format=format)
    if format == "release":
        with pytest.raises(TokenError, match="SD1.5's clip_l"):
            tokens.save(make(base="clip_h", width=1024), path, format=format)
    assert not path.exists()


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


@pytest.mark.parametrize("name", ["my cup.safetensors", "a[1].safetensors", "cup.txt"])
def test_file_names_a_prompt_cannot_address_are_refused(tmp_path, name):
    with pytest.raises(TokenError, match=r"cannot be written in a prompt|\.safetensors file"):
        tokens.save(make(), tmp_path / name)
    assert not os.listdir(tmp_path)
