"""Where a ComfyUI and an interpreter that can run it are on this machine.

Standard library only: the Makefile calls it with any Python, before anything is installed.

    python tests/host/locate.py comfyui   # the checkout, or an empty line
    python tests/host/locate.py python    # an interpreter with its requirements; else exit 1 and the reason on stderr
    python tests/host/locate.py torch     # the torch packages a new interpreter for it must get, of one build
"""

import os
import re
import subprocess
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]

# The last release that all three share on the package index; builds of different releases do not load together.
TORCH = {"torch": "2.11.0", "torchvision": "0.26.0", "torchaudio": "2.11.0"}

# ComfyUI starts without what stands below this line of its requirements.
NON_ESSENTIAL = "#non essential"


class HostNotFound(Exception):
    """No ComfyUI, or no interpreter for it; the message says what was tried and what to do."""


def find_comfyui() -> Path | None:
    """The ComfyUI checkout to test in: COMFYUI_PATH, else the one this pack is installed in, else ~/comfy/ComfyUI.

    HostNotFound when COMFYUI_PATH names a folder that holds no ComfyUI: a typing error must not become a skip.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        if not _is_comfyui(Path(named)):
            raise HostNotFound(
                f"COMFYUI_PATH is {named!r}, but there is no ComfyUI (main.py and comfy/) in that folder"
            )
        return Path(named).resolve()
    # PACK is resolved; a pack linked into a host is found by the folder it was called from.
    candidates = [place.parent for place in (PACK.parent, Path.cwd().parent) if place.name == "custom_nodes"]
    candidates.append(Path.home() / "comfy" / "ComfyUI")
    return next((candidate.resolve() for candidate in candidates if _is_comfyui(candidate)), None)


def find_python(comfyui: Path) -> Path:
    """An interpreter that has the requirements of this ComfyUI and of the pack.

    COMFYUI_PYTHON, else the checkout's own .venv or venv, else our .venv-host, else the one that runs this.
    HostNotFound, with what each of them lacks, when none has.
    """
    named = os.environ.get("COMFYUI_PYTHON")
    found = [_python_of(folder) for folder in (comfyui / ".venv", comfyui / "venv", PACK / ".venv-host")]
    candidates = [Path(named).absolute()] if named else [*found, Path(sys.executable)]
    needs = required_packages(comfyui / "requirements.txt") + required_packages(PACK / "requirements.txt")
    tried = []
    for python in candidates:
        if not python.is_file():
            if named:
                raise HostNotFound(f"COMFYUI_PYTHON is {named!r}, but there is no such file")
            continue
        missing = _missing_packages(python, needs)
        if not missing:
            return python
        tried.append(f"{python} lacks {', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}")
    raise HostNotFound(
        f"no interpreter has the requirements of the ComfyUI in {comfyui} ({'; '.join(tried)}): "
        "run `make host-python`, or set COMFYUI_PYTHON"
    )


def torch_requirements(comfyui: Path) -> list[str]:
    """The torch packages this ComfyUI requires, pinned to releases of one build."""
    return [f"{name}=={TORCH[name]}" for name in required_packages(comfyui / "requirements.txt") if name in TORCH]


def required_packages(requirements: Path) -> list[str]:
    """Names of the packages in a requirements file, in lower case, without those that ComfyUI calls non essential."""
    essential = requirements.read_text(encoding="utf-8").split(NON_ESSENTIAL)[0]
    names = (re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line) for line in essential.splitlines())
    return [name.group().lower() for name in names if name]


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def _python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _missing_packages(python: Path, names: list[str]) -> list[str]:
    probe = (
        "import importlib.metadata as m, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: m.version(name)\n"
        "    except m.PackageNotFoundError: print(name)\n"
    )
    run = subprocess.run([str(python), "-c", probe, *names], capture_output=True, text=True, timeout=60)
    return run.stdout.split() if run.returncode == 0 else ["a Python that starts"]


def main(question: str) -> int:
    try:
        comfyui = find_comfyui()
        if question == "comfyui":
            print(comfyui or "")
        elif comfyui is None:
            raise HostNotFound("no ComfyUI found")
        elif question == "python":
            print(find_python(comfyui))
        else:
            print(*torch_requirements(comfyui))
    except HostNotFound as reason:
        print(reason, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
