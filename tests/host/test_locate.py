"""Finding a ComfyUI and an interpreter for it; none of these tests needs one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.host import locate
from tests.host.locate import HostNotFound, find_comfyui, find_python, required_packages, torch_requirements


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like a ComfyUI, with requirements that this interpreter has."""
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "requirements.txt").write_text(
        "torch\npytest>=8  # the runner\n\n#non essential dependencies:\nkornia-nowhere\n"
    )
    return folder


def test_named_checkout_comes_first(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(checkout))
    assert find_comfyui() == checkout.resolve()


def test_wrong_name_is_an_error_and_no_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(HostNotFound, match="no ComfyUI"):
        find_comfyui()


def test_host_that_holds_the_pack_comes_before_the_home_folder(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert find_comfyui() is None
    at_home = tmp_path / "home" / "comfy" / "ComfyUI"
    (at_home / "comfy").mkdir(parents=True)
    (at_home / "main.py").touch()
    assert find_comfyui() == at_home.resolve()
    pack = checkout / "custom_nodes" / "pack"
    pack.mkdir(parents=True)
    monkeypatch.chdir(pack)
    assert find_comfyui() == checkout.resolve()


def test_only_essential_requirements_count(checkout: Path) -> None:
    assert required_packages(checkout / "requirements.txt") == ["torch", "pytest"]
    assert torch_requirements(checkout) == [f"torch=={locate.TORCH['torch']}"]


def test_interpreter_that_lacks_something_is_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    assert find_python(checkout) == Path(sys.executable)
    (checkout / "requirements.txt").write_text("no-such-package-anywhere\n")
    with pytest.raises(HostNotFound, match="lacks no-such-package-anywhere.*make host-python"):
        find_python(checkout)
    monkeypatch.setenv("COMFYUI_PYTHON", "/nowhere/python")
    with pytest.raises(HostNotFound, match="no such file"):
        find_python(checkout)


def test_works_as_a_script_without_any_package(checkout: Path) -> None:
    """As the Makefile calls it before anything is installed."""
    environment = os.environ | {"COMFYUI_PATH": str(checkout)}
    run = subprocess.run(
        [sys.executable, "-I", "-S", locate.__file__, "comfyui"], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(checkout.resolve())
