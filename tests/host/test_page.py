"""ComfyUI's real page with the pack's nodes: what a person builds and clicks there is what runs, and what is seen."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator

from invert3d_core import splats
from tests.host.client import Client
from tests.host.page import ComfyPage
from tests.host.scenes import three_balls
from tests.host.server import PACK, Server

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


@pytest.fixture(params=[False, True], ids=["canvas", "nodes_2"])
def renderer(comfy_page: ComfyPage, request: pytest.FixtureRequest) -> Iterator[bool]:
    """The page with each of its two renderers in turn; False is the canvas, and in place again afterwards."""

    def choose(nodes_2: bool) -> None:
        comfy_page.page.evaluate("value => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', value)", nodes_2)
        comfy_page.open()

    choose(request.param)
    yield request.param
    choose(False)


def open_templates(comfy_page: ComfyPage, pack_folder: str) -> None:
    """The page's template browser, at the templates of the pack."""
    comfy_page.page.evaluate("app.graph.clear()")  # nodes have a badge with the pack's folder
    comfy_page.page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    comfy_page.page.get_by_text(pack_folder, exact=True).first.click(timeout=30_000)


def template(comfy_page: ComfyPage, name: str) -> Locator:
    return comfy_page.page.get_by_test_id(f"template-workflow-{name}")


def test_template_browser_shows_every_workflow_with_its_picture(comfy_page: ComfyPage, server: Server) -> None:
    open_templates(comfy_page, server.pack_folder)
    for file in sorted((PACK / "workflows").glob("*.json")):
        card = template(comfy_page, file.stem)
        card.wait_for(timeout=30_000)
        if file.with_suffix(".jpg").exists():
            picture = card.locator("img").first
            until = time.monotonic() + 30
            while not picture.is_visible():  # it loads when its card comes into view, and cards still move
                assert time.monotonic() < until, f"{file.stem} shows no picture"
                card.evaluate("card => card.scrollIntoView({block: 'center'})")
                comfy_page.page.wait_for_timeout(300)
            assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") >= 512
    comfy_page.open()


# Steps enough to see that everything moves; the seed differs, for a finished training is not done again.
SHORTEN = """seed => {
    const set = (node, name, value) => node.widgets.find(widget => widget.name === name).value = value
    for (const node of app.graph.nodes) {
        if (node.type === "Invert3DTrainInversionToken")
            for (const [name, value] of Object.entries({steps: 4, preview_every: 4, seed})) set(node, name, value)
        if (node.type === "Invert3DMVDreamSampler") set(node, "steps", 2)
    }
    window.invert3dSeen = {previews: [], done: null}
    const api = app.api
    api.addEventListener("b_preview_with_metadata", ({detail}) =>
        window.invert3dSeen.previews.push(app.graph.getNodeById(detail.nodeId)?.type))
    for (const end of ["execution_success", "execution_error", "execution_interrupted"])
        api.addEventListener(end, () => window.invert3dSeen.done = end)
}"""

# Moves the view to the node with this title; where it lies on the screen then.
LOOK_AT = """title => {
    const node = app.graph.nodes.find(node => node.title === title)
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [300 - node.pos[0], 200 - node.pos[1]]
    app.canvas.setDirty(true, true)
    const [left, top] = app.canvasPosToClientPos(node.pos)
    return {x: left, y: top, width: node.size[0], height: node.size[1]}
}"""


def white_share(comfy_page: ComfyPage, title: str) -> float:
    """How much of the node with this title is white, as pictures of objects are and the page is not."""
    area = comfy_page.page.evaluate(LOOK_AT, title)
    comfy_page.page.wait_for_timeout(1500)
    shot = Image.open(io.BytesIO(comfy_page.page.screenshot(clip=area))).convert("L")
    return float((np.asarray(shot) > 240).mean())


def test_quickstart_opens_from_the_template_browser_runs_and_is_seen(
    comfy_page: ComfyPage, server: Server, renderer: bool
) -> None:
    page = comfy_page.page
    open_templates(comfy_page, server.pack_folder)
    template(comfy_page, "invert3d_quickstart").click()
    page.wait_for_function("app.graph.nodes.some(node => node.type === 'Invert3DTrainInversionToken')", timeout=30_000)
    page.wait_for_timeout(2000)
    assert white_share(comfy_page, "The splat") < 0.05
    page.evaluate(SHORTEN, 1 + renderer)
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("window.invert3dSeen.done", timeout=240_000)
    seen = page.evaluate("window.invert3dSeen")
    assert seen["done"] == "execution_success"
    assert "Invert3DMVDreamSampler" in seen["previews"]
    page.wait_for_selector(".invert3d-preview:not([hidden]) img", state="attached")  # the training's
    assert white_share(comfy_page, "The splat") > 0.2
    for title in ("The token", "The edited token"):
        assert white_share(comfy_page, title) > 0.1  # in view: the canvas loads the pictures of what it draws
        width = page.evaluate(
            """title => {
                const node = app.graph.nodes.find(node => node.title === title)
                const shown = document.querySelector(`.lg-node[data-node-id="${node.id}"] img`)
                return (shown ?? node.imgs?.[0])?.naturalWidth
            }""",
            title,
        )
        assert width == 128
    assert comfy_page.errors == []
