import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from invert3d_core.errors import ModelError
from invert3d_core.mvdream import MVDream, conversion, key_maps, layouts, load
from invert3d_core.mvdream.conversion import convert
from invert3d_core.progress import Cancelled

from .conftest import INFO, word_backend
from .published_layouts import UNETS, write_folder
from .test_checkpoint import BUFFERS, same_model
from .test_layouts import CONFIGS


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_file_becomes_a_folder_and_a_file_again(checkpoint: Path, model: MVDream, draw: Any, tmp_path: Path) -> None:
    done = convert(checkpoint, tmp_path / "new" / "folder")
    assert (done.layout, done.notes) == ("folder-diffusers", ())
    assert files_in(done.path) == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert done.bytes == sum(path.stat().st_size for path in done.path.rglob("*") if path.is_file())
    loaded = load(done.path, "cpu")
    assert same_model(loaded, model, draw)
    assert replace(loaded.info, model_hash=None) == replace(INFO, text_skip_last=0)
    back = convert(done.path, tmp_path / "back.safetensors")
    assert back.layout == "file-clip" and "vocabulary" in back.notes[0]
    shutil.copy(checkpoint / "tokenizer.json", tmp_path)
    assert same_model(load(back.path, "cpu"), model, draw)
    first, second = (safetensors.torch.load_file(p) for p in (checkpoint / "model.safetensors", back.path))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@torch.no_grad()
def test_stock_libraries_read_the_folder(checkpoint: Path, model: MVDream, draw: Any, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

    folder = convert(checkpoint, tmp_path / "folder").path
    unet: Any = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    vae: Any = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    text: Any = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    scheduler: Any = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    for found, expected in ((unet, model.unet), (vae, model.vae), (text, model.text_encoder)):
        state = expected.state_dict()
        assert found.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in found.state_dict().items())
    # One view sees only itself, so that the stock attention computes the same.
    x, context, cameras = draw(1, 4, 8, 8), draw(1, 12, 24), draw(1, 16)
    torch.testing.assert_close(
        unet(x, 10, context, class_labels=cameras).sample, model.predict_noise(x, 10, context, cameras, 1)
    )
    ids = torch.tensor([[0, 4, 5, 7, *[1] * 8]])
    torch.testing.assert_close(text(ids).last_hidden_state, model.encode_embeddings(model.token_rows(ids)))
    assert vae.config.scaling_factor == 0.5
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), model.schedule.alphas_cumprod, rtol=1e-5, atol=0)


def test_a_pt_file_and_its_twin_hold_the_same_bits(published: dict[str, Tensor], tmp_path: Path) -> None:
    positions = {key_maps.TEXT_PREFIX + "embeddings.position_ids": torch.arange(12)[None]}
    content = {**BUFFERS, **published, **positions, "betas": torch.linspace(0, 1, 1000, dtype=torch.float64)}
    torch.save(content, tmp_path / "a.pt")
    # Heads are in no metadata of a published file, and no published network is as small as this one.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "published_values", lambda *_: replace(INFO, title="tiny twin"))
        convert(tmp_path / "a.pt", tmp_path / "a.safetensors")
        convert(tmp_path / "a.pt", tmp_path / "half.safetensors", dtype=torch.float16)
    twin = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert twin.keys() == content.keys()
    assert all(twin[k].dtype == v.dtype and torch.equal(twin[k], v) for k, v in content.items())
    half = safetensors.torch.load_file(tmp_path / "half.safetensors")
    assert all(torch.equal(half[k], v.half()) for k, v in published.items())
    assert all(torch.equal(half[k], content[k]) for k in (*BUFFERS, *positions))
    with safetensors.safe_open(tmp_path / "half.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["invert3d_mvdream"])["title"] == "tiny twin"
    word_backend().save(str(tmp_path / "tokenizer.json"))
    assert load(tmp_path / "half.safetensors", "cpu").info.title == "tiny twin"


@pytest.mark.parametrize("layout", UNETS)
def test_every_folder_becomes_the_clean_one(
    layout: str, model: MVDream, published: dict[str, Tensor], tmp_path: Path
) -> None:
    states = model.unet.state_dict(), model.vae.state_dict(), model.text_encoder.state_dict()
    folder = write_folder(tmp_path / "wild", layout, *states, CONFIGS)
    done = convert(folder, tmp_path / "clean", dtype=torch.bfloat16)
    assert done.notes == ("no vocabulary was found: put CLIP's vocab.json and merges.txt into its tokenizer folder",)
    opened = layouts.open_checkpoint(done.path)
    assert opened.layout.name == "folder-diffusers"
    assert all(torch.equal(value, states[0][key].bfloat16()) for key, value in opened.unet.tensors.items())
    file = convert(folder, tmp_path / "file.safetensors").path
    found = safetensors.torch.load_file(file)
    assert found.keys() == published.keys() and all(torch.equal(found[k], v) for k, v in published.items())


def test_an_open_clip_tower_that_lost_its_last_block_stays_so(
    model: MVDream, draw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder of the larger base to a file and back: no block may be cut a second time."""
    states = model.unet.state_dict(), model.vae.state_dict(), model.text_encoder.state_dict()
    known = replace(INFO, base="clip_h", text_activation="quick_gelu", pad_id=1)
    monkeypatch.setattr(layouts, "published_values", lambda *_: known)
    folder = write_folder(tmp_path / "wild", "folder-ldm", *states, CONFIGS)
    (folder / "tokenizer").mkdir()
    word_backend().save(str(folder / "tokenizer" / "tokenizer.json"))
    file = convert(folder, tmp_path / "file.safetensors")
    assert file.layout == "file-open-clip" and "last block" in file.notes[0]
    again = convert(file.path, tmp_path / "again")
    back = layouts.open_checkpoint(again.path)
    text = key_maps.with_prefix(key_maps.text_to_ldm(states[2]), "text_model.")
    assert back.text.tensors.keys() == text.keys()
    assert all(torch.equal(back.text.tensors[key], value) for key, value in text.items())
    shutil.copy(folder / "tokenizer" / "tokenizer.json", tmp_path)
    assert same_model(load(file.path, "cpu"), model, draw)


def test_clips_vocabulary_goes_along(published: dict[str, Tensor], tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    words = {"a": 0, "b": 1, "ab": 2, "c": 3, "d": 4, "e": 5, "f": 6, "g": 7, "<|startoftext|>": 8, "<|endoftext|>": 9}
    source = tmp_path / "source"
    source.mkdir()
    Tokenizer(models.BPE(vocab=words, merges=[("a", "b")], unk_token="<|endoftext|>")).model.save(str(source))
    info = replace(INFO, bos_id=8, eos_id=9, pad_id=0)
    safetensors.torch.save_file(published, source / "model.safetensors", metadata=info.to_metadata())
    folder = convert(source, tmp_path / "folder").path
    assert {"vocab.json", "merges.txt", "tokenizer_config.json"} == files_in(folder / "tokenizer")
    assert json.loads((folder / "tokenizer" / "vocab.json").read_text()) == words
    config = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == ("<|startoftext|>", "<|endoftext|>", "a")
    assert "tokenizer" in json.loads((folder / "model_index.json").read_text())


def test_nothing_is_written_over(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "x.safetensors").write_bytes(b"mine")
    for name in ("full", "x.safetensors"):
        with pytest.raises(ModelError, match=f"{name}' exists already"):
            convert(checkpoint, tmp_path / name)
    assert (tmp_path / "x.safetensors").read_bytes() == b"mine"
    (tmp_path / "empty").mkdir()
    assert convert(checkpoint, tmp_path / "empty").path == tmp_path / "empty"
    with pytest.raises(ModelError, match=r"\.pt file, which can hold code and is not written"):
        convert(checkpoint, tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["new", "new.safetensors"])
def test_a_conversion_that_stops_leaves_nothing(
    name: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_in(tmp_path)

    def stop(step: int, total: int, **_: Any) -> None:
        assert step <= total
        if step == total // 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        convert(checkpoint, tmp_path / name, progress=stop)
    assert files_in(tmp_path) == before and not (tmp_path / name).exists()

    def full(step: int, total: int, **_: Any) -> None:
        if step == total - 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        convert(checkpoint, tmp_path / name, progress=full)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ModelError, match=r"has 0\.00 GB free, and 'new\S*' takes 0\.02 GB"):
        convert(checkpoint, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_a_source_that_is_not_whole_is_refused_before_anything_is_written(checkpoint: Path, tmp_path: Path) -> None:
    file = checkpoint / "model.safetensors"
    state = safetensors.torch.load_file(file)
    del state["first_stage_model.quant_conv.bias"]
    safetensors.torch.save_file(state, file, metadata=INFO.to_metadata())
    with pytest.raises(ModelError, match=r"missing keys: 1 \(first_stage_model\.quant_conv\.bias\)"):
        convert(checkpoint, tmp_path / "new" / "x.safetensors")
    assert not (tmp_path / "new").exists()
