"""Build the example workflows in ComfyUI's real page, and save them as the page would.

    python tools/make_workflows.py [NAME ...]

It starts the ComfyUI that the host tests use, builds each graph of ``tools/graphs`` by the page's own means, and writes
``workflows/<name>.json``. Needs a Chromium and the test extra. Run it again when a node's widgets change, and
``tools/make_thumbnails.py`` after it.
"""

import argparse
import io
import json
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from invert3d_core import __version__
from invert3d_core.mvdream.known_models import workflow_models
from tests.host.client import Client
from tests.host.page import ComfyPage, real_page
from tests.host.server import PACK
from tools.graphs import GRAPHS
from tools.graphs.node import NOTE
from tools.graphs.tokens import CHECKPOINT

WORKFLOWS = PACK / "workflows"
SIDE = 1024  # of the picture of a graph
OURS, HOST = "invert3d", "comfy-core"  # as the registry calls the packs
DRAWN = ("token_in_core",)  # its picture is the graph: what it draws depends on weights that no one has here

BUILD = """nodes => {
    app.graph.clear()
    const made = {}
    for (const [key, wanted] of Object.entries(nodes)) {
        const node = made[key] = LiteGraph.createNode(wanted.type)
        if (!node) throw new Error(`the page knows no node ${wanted.type}`)
        app.graph.add(node)
        if (wanted.title) node.title = wanted.title
        // The page keeps values of widgets beyond the life of a node with the same number: defaults are set, too.
        const {required = {}, optional = {}} = node.constructor.nodeData?.input ?? {}
        const defaults = {}
        for (const [widget, [, options]] of Object.entries({...required, ...optional}))
            if (options?.default !== undefined) defaults[widget] = options.default
        for (const [widget, value] of Object.entries({...defaults, ...wanted.widgets})) {
            const found = node.widgets.find(w => w.name === widget) ?? (widget === "" ? node.widgets[0] : null)
            if (!found) throw new Error(`${wanted.type} has no widget ${widget}`)
            found.value = value
        }
        node.pos = wanted.place
        node.mode = wanted.mode
        const least = node.computeSize()
        node.setSize(wanted.size ? [0, 1].map(i => Math.max(wanted.size[i], least[i])) : least)
    }
    for (const [key, wanted] of Object.entries(nodes))
        for (const [input, [from, output]] of Object.entries(wanted.inputs)) {
            const slots = [made[from].findOutputSlot(output), made[key].findInputSlot(input)]
            if (slots.includes(-1)) throw new Error(`no link from ${from}.${output} to ${key}.${input}`)
            made[from].connect(slots[0], made[key], slots[1])
        }
    const {id, ...graph} = app.graph.serialize()  // the page gives an id of its own to each graph that is opened
    return JSON.stringify({...graph, extra: {}})
}"""


# Brings the whole graph into a square of the canvas that nothing else of the page covers; where the graph is then.
PICTURE = """side => {
    const [left, top, right, bottom] = app.graph.nodes.reduce(
        ([l, t, r, b], {pos, size}) => [
            Math.min(l, pos[0]), Math.min(t, pos[1] - 30), Math.max(r, pos[0] + size[0]), Math.max(b, pos[1] + size[1])
        ], [Infinity, Infinity, -Infinity, -Infinity])
    const canvas = app.canvas, box = canvas.canvas.getBoundingClientRect()
    const scale = 0.96 * side / Math.max(right - left, bottom - top)
    canvas.deselectAll()
    canvas.ds.scale = scale
    canvas.ds.offset = [(box.width / scale - right - left) / 2, (box.height / scale - bottom - top) / 2]
    canvas.draw(true, true)
    const width = Math.min(side, scale * (right - left) + 24), height = Math.min(side, scale * (bottom - top) + 24)
    return {x: box.left + (box.width - width) / 2, y: box.top + (box.height - height) / 2, width, height}
}"""


def build(page: ComfyPage, name: str, versions: dict[str, str]) -> dict:
    """The graph of that name as the page saves it, with what an installer of missing packs and models looks for.

    versions: pack → its version.
    """
    wanted = GRAPHS[name]
    nodes = {key: {**vars(node), "models": []} for key, node in wanted.items()}
    graph = json.loads(page.page.evaluate(BUILD, nodes))
    for node, made in zip(wanted.values(), sorted(graph["nodes"], key=lambda node: node["id"]), strict=True):
        pack = OURS if node.type.startswith("Invert3D") else HOST
        if node.type != NOTE:  # which the page itself draws
            made["properties"] |= {"cnr_id": pack, "ver": versions[pack]}
        if models := node.models or (workflow_models() if node.type == "Invert3DMVDreamLoader" else []):
            made["properties"]["models"] = models
    return graph


def draw(page: ComfyPage, file: Path) -> None:
    """A picture of the graph that is in the page, on a white square as the other thumbnails are."""
    page.page.set_viewport_size({"width": 2 * SIDE, "height": 2 * SIDE})
    place = page.page.evaluate(PICTURE, SIDE)
    page.page.wait_for_timeout(1000)  # the page moves the texts of widgets after the canvas
    graph = Image.open(io.BytesIO(page.page.screenshot(clip=place))).convert("RGB")
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(graph, ((SIDE - graph.width) // 2, (SIDE - graph.height) // 2))
    square.save(file, quality=90, optimize=True)


def lay_out_files(base: Path) -> list[Path]:
    """Empty files for what the graphs name and a user brings, in a base folder: a page marks what is not there.

    Returns those that were made.
    """
    models = base / "models"
    files = [
        models / "checkpoints" / CHECKPOINT["name"],
        models / "embeddings" / "my_object.safetensors",
        base / "input" / "transforms.json",
    ]
    made = [file for file in files if not file.exists()]
    for file in made:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(GRAPHS), metavar="NAME", help=f"of: {', '.join(GRAPHS)}")
    names = parser.parse_args().names
    if unknown := set(names) - GRAPHS.keys():
        parser.error(f"no graph {', '.join(sorted(unknown))}")
    WORKFLOWS.mkdir(exist_ok=True)
    with real_page() as (server, page):
        lay_out_files(server.base)
        page.open()
        host = Client(server.url).get("/system_stats")["system"]["comfyui_version"]
        versions = {OURS: __version__, HOST: host}
        for name in names:
            file = WORKFLOWS / f"{name}.json"
            text = json.dumps(build(page, name, versions), indent=2, ensure_ascii=False)
            file.write_text(text + "\n", encoding="utf-8")
            print(file.relative_to(PACK))
            if name in DRAWN:
                draw(page, file.with_suffix(".jpg"))
                print(file.with_suffix(".jpg").relative_to(PACK))


if __name__ == "__main__":
    main()
