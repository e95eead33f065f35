"""`invert3d demo`: whole on an untrained model, and in few steps on the built-in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from invert3d_core import tokens
from invert3d_core.cli.demo import edit_prompts
from invert3d_core.mvdream.checkpoint import BUILT_IN
from invert3d_core.toy import samples, scoring

PSNR = ("token_psnr_db", "short_caption_psnr_db", "full_caption_psnr_db")
FILES = ["contact_sheet.png", "report.json", "token.safetensors"]


def check_results(folder: Path, report: dict) -> None:
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert json.loads((folder / "report.json").read_text()) == report
    assert all(0 < report[name] < 60 for name in PSNR)
    assert all(0 <= report[name.replace("psnr_db", "iou")] <= 1 for name in PSNR)
    assert len(report["edits"]) == 3
    assert 0 < report["training_seconds"] + report["drawing_seconds"] <= report["seconds"] + 0.2
    assert report["peak_memory_mb"] is None or 100 < report["peak_memory_mb"] < 4000
    assert set(report["about"]) < set(report)
    token = tokens.load(folder / "token.safetensors")
    assert report["token"] == f"<{token.name}>"


def test_the_whole_story_on_an_untrained_model(run, model, tmp_path):
    folder = tmp_path / "out"
    options = ("--steps", 3, "--noises", 2, "--sampling-steps", 2)
    done = run("demo", "--model", model, "--out", folder, *options, "--json")
    assert done.code == 0, done.err
    report = done.report
    check_results(folder, report)
    assert report["guidance"] == {"token": scoring.TOKEN_GUIDANCE, "captions": scoring.CAPTION_GUIDANCE}
    assert (report["noises"], report["training_steps"], report["sampling_steps"]) == (2, 3, 2)
    assert (report["short_caption"], report["sample"]) == (
        samples.captions(samples.names()[0]).short,
        samples.names()[0],
    )
    assert all(f"[{i}/5]" in done.err for i in range(1, 6))
    # Seven rows: truth, token, three edits, two captions; four views each.
    sheet = np.asarray(Image.open(folder / "contact_sheet.png"))
    assert sheet.shape[0] > 7 * 170 and sheet.shape[1] > 4 * 170
    # The demo may be run again; it then says it to people, and the numbers are the same.
    again = run("demo", "--model", model, "--out", folder, *options)
    assert again.code == 0
    assert "How near the drawn views are" in again.out
    assert all(json.loads((folder / "report.json").read_text())[name] == report[name] for name in PSNR)


def test_stopped_while_drawing_the_training_is_kept(run, model, tmp_path, monkeypatch):
    from invert3d_core.mvdream import drawing

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    options = ("--steps", 2, "--noises", 1, "--sampling-steps", 1, "--out", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "draw_prompts", stopped)
        done = run("demo", "--model", model, *options)
    (checkpoint,) = tmp_path.iterdir()
    assert done.code == 130
    assert f"stopped while drawing; the training is kept in '{checkpoint}'" in done.err
    # Asked for otherwise it starts anew, and leaves that checkpoint alone.
    assert run("demo", "--model", model, *options, "--seed", 1).code == 0
    assert checkpoint.exists()
    assert run("demo", "--model", model, *options).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--sample", "teapot"], "There is no built-in sample 'teapot'"),
        (["--steps", "0"], "setting steps is 0"),
        (["--noises", "0"], "--noises is 0"),
        (["--model", "nowhere"], "There is no model 'nowhere'"),
    ],
)
def test_bad_input_exits_with_2(run, model, tmp_path, options, reason):
    done = run("demo", "--model", model, "--out", tmp_path, "--json", *options)
    assert (done.code, done.out) == (2, "")
    assert reason in done.err.splitlines()[-1]


def test_edits_take_colors_the_asset_does_not_have():
    for name in samples.names():
        captions = samples.captions(name)
        prompts = edit_prompts(captions, "it")
        assert len(prompts) == 3
        assert not {prompt.split()[1] for prompt in prompts} & set(captions.full.split())
        assert all(prompt.endswith(" <it>") and prompt.split()[0] in ("a", "an") for prompt in prompts)


@pytest.mark.skipif(
    not (BUILT_IN["toy"] / "model.safetensors").exists(), reason="the toy model's weights are not here yet"
)
def test_few_steps_on_the_built_in_model_in_an_empty_folder(tmp_path):
    """The story of `make demo` in a process of its own, from no other file than those of the package."""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "invert3d_core", "demo", "--steps", "2", "--noises", "1", "--sampling-steps", "10"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "demo_output" / "report.json").read_text())
    check_results(tmp_path / "demo_output", report)
    # Words alone draw something of the asset, whatever two steps did to the token.
    assert report["full_caption_psnr_db"] > 7
    assert report["full_caption_iou"] > 0.4
