import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from invert3d_core.errors import ModelError
from invert3d_core.mvdream import MVDream, key_maps, load
from invert3d_core.mvdream import checkpoint as module
from invert3d_core.mvdream.checkpoint import find_checkpoint

from .conftest import INFO, word_backend

# What a published file holds beside its networks, by the names of ldm's schedule.
SCHEDULE = (
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
)
BUFFERS = {name: torch.zeros(1000) for name in SCHEDULE}
FIELDS = {key: getattr(INFO, key) for key in ("base", "unet_heads", "text_heads", "vae_norm_groups", "scaling_factor")}
FIELDS |= {key: getattr(INFO, key) for key in ("bos_id", "eos_id", "pad_id", "image_size", "latent_size")}


def save_safetensors(state: dict[str, Tensor], path: Path, **metadata: str) -> Path:
    safetensors.torch.save_file(state, path, metadata={**INFO.to_metadata(), **metadata})
    return path


@torch.no_grad()
def same_model(left: MVDream, right: MVDream, draw: Any) -> bool:
    x, text, cameras = draw(4, 4, 8, 8), draw(1, 12, 24), draw(4, 16)
    ids = torch.tensor([[0, 4, 5, 7, *[1] * 8]])
    images = draw(2, 16, 16, 3)

    def outputs(model: MVDream) -> list[Tensor]:
        return [
            model.predict_noise(x, 10, text, cameras),
            model.encode_embeddings(model.token_rows(ids)),
            *model.encode_images(images),
            model.decode_latents(x),
        ]

    return all(torch.equal(a, b) for a, b in zip(outputs(left), outputs(right), strict=True))


def test_a_safetensors_file_its_folder_and_its_name_give_the_model(
    checkpoint: Path, model: MVDream, draw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUILT_IN", {"toy": checkpoint})
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    for path in (checkpoint, str(checkpoint / "model.safetensors"), "toy"):
        loaded = load(path, device="cpu")
        assert same_model(loaded, model, draw)
        assert loaded.info.model_hash == digest
        assert loaded.info.title == "tiny" and loaded.schedule.prediction_type == "epsilon"
        assert loaded.tokenizer is not None and loaded.tokenizer.max_length == 12
        assert loaded.dtype == torch.float32 and loaded.device.type == "cpu"
        assert not any(p.requires_grad for m in (loaded.unet, loaded.vae, loaded.text_encoder) for p in m.parameters())


@pytest.mark.parametrize("form", ["zip", "legacy", "wrapped"])
def test_a_published_pt_file(
    form: str, published: dict[str, Tensor], model: MVDream, draw: Any, tmp_path: Path
) -> None:
    """Schedule buffers and position_ids are there, metadata is not: the caller says what is not published."""
    positions = {key_maps.TEXT_PREFIX + "embeddings.position_ids": torch.arange(12)[None]}
    content: Any = {**BUFFERS, **published, **positions}
    path = tmp_path / "sd-v1.5-4view.pt"
    torch.save(
        {"state_dict": content} if form == "wrapped" else content, path, _use_new_zipfile_serialization=form != "legacy"
    )
    word_backend().save(str(tmp_path / "tokenizer.json"))
    loaded = load(path, "cpu", metadata=FIELDS)
    assert same_model(loaded, model, draw)
    assert loaded.info.caption_suffix == ", 3d asset" and loaded.info.front_azimuth_deg == 90


def test_the_open_clip_layout(published: dict[str, Tensor], model: MVDream, tmp_path: Path, draw: Any) -> None:
    text = key_maps.text_to_open_clip(model.text_encoder.state_dict())
    extra = {"text_projection": torch.zeros(24, 8), "logit_scale": torch.ones(())}
    rest = {key: value for key, value in published.items() if not key.startswith(key_maps.TEXT_PREFIX)}
    state = {**BUFFERS, **rest, **key_maps.with_prefix({**text, **extra}, key_maps.OPEN_CLIP_PREFIX)}
    path = save_safetensors(state, tmp_path / "sd-v2.1-base-4view.safetensors")
    word_backend().save(str(tmp_path / "tokenizer.json"))
    loaded = load(path, "cpu")
    # MVDream conditions on the penultimate block, normalised.
    ids = torch.tensor([[0, 4, 5, 7, *[1] * 8]])
    found = loaded.encode_embeddings(loaded.token_rows(ids))
    whole = model.text_encoder(input_ids=ids, output_hidden_states=True)
    norm = next(m for name, m in model.text_encoder.named_modules() if name.endswith("final_layer_norm"))
    torch.testing.assert_close(found, norm(whole.hidden_states[-2]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision(dtype: torch.dtype, checkpoint: Path, model: MVDream, draw: Any) -> None:
    loaded = load(checkpoint, "cpu", dtype)
    assert {p.dtype for m in (loaded.unet, loaded.vae, loaded.text_encoder) for p in m.parameters()} == {dtype}
    x, text, cameras = draw(4, 4, 8, 8), draw(1, 12, 24), draw(4, 16)
    found = loaded.predict_noise(x, 10, text, cameras)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model.predict_noise(x, 10, text, cameras), atol=0.1, rtol=0)
    halves = {
        key: value.to(dtype) for key, value in safetensors.torch.load_file(checkpoint / "model.safetensors").items()
    }
    save_safetensors(halves, checkpoint / "model.safetensors")
    again = load(checkpoint, "cpu")  # a file in half precision computes in float32 unless asked otherwise
    assert again.dtype == torch.float32
    torch.testing.assert_close(again.unet.conv_in.weight, loaded.unet.conv_in.weight.float())


def test_a_model_loaded_under_inference_mode_can_be_trained_through(checkpoint: Path, draw: Any) -> None:
    with torch.inference_mode():
        loaded = load(checkpoint, "cpu")
        x, cameras = draw(4, 4, 8, 8), draw(4, 16)
    x, cameras = x.clone(), cameras.clone()
    rows = loaded.token_rows(torch.tensor([[0, 4, 5, 7, *[1] * 8]])).clone().requires_grad_()
    loss = loaded.predict_noise(x, 10, loaded.encode_embeddings(rows), cameras).square().sum()
    (gradient,) = torch.autograd.grad(loss, rows)
    assert gradient.abs().sum() > 0


def test_unknown_missing_and_misshapen_keys_are_listed(checkpoint: Path, published: dict[str, Tensor]) -> None:
    file = checkpoint / "model.safetensors"
    first = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    cases = {
        "unknown keys: 1 \\(model\\.diffusion_model\\.label_emb\\.0\\.weight\\)": {
            "model.diffusion_model.label_emb.0.weight": torch.ones(1)
        },
        "unknown keys beside the three networks: 1 \\(model_ema\\.decay\\)": {"model_ema.decay": torch.ones(1)},
        "unknown keys: 1 \\(cond_stage_model\\.transformer\\.text_model\\.x\\.weight\\)": {
            key_maps.TEXT_PREFIX + "x.weight": torch.ones(1)
        },
        "missing keys: 1 \\(first_stage_model\\.decoder\\.up\\.1\\.upsample\\.conv\\.bias\\)": {
            "first_stage_model.decoder.up.1.upsample.conv.bias": None
        },
        "wrong shapes: 1 \\(model\\.diffusion_model\\.out\\.0\\.bias \\(5,\\) instead of \\(32,\\)\\)": {
            "model.diffusion_model.out.0.bias": torch.ones(5)
        },
    }
    for message, change in cases.items():
        state = {key: value for key, value in {**published, **change}.items() if value is not None}
        save_safetensors(state, file)
        with pytest.raises(ModelError, match=message):
            load(file, "cpu")
    assert first in published


def test_everything_wrong_is_told_at_once(checkpoint: Path, published: dict[str, Tensor]) -> None:
    wrong = {"model.diffusion_model.input_blocks.1.0.out_layers.0.bias", "first_stage_model.decoder.conv_in.bias",
             key_maps.TEXT_PREFIX + "final_layer_norm.bias"}  # fmt: skip
    state = {key: value for key, value in published.items() if key not in wrong}
    added = {"model.diffusion_model.bogus.weight", "first_stage_model.bogus.weight"}
    save_safetensors({**state, **{key: torch.ones(1) for key in added}}, checkpoint / "model.safetensors")
    with pytest.raises(ModelError) as raised:
        load(checkpoint / "model.safetensors", "cpu")
    assert all(key in str(raised.value) for key in wrong | added)


def test_an_ordinary_stable_diffusion_file_is_told_apart(checkpoint: Path, published: dict[str, Tensor]) -> None:
    file = checkpoint / "model.safetensors"
    save_safetensors({k: v for k, v in published.items() if "camera_embed" not in k}, file)
    with pytest.raises(ModelError, match="ordinary Stable Diffusion checkpoint"):
        load(file, "cpu")
    save_safetensors(key_maps.without_prefix(published, key_maps.UNET_PREFIX), file)
    with pytest.raises(
        ModelError, match=r"no layout that is known .*None of them is there.*camera_embed, input_blocks"
    ):
        load(file, "cpu")
    save_safetensors({k: v for k, v in published.items() if not k.startswith("first_stage_model.")}, file)
    with pytest.raises(
        ModelError, match=r"Only cond_stage_model\.transformer\.text_model\., model\.diffusion_model\. are"
    ):
        load(file, "cpu")


def test_no_vocabulary(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"No vocabulary of 10 words .*checkpoint's folder.*host.*installed packages"):
        load(checkpoint, "cpu")


class Exploit:
    def __reduce__(self) -> Any:
        return (open, (str(Path("exploited").resolve()), "w"))


def test_code_in_a_pickle_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, write in (
        ("a.pt", lambda p: torch.save({"x": Exploit()}, p)),
        ("b.pt", lambda p: p.write_bytes(pickle.dumps({"x": Exploit()}, protocol=2))),
    ):
        write(tmp_path / name)
        with pytest.raises(ModelError, match=rf"{name}' holds more than weights \(\S*open\)"):
            load(tmp_path / name, "cpu")
    assert not (tmp_path / "exploited").exists()


def test_damaged_files_give_the_error_of_a_model(
    checkpoint: Path, published: dict[str, Tensor], tmp_path: Path
) -> None:
    pt = tmp_path / "whole.pt"
    torch.save(published, pt)
    for source in (checkpoint / "model.safetensors", pt):
        whole = source.read_bytes()
        for length in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1):
            cut = tmp_path / f"cut{source.suffix}"
            cut.write_bytes(whole[:length])
            with pytest.raises(ModelError, match=f"cut{source.suffix}"):
                load(cut, "cpu")
    for content in (b"\xff" * 64, b"hello", b"PK\x03\x04" + bytes(60), b"\x80\x02}q\x00."):
        for name in ("noise.pt", "noise.safetensors"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ModelError, match=name) as raised:
                load(tmp_path / name, "cpu")
            assert "weights_only" not in str(raised.value)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="holds a list; expected a state dict"):
        load(tmp_path / "list.pt", "cpu")
    torch.save({**published, "global_step": 3}, tmp_path / "step.pt")
    with pytest.raises(ModelError, match=r"entries that are no tensors: 1 \(global_step\)"):
        load(tmp_path / "step.pt", "cpu")


def test_finding_the_file(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_checkpoint(checkpoint) == checkpoint / "model.safetensors"
    (checkpoint / "other.safetensors").touch()
    assert find_checkpoint(checkpoint) == checkpoint / "model.safetensors"
    (checkpoint / "model.safetensors").rename(checkpoint / "mine.pt")
    with pytest.raises(ModelError, match=r"holds 2 \(mine\.pt, other\.safetensors\)"):
        find_checkpoint(checkpoint)
    (checkpoint / "other.safetensors").unlink()
    assert find_checkpoint(str(checkpoint)) == checkpoint / "mine.pt"
    (checkpoint / "mine.pt").unlink()
    with pytest.raises(ModelError, match="holds none of the files"):
        find_checkpoint(checkpoint)
    with pytest.raises(ModelError, match=r"There is no model 'dream'.*built-in model \(toy\)"):
        find_checkpoint("dream")
    monkeypatch.setattr(module, "BUILT_IN", {"toy": tmp_path / "nowhere"})
    with pytest.raises(ModelError, match="There is no model 'toy'"):
        find_checkpoint("toy")
    monkeypatch.setattr(module, "BUILT_IN", {"toy": tmp_path})
    with pytest.raises(ModelError, match="built-in model 'toy' are not in this copy"):
        find_checkpoint("toy")


def test_assumed_values_are_those_of_the_layout(checkpoint: Path, published: dict[str, Tensor]) -> None:
    safetensors.torch.save_file(published, checkpoint / "model.safetensors")
    # 32 channels are no multiple of 64, the head width of linear projections: what is needed is named.
    with pytest.raises(ModelError, match=r"unet_heads into the file's 'invert3d_mvdream' metadata"):
        load(checkpoint, "cpu")
    loaded = load(checkpoint, "cpu", metadata={k: v for k, v in FIELDS.items() if k != "base"})
    # Its text encoder has no published width, so its tokens are for nothing but itself.
    assert loaded.info.base == "custom" and loaded.info.model_hash
