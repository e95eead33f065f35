"""ComfyUI's real page with the pack's nodes: what a person builds with the mouse is what runs over the API."""

import json
from pathlib import Path

import pytest

from invert3d_core import splats
from tests.host.client import Client
from tests.host.page import ComfyPage
from tests.host.scenes import three_balls
from tests.host.server import Server

BUILD = """() => {
    app.graph.clear()
    const add = (type, values) => {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        for (const [name, value] of Object.entries(values)) node.widgets.find(w => w.name === name).value = value
        return node
    }
    const link = (from, output, to, input) =>
        from.connect(from.findOutputSlot(output), to, to.findInputSlot(input))
    const load = add("Invert3DLoadGaussianSplat", {file: "page.ply"})
    const orbit = add("Invert3DOrbitCameras", {count: 3, elevations_deg: "10", width: 64, height: 64})
    const views = add("Invert3DRenderOrbitViews", {background: "#000000"})
    const save = add("SaveImage", {filename_prefix: "page"})
    link(load, "splat", orbit, "splat")
    link(load, "splat", views, "splat")
    link(orbit, "cameras", views, "cameras")
    link(views, "images", save, "images")
}"""


@pytest.fixture
def workflow(comfy_page: ComfyPage, server: Server) -> dict:
    """A workflow built in the page by its own means, as the page saves it."""
    splats.save(three_balls(100), server.base / "input" / "page.ply")
    comfy_page.open()  # the lists of files are read when the page loads
    comfy_page.page.evaluate(BUILD)
    return comfy_page.workflow_of()


def test_workflow_built_in_the_page_runs(comfy_page: ComfyPage, workflow: dict, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "workflow.json"
    file.write_text(json.dumps(workflow), encoding="utf-8")
    prompt = comfy_page.prompt_of(file)
    (save,) = (node_id for node_id, node in prompt.items() if node["class_type"] == "SaveImage")
    (views,) = (node for node in prompt.values() if node["class_type"] == "Invert3DRenderOrbitViews")
    assert views["inputs"]["background"] == "#000000"
    assert views["inputs"]["up"] == "auto"
    images = client.images(client.succeed(prompt), save)
    assert images.shape == (3, 64, 64, 3)
    assert images[:, 0, 0].max() == 0 and images.max() > 0.5
    assert comfy_page.errors == []


def test_unknown_node_is_named(comfy_page: ComfyPage, workflow: dict) -> None:
    workflow["nodes"][0]["type"] = "Invert3DNoSuchNode"
    with pytest.raises(AssertionError, match="does not know the node types.*Invert3DNoSuchNode"):
        comfy_page.prompt_of(workflow)
