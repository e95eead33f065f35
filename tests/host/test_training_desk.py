"""The training desk and the orbit picker in ComfyUI's real page, with both of its renderers."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch

from invert3d_core import splats, tokens
from invert3d_core.toy.assets import draw
from tests.host.client import Client, decode_image
from tests.host.page import ComfyPage
from tests.host.server import Server

PANEL = ".invert3d.training"
PICKER = ".invert3d.picker"
FAR = 2000  # steps: more than a test waits for

BUILD = """([steps, name]) => {
    app.graph.clear()
    const add = (type, position, values) => {
        const node = LiteGraph.createNode(type)
        node.pos = position
        app.graph.add(node)
        for (const [name, value] of Object.entries(values)) node.widgets.find(w => w.name === name).value = value
        return node
    }
    const link = (from, output, to, input) => from.connect(from.findOutputSlot(output), to, to.findInputSlot(input))
    const model = add("Invert3DMVDreamLoader", [0, 0], {})
    const load = add("Invert3DLoadGaussianSplat", [0, 200], {file: "desk.ply"})
    const train = add("Invert3DTrainInversionToken", [300, 0], {steps, name, vectors: 2, preview_every: 4})
    const save = add("Invert3DSaveInversionToken", [700, 0], {})
    link(model, "mvdream", train, "mvdream")
    link(load, "splat", train, "splat")
    link(train, "token", save, "token")
    app.canvas.ds.offset = [80, 60]
    app.canvas.ds.scale = 0.7
    // As a click would: the page keeps its draft of the graph, which a reload brings back.
    const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker
    ;(tracker.captureCanvasState ?? tracker.checkState).call(tracker)
    return train.id
}"""

PICKERS = """() => {
    app.graph.clear()
    const add = (type, position) => {
        const node = LiteGraph.createNode(type)
        node.pos = position
        app.graph.add(node)
        return node
    }
    add("Invert3DRenderOrbitViews", [0, 0])
    add("Invert3DMVDreamSampler", [500, 0])
    app.canvas.ds.offset = [80, 60]
    app.canvas.ds.scale = 0.9
}"""

WIDGETS = """type => Object.fromEntries(
    app.graph.nodes.find(node => node.type === type).widgets.map(widget => [widget.name, widget.value]))"""


@pytest.fixture(scope="module", autouse=True)
def object_to_learn(server: Server) -> None:
    splats.save(draw(5, "chair", "green").splats(2000), server.base / "input" / "desk.ply")


@pytest.fixture(params=["canvas", "vue"])
def desk_page(comfy_page: ComfyPage, server: Server, request: pytest.FixtureRequest) -> Iterator[ComfyPage]:
    """The page with one of its renderers; a training that a failed test leaves behind is cancelled."""
    comfy_page.page.set_viewport_size({"width": 1600, "height": 1100})
    comfy_page.open()
    switch = "on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
    comfy_page.page.evaluate(switch, request.param == "vue")
    comfy_page.errors.clear()
    yield comfy_page
    Client(server.url).interrupt()
    comfy_page.page.evaluate(switch, False)


def trainings(client: Client) -> list[dict]:
    return client.get("/invert3d/trainings")["trainings"]


def wait_for_steps(page: ComfyPage, steps: int) -> None:
    """Until the panel shows a curve of so many losses."""
    page.page.wait_for_function(
        """([panel, steps]) => {
            const path = document.querySelector(panel + " path.raw")?.getAttribute("d") ?? ""
            return path.split(/[ML]/).length > steps
        }""",
        arg=[PANEL, steps],
        timeout=120_000,
    )


def seconds_in(said: str) -> int:
    """A remaining time, read as a person would; AssertionError when it is none."""
    read = re.fullmatch(r"(?:(\d+) h )?(?:(\d+) min|(\d+) s) left", said)
    assert read is not None, f"{said!r} is no remaining time"
    hours, minutes, seconds = (int(part or 0) for part in read.groups())
    return 3600 * hours + 60 * minutes + seconds


def check_validation_curve(page: ComfyPage, validation: list[list[float]]) -> None:
    """The panel draws these (step, loss) pairs as a line and dots of their own, and names the last one."""
    curves = page.page.evaluate(
        """panel => {
            const pointsOf = line => line.split(/[ML]/).slice(1).map(at => at.split(/[ h]/).slice(0, 2).map(Number))
            return Object.fromEntries([...document.querySelectorAll(panel + " path")].map(path => [
                path.getAttribute("class"),
                {
                    points: pointsOf(path.getAttribute("d")),
                    colour: getComputedStyle(path).stroke,
                    width: path.getBoundingClientRect().width,
                }]))
        }""",
        PANEL,
    )
    line = curves["validation"]["points"]
    assert len(line) == len(validation) >= 2 and line == curves["points"]["points"]
    for ((_, loss), (x, y)), ((_, next_loss), (next_x, next_y)) in pairwise(zip(validation, line, strict=True)):
        assert x < next_x and (loss > next_loss) == (y < next_y)  # y goes down
    assert all(0 <= y <= 100 for _, y in line)
    assert curves["validation"]["width"] > 100
    for other in ("raw", "loss"):
        assert curves[other]["points"] != line and curves[other]["colour"] != curves["validation"]["colour"]
    assert float(page.page.inner_text(f"{PANEL} .second b")) == pytest.approx(validation[-1][1], rel=0.01)


def previewed(page: ComfyPage, name: str) -> int:
    """The step whose four views the strip below the curve shows, as it says; they are looked at."""
    image = page.page.locator(f"{PANEL} .invert3d-preview img")
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 512
    assert decode_image(image.screenshot()).std() > 0.05
    said = re.fullmatch(rf"<{name}> at step (\d+)", image.get_attribute("alt") or "")
    assert said is not None
    return int(said[1])


def refused(client: Client, body: object) -> tuple[int, str]:
    """Status and message with which the server refuses to stop a training."""
    with pytest.raises(urllib.error.HTTPError) as refusal:
        client.post("/invert3d/trainings/stop", body)  # type: ignore[arg-type]
    return refusal.value.code, json.load(refusal.value)["error"]


def test_panel_follows_a_training_over_a_reload_to_an_early_end(
    desk_page: ComfyPage, server: Server, client: Client, request: pytest.FixtureRequest
) -> None:
    page = desk_page.page
    name = f"desk_{request.node.callspec.params['desk_page']}"
    node = page.evaluate(BUILD, [FAR, name])
    assert page.query_selector(PANEL) is None
    page.wait_for_timeout(1500)  # the page saves its draft with a delay
    page.evaluate("() => app.queuePrompt(0)")
    wait_for_steps(desk_page, 2)
    wait_for_steps(desk_page, 4)
    page.wait_for_selector(f"{PANEL} .invert3d-preview:not([hidden]) img", timeout=120_000)
    assert previewed(desk_page, name) % 4 == 0
    page.wait_for_function("panel => document.querySelector(panel + ' .invert3d-quiet').textContent", arg=PANEL)
    said = seconds_in(page.inner_text(f"{PANEL} .invert3d-quiet"))
    (running,) = [training for training in trainings(client) if training["name"] == name]
    assert (running["node_id"], running["status"], running["total"]) == (str(node), "training", FAR)
    assert running["workflow"]
    assert running["seconds_left"] / 4 < said < running["seconds_left"] * 4  # the first steps differ
    # Neither the workflow nor the prompt knows of the panel.
    assert "invert3d_training" not in json.dumps(page.evaluate("async () => await app.graphToPrompt()"))

    desk_page.open()
    wait_for_steps(desk_page, 5)
    page.click(f"{PANEL} button")
    page.wait_for_selector(f"{PANEL}[data-status=kept]", timeout=120_000)
    run = client.wait(running["prompt_id"])
    assert run["status"]["status_str"] == "success"
    token = tokens.load(server.base / "models" / "embeddings" / f"{name}.safetensors")
    assert token.vectors.shape[0] == 2 and not torch.equal(token.vectors, token.initial)
    (kept,) = [training for training in trainings(client) if training["name"] == name]
    assert 5 <= kept["step"] < FAR and kept["status"] == "kept"
    assert kept["loss"][-1][0] == kept["step"]
    assert kept["validation"][-1][0] == kept["step"]  # the last vectors had their chance
    best = min(kept["validation"], key=lambda pair: pair[1])
    assert kept["best_step"] == best[0]
    check_validation_curve(desk_page, kept["validation"])
    assert previewed(desk_page, name) == best[0]
    assert page.query_selector(f"{PANEL} button:visible") is None
    assert desk_page.errors == []
    assert refused(client, {"prompt_id": kept["prompt_id"], "node_id": kept["node_id"]})[0] == 409


def test_refusals_say_what_was_wrong(server: Server, client: Client) -> None:
    for body in ([], {}, {"prompt_id": "x"}, {"prompt_id": 1, "node_id": "2"}, "text"):
        status, message = refused(client, body)
        assert status == 400 and "prompt_id" in message
    status, message = refused(client, {"prompt_id": "none", "node_id": "1"})
    assert status == 404 and "GET /invert3d/trainings" in message
    request = urllib.request.Request(server.url + "/invert3d/trainings/stop", b"\xff{", method="POST")
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=60)
    assert refusal.value.code == 400 and "not JSON" in json.load(refusal.value)["error"]


def test_picker_writes_the_ordinary_widgets(desk_page: ComfyPage) -> None:
    page = desk_page.page
    page.evaluate(PICKERS)
    page.wait_for_function("picker => document.querySelectorAll(picker).length === 2", arg=PICKER)
    page.wait_for_timeout(500)  # the nodes are laid out
    before = page.evaluate("async () => (await app.graphToPrompt()).output")
    for type_name, elevation in (("Invert3DRenderOrbitViews", "elevations_deg"), ("Invert3DMVDreamSampler", None)):
        globe = page.locator(f"{PICKER} .invert3d-globe").nth(0 if elevation else 1)
        box = globe.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        position = page.evaluate("type => [...app.graph.nodes.find(n => n.type === type).pos]", type_name)
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 15, y - 10, steps=3)
        page.mouse.up()
        values = page.evaluate(WIDGETS, type_name)
        dragged = values["azimuth_start_deg"]
        assert 5 < dragged < 60
        lifted = float(values[elevation or "elevation_deg"])
        assert 15 < lifted < 60
        # The drag turned the views, and did not move the node.
        assert page.evaluate("type => [...app.graph.nodes.find(n => n.type === type).pos]", type_name) == position
        globe.press("ArrowLeft")
        globe.press("Shift+ArrowDown")
        values = page.evaluate(WIDGETS, type_name)
        assert values["azimuth_start_deg"] == dragged - 5
        assert float(values[elevation or "elevation_deg"]) == lifted - 15
    page.locator(f"{PICKER} input[type=range]").press("End")
    assert page.evaluate(WIDGETS, "Invert3DRenderOrbitViews")["radius"] == 100
    # What is typed is shown, and several rings move together.
    page.evaluate("""() => {
        app.graph.nodes.find(n => n.type === "Invert3DRenderOrbitViews").widgets
            .find(w => w.name === "elevations_deg").value = "0, 30"
    }""")
    page.wait_for_function("() => document.querySelector('.invert3d-values').textContent.includes('0°, 30°')")
    page.locator(f"{PICKER} .invert3d-globe").first.press("ArrowUp")
    assert page.evaluate(WIDGETS, "Invert3DRenderOrbitViews")["elevations_deg"] == "5, 35"
    after = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert {key: sorted(node["inputs"]) for key, node in after.items()} == {
        key: sorted(node["inputs"]) for key, node in before.items()
    }
    assert desk_page.errors == []


def test_pickers_leave_nothing_behind(desk_page: ComfyPage) -> None:
    page = desk_page.page
    page.evaluate(
        """() => {
            window.running = new Set()
            const [set, clear] = [window.setInterval, window.clearInterval]
            window.setInterval = (act, every, ...rest) => {
                const id = set(act, every, ...rest)
                if (every === 200) window.running.add(id)
                return id
            }
            window.clearInterval = id => (window.running.delete(id), clear(id))
            app.graph.clear()
        }"""
    )
    page.evaluate("() => { window.running.clear() }")
    page.evaluate(PICKERS)
    page.wait_for_selector(PICKER)
    assert page.evaluate("() => window.running.size") == 1  # one clock for all
    page.evaluate("() => app.graph.clear()")
    page.wait_for_function("picker => !document.querySelector(picker)", arg=PICKER)
    assert page.evaluate("() => window.running.size") == 0


def test_picker_steps_back_for_cameras_from_a_link(desk_page: ComfyPage) -> None:
    page = desk_page.page
    page.evaluate(PICKERS)
    page.evaluate("""() => {
        const cameras = LiteGraph.createNode("Invert3DOrbitCameras")
        app.graph.add(cameras)
        const views = app.graph.nodes.find(n => n.type === "Invert3DRenderOrbitViews")
        cameras.connect(0, views, views.findInputSlot("cameras"))
    }""")
    page.wait_for_selector(f"{PICKER}[data-linked]")
    page.locator(f"{PICKER} .invert3d-globe").first.press("ArrowLeft")
    assert page.evaluate(WIDGETS, "Invert3DRenderOrbitViews")["azimuth_start_deg"] == 0
