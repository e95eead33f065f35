"""`invert3d token`."""

import shutil

import pytest
import safetensors.torch
import torch

from invert3d_core import tokens

ROWS = torch.randn(3, 768, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def theirs(tmp_path):
    """A token of A1111."""
    path = tmp_path / "cat.pt"
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": ROWS}, "name": "cat", "step": 12}, path)
    return path


def test_info_of_a_file_of_others(run, theirs):
    done = run("token", "info", theirs, "--json")
    assert (done.code, done.err) == (0, "")
    report = done.report
    assert (report["format"], report["name"], report["written"], report["step"]) == ("a1111", "cat", "<cat>", 12)
    encoder = report["text_encoders"]["clip_l"]
    assert (encoder["vectors"], encoder["width"], encoder["usable"]) == (3, 768, True)
    assert encoder["mean_norm"] == pytest.approx(float(ROWS.norm(dim=1).mean()))
    assert "zeros stand for them" in report["initial_vectors"]
    assert "clip_l 3 x 768" in run("token", "info", theirs).out


def test_info_of_ours(run, token):
    report = run("token", "info", token, "--json").report
    assert (report["format"], report["name"]) == ("invert3d", "thing")
    assert report["text_encoders"]["tiny"]["vectors"] == 2
    assert report["provenance"]["config"]["initial_words"] == "red hat"
    assert report["moved_from_initial"] > 0


def test_info_of_a_token_that_is_of_no_use_here(run, tmp_path):
    path = tmp_path / "xl.safetensors"
    safetensors.torch.save_file({"clip_l": ROWS, "clip_g": torch.ones(3, 1280)}, path)
    assert "clip_g 3 x 1280 (no MVDream model has it)" in run("token", "info", path).out
    done = run("token", "convert", path, tmp_path / "l.safetensors")
    assert done.code == 2
    assert "choose encoder clip_l" in done.err
    assert run("token", "convert", path, tmp_path / "l.safetensors", "--encoder", "clip_l").code == 0
    assert torch.equal(tokens.load(tmp_path / "l.safetensors").vectors, ROWS)


@pytest.mark.parametrize("format", tokens.FORMATS)
def test_convert_there_and_back(run, theirs, tmp_path, format):
    kind = tokens.FORMATS[format]
    path = tmp_path / f"other{kind.ending}"
    done = run("token", "convert", theirs, path, "--format", format, "--json")
    assert (done.code, done.err) == (0, "")
    assert (done.report["format"], done.report["keeps_everything"]) == (format, kind.whole)
    assert run("token", "convert", path, tmp_path / "back.safetensors", "--name", "tom").code == 0
    back = tokens.load(tmp_path / "back.safetensors")
    assert back.name == "tom"
    assert torch.equal(back.vectors, ROWS)
    text = run("token", "convert", theirs, path, "--format", format, "--overwrite").out
    assert ("not kept" in text) != kind.whole


def test_mistakes_are_one_line_and_exit_code_2(run, theirs, token, tmp_path):
    taken = tmp_path / "taken.pt"
    shutil.copy(theirs, taken)
    mistakes = {
        "exists already": (theirs, taken),
        "is the source itself": (theirs, theirs, "--overwrite"),
        "is a .bin file": (theirs, tmp_path / "x.pt", "--format", "diffusers-bin"),
        "There is no token file": (tmp_path / "nowhere.pt", tmp_path / "x.pt"),
        "which no other program has": (token, tmp_path / "x.pt"),
        "cannot be written in a prompt": (theirs, tmp_path / "x.pt", "--name", "my cat"),
    }
    for reason, arguments in mistakes.items():
        done = run("token", "convert", *arguments)
        assert (done.code, done.out) == (2, "")
        assert done.err.count("\n") == 1
        assert reason in done.err
    assert taken.read_bytes() == theirs.read_bytes()
    assert not (tmp_path / "x.pt").exists()
