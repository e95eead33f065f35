"""`invert3d info`."""

import json
import shutil
import zipfile
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from invert3d_core import splats, tokens
from invert3d_core.splats.metadata import with_metadata
from invert3d_core.toy import samples


def test_a_splat(run, ball):
    done = run("info", ball, "--json")
    assert (done.code, done.err) == (0, "")
    report = done.report
    assert (report["kind"], report["format"], report["splats"], report["sh_degree"]) == ("splat", "ply", 300, 0)
    assert report["orientation"] == {"up": "+y", "front": "+z", "source": "stated by the file"}
    assert report["bytes"] == ball.stat().st_size
    assert report["format_limits"] == splats.formats.FORMATS["ply"].limits
    assert report["visible_sphere"]["center"] == pytest.approx([2, -1, 0.5], abs=0.05)
    assert report["visible_sphere"]["radius"] == pytest.approx(1.12, abs=0.03)
    assert report["extent"]["size"] == pytest.approx([2, 2, 2], abs=0.1)
    text = run("info", ball).out
    assert "splats          300" in text
    assert "stated by the file" in text


@pytest.mark.parametrize("ending", [".bin", ".pt", ".safetensors", ""])
def test_a_splat_is_known_by_what_is_in_it(run, ball, tmp_path, ending):
    for kind in (".ply", ".sog", ".spz", ".glb", ".ksplat", ".compressed.ply"):
        splats.save(splats.load(ball), tmp_path / f"ball{kind}")
        named = (tmp_path / f"ball{kind}").rename(tmp_path / f"odd{ending}")
        report = run("info", named, "--json").report
        assert (report["kind"], report["splats"]) == ("splat", 300)


def test_an_unbundled_sog_by_its_folder(run, ball, tmp_path):
    splats.save(splats.load(ball), tmp_path / "ball.sog")
    zipfile.ZipFile(tmp_path / "ball.sog").extractall(tmp_path / "ball")
    report = run("info", tmp_path / "ball", "--json").report
    assert (report["kind"], report["format"], report["splats"]) == ("splat", "sog", 300)
    assert report["bytes"] == sum(path.stat().st_size for path in (tmp_path / "ball").iterdir())
    assert report["orientation"]["source"] == "stated by the file"
    text = run("info", tmp_path / "ball").out
    assert "format limits   Reads versions 1 and 2" in text


def test_a_splat_that_says_nothing_gets_a_guess(run, ball, tmp_path):
    splats.save(splats.load(ball), tmp_path / "ball.splat")
    report = run("info", tmp_path / "ball.splat", "--json").report
    assert report["format"] == "splat"
    assert (report["orientation"]["up"], report["orientation"]["front"]) == ("-y", "-z")
    assert report["orientation"]["source"].startswith("a guess")
    perhaps = report["orientation"]["perhaps"]
    assert (perhaps["up"], perhaps["front"]) == ("-y", "-z")
    assert 0 < perhaps["confidence"] < 1
    assert "the usual frame of trained splats" in perhaps["reasons"]
    text = run("info", tmp_path / "ball.splat").out
    assert "  perhaps\n    up          -y\n" in text


def test_what_a_host_left_in_a_splat_is_named_and_not_shown(run, ball, tmp_path):
    splat = splats.load(ball)
    comment, _ = with_metadata(splat.comment, {"prompt": {"1": {}}, "workflow": {"nodes": []}}, 10_000)
    splats.save(replace(splat, comment=comment), tmp_path / "saved.ply")
    report = run("info", tmp_path / "saved.ply", "--json").report
    assert report["comment"] == splat.comment
    assert report["metadata"] == ["prompt", "workflow"]
    assert run("info", ball, "--json").report["metadata"] == []


def test_a_sample_by_its_name(run):
    name = samples.names()[0]
    report = run("info", name, "--json").report
    assert report["sample"] == name
    assert report["file"] == str(samples.path(name))


def test_a_token(run, token, tmp_path):
    learned = tokens.load(token)
    path = tmp_path / "moved.safetensors"
    tokens.save(replace(learned, vectors=1.25 * learned.initial), path)
    report = run("info", path, "--json").report
    assert (report["kind"], report["name"], report["written"]) == ("token", "thing", "<thing>")
    (encoder,) = report["text_encoders"].items()
    assert (encoder[0], encoder[1]["vectors"], encoder[1]["width"]) == ("tiny", 2, 16)
    assert report["moved_from_initial"] == pytest.approx(0.25)
    assert report["provenance"]["config"]["initial_words"] == "red hat"


def test_a_token_of_another_program(run, tmp_path):
    torch.save({"<cat>": torch.randn(768)}, tmp_path / "cat.bin")
    report = run("info", tmp_path / "cat.bin", "--json").report
    assert (report["kind"], report["name"]) == ("token", "cat")


def test_a_model(run, model):
    for name in (model, model / "model.safetensors"):
        report = run("info", name, "--json").report
        assert (report["kind"], report["title"], report["layout"]) == ("multi-view model", "tiny", "file-clip")
        assert report["types"] == ["float32"]
        counts = report["parameters"]
        assert counts["total"] == sum(counts.values()) - counts["total"]
        state = safetensors.torch.load_file(model / "model.safetensors")
        assert counts["total"] == sum(value.numel() for value in state.values())
        assert report["properties"]["prediction_type"] == "v_prediction"
        assert report["properties_from"] == "the file"


def test_a_model_knows_the_hash_that_its_tokens_name(run, model, token):
    assert run("info", model, "--json").report["sha256"] == run("info", token, "--json").report["model_sha256"]


def test_a_training_checkpoint(run, model, ball, tmp_path):
    checkpoint = tmp_path / "run.safetensors"
    base = ("invert", ball, "--model", model, "--name", "cup", "--words", "hat", "--vectors", 2, "--steps", 3)
    assert run(*base, "--out", tmp_path / "cup.safetensors", "--checkpoint", checkpoint).code == 0
    report = run("info", checkpoint, "--json").report
    assert report["kind"] == "training checkpoint"
    assert (report["names"], report["step"], report["steps"], report["finished"]) == (["cup"], 3, 3, True)
    safetensors.torch.save_file({"x": torch.zeros(1)}, checkpoint, metadata={"invert3d_training": json.dumps({})})
    done = run("info", checkpoint)
    assert done.code == 2
    assert "damaged" in done.err


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("cut.ply", lambda ball: ball.read_bytes()[:-7], "cut"),
        ("note.ply", lambda ball: b"hello there", "text file"),
        ("empty.splat", lambda ball: b"", "empty"),
        ("cut.safetensors", lambda ball: b"\x10\x00", "not a readable safetensors file"),
        ("weights.pt", lambda ball: b"nothing of the kind", "cannot be read as a checkpoint"),
    ],
)
def test_damaged_files_are_one_line_and_exit_code_2(run, ball, tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content(ball))
    done = run("info", tmp_path / name, "--json")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert name in done.err
    assert reason in done.err


def test_nothing_there(run, tmp_path):
    done = run("info", "nowhere")
    assert done.code == 2
    assert "There is no file 'nowhere'" in done.err
    assert samples.names()[0] in done.err
    shutil.copy(samples.TABLE, tmp_path)
    done = run("info", tmp_path)
    assert done.code == 2
    assert "holds none of the files that can be a checkpoint" in done.err
