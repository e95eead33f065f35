"""The pack in a real ComfyUI: everything registers, describes itself, and keeps to itself."""

import re
import urllib.request
from pathlib import Path

import pytest

from invert3d_core import splats
from tests.host.client import Client, decode_image
from tests.host.scenes import three_balls
from tests.host.server import PACK, Server
from tools.make_help_pictures import LARGEST
from tools.make_locales import NODE_TEXTS, languages, read

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
def test_node_is_found_by_other_words(client: Client, node_id: str) -> None:
    assert len(set(client.get(f"/object_info/{node_id}")[node_id]["search_aliases"])) >= 2


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_node_has_a_help_page_in_each_language(client: Client, node_id: str) -> None:
    """Under its name, with the picture that `tools/make_help_pictures.py` makes."""
    folder = f"{client.url}/extensions/comfyui-invert3d/docs"
    titles = {"": client.get(f"/object_info/{node_id}")[node_id]["display_name"]}
    titles |= {f"/{language}": read(language, NODE_TEXTS)[node_id]["display_name"] for language in languages()}
    for place, title in titles.items():
        with urllib.request.urlopen(f"{folder}/{node_id}{place}.md", timeout=30) as answer:
            lines = answer.read().decode("utf-8").splitlines()
        assert lines[0] == f"# {title}"
        assert re.fullmatch(rf"!\[[^]]+\]\(pictures/{node_id}\.jpg\)", lines[2])
    with urllib.request.urlopen(f"{folder}/pictures/{node_id}.jpg", timeout=30) as answer:
        content = answer.read()
    assert len(content) <= LARGEST
    assert decode_image(content).std() > 0.05


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
    info = client.get("/object_info/Invert3DLoadGaussianSplat")["Invert3DLoadGaussianSplat"]
    options = info["input"]["required"]["file"][1]["options"]
    samples = [f"{file.name} [sample]" for file in sorted((PACK / "invert3d_core" / "toy" / "samples").glob("*.ply"))]
    assert options[: len(samples)] == samples
    assert "deep/er/z.ply" in options
    assert "picture.png" not in options
