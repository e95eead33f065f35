"""`invert3d sample`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.storage_faults import full_disk


def pixels(path: Path | str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_views_of_a_token_and_what_the_report_says(run, model, token, tmp_path):
    done = run("sample", "--model", model, "--prompt", "a <thing>", "--token", token, "--out", tmp_path, "--json")
    assert done.code == 0
    report = done.report
    assert report["tokens"] == {"thing": 1.0}
    assert (report["steps"], report["guidance"], report["seed"], report["model"]) == (4, 2.0, 0, "tiny")
    assert [view["azimuth_deg"] for view in report["views"]] == [0, 90, 180, 270]
    assert {view["elevation_deg"] for view in report["views"]} == {15.0}
    assert all(pixels(view["file"]).shape == (16, 16, 3) for view in report["views"])
    assert Path(report["contact_sheet"]).is_file()


def test_a_full_disk_leaves_the_old_pictures(run, model, ball, tmp_path):
    draw = ("sample", "--model", model, "--prompt", "a red hat", "--steps", 1, "--out", tmp_path / "drawn")
    render = ("render", ball, "--views", 2, "--size", 48, "--depth", "npy", "--normals", "--out", tmp_path / "seen")
    for command in (draw, render):
        assert run(*command).code == 0
        before = {path: path.read_bytes() for path in command[-1].iterdir()}
        with full_disk():
            done = run(*command)
        assert done.code == 2
        assert "view_000.png' cannot be written: File too large" in done.err
        assert "What was there before is unchanged. Make room" in done.err
        assert {path: path.read_bytes() for path in command[-1].iterdir()} == before


def test_strength_0_is_the_initial_words_and_seeds_repeat(run, model, token, tmp_path):
    def draw(name: str, prompt: str, *options: object) -> np.ndarray:
        done = run("sample", "--model", model, "--prompt", prompt, "--out", tmp_path / name, "--views", 2, *options)
        assert done.code == 0, done.err
        return np.stack([pixels(tmp_path / name / f"view_00{i}.png") for i in range(2)])

    words = draw("words", "a red hat")
    assert np.array_equal(words, draw("again", "a red hat"))
    assert np.array_equal(words, draw("zero", "a <thing>", "--token", token, "--strength", 0))
    assert not np.array_equal(words, draw("seed", "a red hat", "--seed", 1))
    assert not np.array_equal(words, draw("negative", "a red hat", "--negative", "blue"))
    assert not np.array_equal(words, draw("guidance", "a red hat", "--guidance", 5))
    assert not np.array_equal(words, draw("steps", "a red hat", "--steps", 2))


@pytest.mark.parametrize("repeated", [True, False])
def test_several_tokens(run, model, token, tmp_path, repeated):
    from dataclasses import replace

    from invert3d_core import tokens

    second = tmp_path / "second.safetensors"
    tokens.save(replace(tokens.load(token), name="second"), second)
    files = ["--token", token, "--token", second] if repeated else ["--token", token, second]
    prompt = "a <thing> and a <second>"
    done = run("sample", "--model", model, "--prompt", prompt, *files, "--steps", 1, "--out", tmp_path, "--json")
    assert done.code == 0, done.err
    assert set(done.report["tokens"]) == {"thing", "second"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--prompt", "a <thong>"], "which is not applied to the model. Known: <thing>"),
        (["--prompt", "a <thing>", "--steps", "0"], "0 sampling steps were asked for"),
        (["--prompt", "a <thing>", "--guidance", "nan"], "The guidance scale is nan; expected a finite number"),
        (["--prompt", "a <thing>", "--guidance", "inf"], "The guidance scale is inf"),
        (["--prompt", "a <thing>", "--rescale", "5"], "The guidance rescale is 5.0; expected 0 to 1"),
        (["--prompt", "a <thing>", "--rescale", "nan"], "The guidance rescale is nan"),
        (["--prompt", "a <thing>", "--strength", "nan"], "The strength of <thing> is nan; expected a finite number"),
        (["--prompt", "a <thing>", "--views", "0"], "--views is 0"),
        (["--prompt", "a <thing>", "--elevation", "95"], "elevation 95° is out of range"),
        (["--prompt", "a <thing>", "--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--prompt", "a <thing>", "--model", "nowhere"], "There is no model 'nowhere'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, model, token, tmp_path, options, reason):
    done = run("sample", "--model", model, "--token", token, "--out", tmp_path, "--json", *options)
    assert (done.code, done.out) == (2, "")
    assert reason in done.err
    assert done.err.count("\n") == 1


def test_tokens_that_do_not_fit_are_refused(run, model, other_model, token, tmp_path):
    base = ("sample", "--prompt", "a <thing>", "--out", tmp_path)
    done = run(*base, "--model", other_model, "--token", token)
    assert done.code == 2
    assert "was trained for the text encoder 'tiny', but other has 'other'" in done.err
    done = run(*base, "--model", model, "--token", token, token)
    assert done.code == 2
    assert "Two of the token files are named <thing>" in done.err
