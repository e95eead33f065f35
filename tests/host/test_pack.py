"""The pack in a real ComfyUI: everything registers, describes itself, and keeps to itself."""

import re
import urllib.request
from pathlib import Path

import pytest

from invert3d_core import splats
from tests.host.client import Client
from tests.host.scenes import three_balls
from tests.host.server import PACK, Server

NODE_IDS = sorted(
    node_id
    for file in (PACK / "nodes").glob("*.py")
    for node_id in re.findall(r'node_id="(\w+)"', file.read_text(encoding="utf-8"))
)

# Widgets that every user of the host knows.
OBVIOUS = {"seed", "steps", "width", "height", "prompt"}


def test_there_are_nodes() -> None:
    assert "Invert3DLoadGaussianSplat" in NODE_IDS


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_node_is_registered_and_describes_itself(client: Client, node_id: str) -> None:
    info = client.object_info(node_id)
    assert info is not None
    assert node_id.startswith("Invert3D")
    assert info["category"].startswith("Invert3D/")
    assert info["python_module"] == "custom_nodes.comfyui-invert3d"
    assert not info["display_name"].startswith("Invert3D")
    assert info["description"].endswith(".") and info["description"].count(". ") == 0, "one sentence"
    for name, (kind, *options) in (info["input"].get("required", {}) | info["input"].get("optional", {})).items():
        is_widget = kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR") or isinstance(kind, list)
        if is_widget and name not in OBVIOUS:
            assert options and options[0].get("tooltip"), f"{name} has no tooltip"


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_node_has_a_help_page_under_its_name(client: Client, node_id: str) -> None:
    address = f"{client.url}/extensions/comfyui-invert3d/docs/{node_id}.md"
    with urllib.request.urlopen(address, timeout=30) as answer:
        title = answer.read().decode("utf-8").splitlines()[0]
    assert title == f"# {client.object_info(node_id)['display_name']}"


def test_core_is_imported_from_the_pack_alone(client: Client, server: Server, input_folder: Path) -> None:
    """After a run, no module of the host is called invert3d_core: what was imported belongs to the pack's folder."""
    splats.save(three_balls(50), input_folder / "isolation.ply")
    run = client.succeed(
        {
            "load": client.node("Invert3DLoadGaussianSplat", file="isolation.ply"),
            "views": client.node("Invert3DRenderOrbitViews", splat=["load", 0], count=1, width=32, height=32),
            "modules": client.node("Invert3DProbeModules", after=["views", 0]),
        }
    )
    modules = run.text("modules").splitlines()
    folder = str(server.base / "custom_nodes" / server.pack_folder)
    assert f"{folder}.invert3d_core.rendering.rasterize" in modules
    assert [name for name in modules if name.split(".")[0] in ("invert3d_core", "tests")] == []


def test_samples_come_first_in_the_list(client: Client, input_folder: Path) -> None:
    splats.save(three_balls(20), input_folder / "deep" / "er" / "z.ply")
    (input_folder / "picture.png").write_bytes(b"no splat")
    (options,) = (
        spec[1]["options"]
        for name, spec in client.object_info("Invert3DLoadGaussianSplat")["input"]["required"].items()
        if name == "file"
    )
    samples = [f"{file.name} [sample]" for file in sorted((PACK / "invert3d_core" / "toy" / "samples").glob("*.ply"))]
    assert options[: len(samples)] == samples
    assert "deep/er/z.ply" in options
    assert "picture.png" not in options
