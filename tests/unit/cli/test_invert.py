"""`invert3d invert`, and what Ctrl-C leaves of it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import safetensors
import torch

from invert3d_core import tokens
from invert3d_core.files import locked
from invert3d_core.toy import samples

STEPS = 240  # enough to press Ctrl-C between the first checkpoint, at 100, and the second


def test_a_token_and_what_the_report_says(run, model, ball, tmp_path):
    out = tmp_path / "new" / "cup.safetensors"
    options = ("--words", "blue hat", "--vectors", 3, "--steps", 4, "--seed", 5)
    done = run("invert", ball, "--model", model, "--name", "cup", "--out", out, *options, "--json")
    assert done.code == 0, done.err
    report = done.report
    assert (report["name"], report["token"], report["vectors"]) == ("cup", str(out), 3)
    assert (report["steps"], report["resumed_from_step"], report["stopped_early"]) == (4, 0, False)
    assert [step for step, _ in report["validation_losses"]] == [0, 4]
    token = tokens.load(out)
    assert (token.name, tuple(token.vectors.shape)) == ("cup", (3, 16))
    config = token.provenance["config"]
    assert (config["initial_words"], config["seed"], config["steps"]) == ("blue hat", 5, 4)
    assert [path.name for path in out.parent.iterdir()] == ["cup.safetensors"]  # no checkpoint is left


def test_a_token_is_not_overwritten_unasked(run, model, ball, tmp_path):
    out = tmp_path / "cup.safetensors"
    base = ("invert", ball, "--model", model, "--name", "cup", "--out", out, "--vectors", 1, "--steps", 1)
    assert run(*base).code == 0
    before = out.read_bytes()
    done = run(*base, "--words", "hat")
    assert done.code == 2
    assert "exists already" in done.err
    assert out.read_bytes() == before
    assert run(*base, "--words", "hat", "--overwrite").code == 0
    assert out.read_bytes() != before


def test_a_sample_brings_its_own_words_as_many_as_fit(run, model, tmp_path):
    name = samples.names()[0]
    captions = samples.captions(name)
    short = captions.short.split(" ", 1)[1]
    expected = {None: captions.initial_words, 4: short, 1: "object"}
    for vectors, words in expected.items():
        options = () if vectors is None else ("--vectors", vectors)
        out = tmp_path / f"t{vectors}.safetensors"
        done = run(*("invert", name, "--model", model, "--name", "cup", "--out", out, "--steps", 1, "--json"), *options)
        assert done.code == 0, done.err
        assert done.report["initial_words"] == words


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--name", "my cup"], "cannot be written in a prompt"),
        (["--out", "cup.pt"], "a token is a .safetensors file"),
        (["--out", "my cup.safetensors"], "file name 'my cup'"),
        (["--steps", "0"], "setting steps is 0"),
        (["--vectors", "0"], "setting vectors is 0"),
        (["--vectors", "2", "--words", "a very red hat"], "very, which the model does not know"),
        (["--vectors", "1", "--words", "red hat"], "2 pieces, but the token has 1 vectors"),
        (["--vectors", "60"], "60"),
        (["--up", "-z"], "lie on one axis"),
        (["--checkpoint", "cup.safetensors"], "are both 'cup.safetensors'"),
        (["--model", "nowhere"], "There is no model 'nowhere'"),
        (["--preset", "best"], "best"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, model, ball, tmp_path, monkeypatch, options, reason):
    monkeypatch.chdir(tmp_path)
    base = ("invert", ball, "--model", model, "--name", "cup", "--out", "cup.safetensors", "--steps", 1, "--json")
    done = run(*base, *options)
    assert (done.code, done.out) == (2, "")
    last = done.err.splitlines()[-1]
    assert reason in last
    assert last.startswith("invert3d: ")
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_the_checkpoint_of_another_training_is_left_alone(run, model, ball, tmp_path):
    checkpoint = tmp_path / "run.safetensors"
    base = ("invert", ball, "--model", model, "--name", "cup", "--vectors", 1, "--checkpoint", checkpoint)
    assert run(*base, "--out", tmp_path / "a.safetensors", "--steps", 1).code == 0
    before = checkpoint.read_bytes()
    done = run(*base, "--out", tmp_path / "b.safetensors", "--steps", 2)
    assert done.code == 2
    assert "config.steps was 1 and is now 2" in done.err
    assert checkpoint.read_bytes() == before
    assert run(*base, "--out", tmp_path / "b.safetensors", "--steps", 2, "--no-resume").code == 0
    # One that is finished gives its token at once.
    done = run(*base, "--out", tmp_path / "c.safetensors", "--steps", 2, "--json")
    assert (done.code, done.report["resumed_from_step"], done.report["steps"]) == (0, 2, 2)
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_training_that_another_process_works_on_is_left_to_it(run, model, ball, tmp_path):
    out = tmp_path / "cup.safetensors"
    command = ("invert", ball, "--model", model, "--name", "cup", "--out", out, "--vectors", 1, "--steps", 1)
    with locked(tmp_path / "cup.checkpoint.safetensors"):
        done = run(*command)
    assert done.code == 2
    assert "cup.checkpoint.safetensors' is in use by another process. Wait until" in done.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
    assert run(*command).code == 0


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent to a child as a POSIX signal")
def test_ctrl_c_keeps_the_training_and_the_same_command_ends_with_the_same_token(run, model, ball, tmp_path):
    out = tmp_path / "cup.safetensors"
    checkpoint = tmp_path / "cup.checkpoint.safetensors"
    arguments = ["invert", ball, "--model", model, "--name", "cup", "--words", "hat", "--vectors", 2, "--json"]
    command = [sys.executable, "-m", "invert3d_core", *map(str, arguments), "--steps", str(STEPS), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # Who runs the tests in the background may ignore the signal, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    give_up = time.monotonic() + 120
    while not checkpoint.exists() and child.poll() is None and time.monotonic() < give_up:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=60)
    assert (child.returncode, stdout) == (130, ""), stderr
    with safetensors.safe_open(checkpoint, framework="pt") as file:
        step = json.loads(file.metadata()["invert3d_training"])["step"]
    assert 100 < step < 200  # later than the periodic checkpoint: it was saved because of Ctrl-C
    last = stderr.splitlines()[-1]
    assert last.startswith(f"invert3d: stopped at step {step} of {STEPS}; the training is kept in '{checkpoint}'")
    assert not out.exists()

    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert again.returncode == 0, again.stderr
    report = json.loads(again.stdout)
    assert (report["resumed_from_step"], report["steps"]) == (step, STEPS)
    assert "loss" in again.stderr
    assert "Traceback" not in again.stderr
    assert not checkpoint.exists()

    whole = tmp_path / "whole.safetensors"
    assert torch.get_num_threads() == 1
    assert run(*arguments, "--steps", STEPS, "--out", whole).code == 0
    assert whole.read_bytes() == out.read_bytes()
