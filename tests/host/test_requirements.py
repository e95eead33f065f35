"""What installing the pack's requirements does to hosts of different ages: all of them start afterwards.

Opt-in, because it installs packages into new environments (a few hundred MB, minutes):
``INVERT3D_TEST_REQUIREMENTS=1 make test PYTEST_ARGS="tests/host/test_requirements.py -s"`` also prints a table.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.host.client import Client
from tests.host.server import PACK, Server
from tests.host.test_pack import NODE_IDS

pytestmark = pytest.mark.skipif(
    os.environ.get("INVERT3D_TEST_REQUIREMENTS") != "1",
    reason="installs packages into new environments: set INVERT3D_TEST_REQUIREMENTS=1",
)

# What each host has before the pack comes: the oldest transformers that ComfyUI takes, later ones, the newest of all.
HOSTS = {
    "transformers 4.50.3": ["transformers==4.50.3"],
    "transformers 4.57.1": ["transformers==4.57.1"],
    "transformers 5": ["transformers>=5"],
    "newest diffusers": ["transformers>=5", "diffusers"],
}
MOVING = ("transformers", "tokenizers", "huggingface_hub", "diffusers")
VERSIONS = (
    "import importlib.metadata as m, json, sys\n"
    "def version(name):\n"
    "    try: return m.version(name)\n"
    "    except m.PackageNotFoundError: return None\n"
    "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
)


def layered_environment(python: Path, folder: Path) -> Path:
    """The interpreter of a new environment that sees all packages of another one except those that move."""
    run(python, "-m", "venv", str(folder))
    found = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
    below = folder / "below"
    below.mkdir()
    for entry in Path(found).iterdir():
        if not entry.name.lower().startswith((*MOVING, "pip", "__pycache__")):
            (below / entry.name).symlink_to(entry)
    new = folder / "bin" / "python"
    own = run(new, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
    (Path(own) / "below.pth").write_text(f"{below}\n")
    return new


def run(*command: object) -> str:
    """What a command printed; AssertionError with its output when it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def versions(python: Path) -> dict[str, str | None]:
    return json.loads(run(python, "-c", VERSIONS, *MOVING))


def lines_of_requirements() -> list[str]:
    lines = (PACK / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("name", HOSTS)
def test_host_starts_after_the_pack_was_installed(name: str, host: tuple[Path, Path], tmp_path: Path) -> None:
    comfyui, python = host
    new = layered_environment(python, tmp_path / "environment")
    pip = (new, "-m", "pip", "--quiet", "--disable-pip-version-check", "install")
    run(*pip, *HOSTS[name])
    before = versions(new)
    for line in lines_of_requirements():  # installers of packs take each line alone
        run(*pip, line)
    after = versions(new)
    print(f"\n| {name} | " + " | ".join(f"{before[part] or '–'} → {after[part]}" for part in MOVING) + " |")

    for part in MOVING:
        old, new_one = before[part], after[part]
        if old is not None:
            assert new_one is not None and old.split(".")[0] == new_one.split(".")[0], f"{part} {old} → {new_one}"
    run(new, "-c", "import transformers, diffusers; from diffusers import UNet2DConditionModel, AutoencoderKL")
    base = tmp_path / "base"
    base.mkdir()
    server = Server(comfyui, new, base)
    server.start()
    try:
        server.check_log()
        client = Client(server.url)
        assert set(NODE_IDS) <= set(client.get("/object_info"))
        drawn = client.succeed(
            {
                "model": client.node("Invert3DMVDreamLoader"),
                "views": client.node(
                    "Invert3DMVDreamSampler", mvdream=["model", 0], prompt="a red car", steps=2, views=4
                ),
                "images": client.node("PreviewImage", images=["views", 0]),
            }
        )
        assert client.images(drawn, "images").shape[0] == 4
    finally:
        server.stop()
