"""`invert3d model`."""

import safetensors.torch
import torch


def test_info_says_what_was_found(run, model):
    report = run("model", "info", model, "--json").report
    assert (report["layout"], report["licence"], report["camera_weights"]) == (
        "file-clip",
        "CreativeML OpenRAIL-M",
        "camera_embed",
    )
    assert report["base"].startswith("tiny (a text encoder of its own") and "width 16" in report["base"]
    assert report["complete"] is True
    assert report["can"][0].startswith("views of an object from text, 16 × 16 pixels, four at a time")
    done = run("model", "info", model / "model.safetensors")
    assert (done.code, done.err) == (0, "")
    assert "layout means" in done.out and "complete                   yes" in done.out


def test_info_says_what_is_missing(run, model, tmp_path):
    state = safetensors.torch.load_file(model / "model.safetensors")
    del state["first_stage_model.quant_conv.bias"]
    with safetensors.safe_open(model / "model.safetensors", framework="pt") as file:
        safetensors.torch.save_file(state, tmp_path / "model.safetensors", metadata=file.metadata())
    report = run("model", "info", tmp_path, "--json").report
    assert report["complete"].startswith("no: ")
    assert "first_stage_model.quant_conv.bias" in report["complete"]
    done = run("model", "info", tmp_path / "sd-v1.5-4view.pt")
    assert done.code == 2 and done.err.count("\n") == 1
    assert "4.27 GB, into models/mvdream" in done.err


def test_convert_to_a_folder_and_to_a_file(run, model, tmp_path):
    done = run("model", "convert", model, tmp_path / "folder", "--dtype", "fp16", "--json")
    assert done.code == 0, done.err
    assert (done.report["layout"], done.report["notes"]) == ("folder-diffusers", [])
    report = run("model", "info", tmp_path / "folder", "--json").report
    assert (report["types"], report["layout"], report["complete"]) == (["float16"], "folder-diffusers", True)
    done = run("model", "convert", tmp_path / "folder", tmp_path / "file.safetensors")
    assert done.code == 0, done.err
    assert "wrote" in done.out and "which goes with it" in done.out
    source = safetensors.torch.load_file(model / "model.safetensors")
    found = safetensors.torch.load_file(tmp_path / "file.safetensors")
    assert found.keys() == source.keys()
    assert all(torch.equal(value, source[key].half()) for key, value in found.items())
    (tmp_path / "other.tokenizer.json").write_text("of another")
    done = run("model", "convert", tmp_path / "folder", tmp_path / "other.safetensors")
    assert done.code == 2 and "other.tokenizer.json', where the vocabulary goes, exists already" in done.err
    assert (tmp_path / "other.tokenizer.json").read_text() == "of another"
    assert not (tmp_path / "other.safetensors").exists()
    done = run("model", "convert", model, tmp_path / "folder")
    assert (done.code, done.out) == (2, "")
    assert "exists already" in done.err


def test_what_is_converted_draws_the_same_pictures(run, model, tmp_path):
    assert run("model", "convert", model, tmp_path / "folder").code == 0
    assert run("model", "convert", tmp_path / "folder", tmp_path / "file.safetensors").code == 0
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "file.safetensors")
    for name, source in (("a", model), ("b", tmp_path / "folder"), ("c", tmp_path / "link.safetensors")):
        arguments = ("sample", "--model", source, "--prompt", "a red hat", "--out", tmp_path / name, "--steps", 2)
        assert run(*arguments).code == 0
    for view in range(4):
        file = f"view_{view:03d}.png"
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "c" / file).read_bytes()
