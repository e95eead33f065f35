"""The command line as a whole: real processes, exit codes, help, what is missing."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import invert3d_core

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("demo", "info", "convert", "render", "invert", "lift", "sample", "model", "token")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def python(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT, check=False)


def test_help_names_every_command_and_imports_nothing_heavy():
    code = (
        "import sys; from invert3d_core.cli.main import main; code = main(sys.argv[1:]); "
        "print(*{'torch', 'numpy', 'PIL', 'diffusers', 'transformers'} & set(sys.modules), file=sys.stderr); "
        "sys.exit(code)"
    )
    for arguments in (["--help"], ["invert", "--help"]):
        done = python("-c", code, *arguments)
        assert (done.returncode, done.stderr.strip()) == (0, "")
    done = python("-m", "invert3d_core", "--help")
    assert done.returncode == 0
    assert all(f"• {name} " in done.stdout for name in NAMES)


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        ([], "Expected one of {demo, info, convert, render, invert, lift, sample, model, token}"),
        (["paint"], "Unrecognized options: paint"),
        (["info"], "Missing from invert3d info: PATH"),
        (["render", "a.ply", "--out", "x", "--count", "0"], "Unrecognized options: --count, 0 (invert3d render"),
        (["render", "a", "--out", "x", "--cuont", "3", "--sise", "4"], "Unrecognized options: --cuont, 3, --sise, 4 ("),
        (["sample", "--model", "toy", "--out", "x"], "Missing from invert3d sample: --prompt"),
        (["demo", "--steps", "many"], "Error parsing --steps: invalid literal"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(run, arguments, start):
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"invert3d: {start}")
    assert done.err.count("\n") == 1
    assert not set("│╭╰─") & set(done.err)
    names = [name for name in arguments[:1] if name in NAMES]
    assert done.err.endswith(f"({' '.join(['invert3d', *names])} --help says more)\n")


def test_version(run):
    assert run("--version").out == f"invert3d {invert3d_core.__version__}\n"


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["info", "ball"]])
def test_a_reader_that_has_seen_enough(ball, arguments):
    """As of ``invert3d info file | head -1``."""
    code = "import sys, time; from invert3d_core.cli.main import main; time.sleep(1); sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *(str(ball) if word == "ball" else word for word in arguments)]
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment) as ran:
        assert ran.stdout and ran.stderr
        ran.stdout.close()
        assert ran.stderr.read() == b""
    assert ran.returncode == 141


def test_every_command_as_a_process_of_its_own_in_another_folder(model, token, ball, tmp_path):
    """Paths are the caller's, stdout is the report alone, and nothing but bars and words for people is on stderr."""
    done = python("-m", "invert3d_core", "info", ball, "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr, json.loads(done.stdout)["kind"]) == (0, "", "splat")

    options = ("--out", "views", "--views", 2, "--size", 32)
    done = python("-m", "invert3d_core", "render", ball, *options, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["views"][1]["file"] == str(Path("views/view_001.png"))
    assert (tmp_path / "views" / "view_001.png").is_file()
    assert "2/2" in done.stderr

    prompt = ("--prompt", "a <thing>", "--token", token)
    done = python(
        *("-m", "invert3d_core", "sample", "--model", model, *prompt, "--out", "pictures", "--json"), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"] == {"thing": 1.0}
    assert all(line.startswith("drawing:") for line in done.stderr.replace("\r", "\n").split("\n") if line)

    done = python("-m", "invert3d_core", "render", "nowhere.ply", "--out", "views", "--json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("invert3d: There is no file 'nowhere.ply'")
    assert done.stderr.count("\n") == 1


def test_a_missing_package_is_named_with_what_to_do(tmp_path):
    code = (
        "import sys; sys.modules['tyro'] = sys.modules['tqdm'] = None; from invert3d_core.cli.main import main; "
        "sys.exit(main(['--help']))"
    )
    done = python("-c", code)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == ("invert3d: the command line needs packages that are not installed: pip install tyro tqdm\n")
    code = (
        "import sys; sys.modules['PIL'] = None; from invert3d_core.cli.main import main; "
        "sys.exit(main(['render', 'robot', '--out', sys.argv[1]]))"
    )
    done = python("-c", code, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "invert3d: the package Pillow is not installed: pip install Pillow\n"


def test_what_the_core_logs_is_a_line_on_stderr_and_logging_is_as_before_afterwards(run, model, tmp_path):
    logger = logging.getLogger("invert3d")
    before = (list(logger.handlers), logger.propagate)
    done = run("sample", "--model", model, "--prompt", "a xylophone", "--out", tmp_path, "--steps", 1, "--json")
    assert done.code == 0
    assert any(line.startswith("invert3d: ") and "xylophone" in line for line in done.err.split("\n"))
    assert (logger.handlers, logger.propagate) == before
