"""Build the example workflows in ComfyUI's real page, and save them as the page would.

    python tools/make_workflows.py

It starts the ComfyUI that the host tests use, builds each graph by the page's own means, and writes
``workflows/<name>.json``. Needs a Chromium and the test extra. Run it again when a node's widgets change, and
``tools/make_thumbnails.py`` after it.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.host.page import ComfyPage, real_page
from tests.host.server import PACK

WORKFLOWS = PACK / "workflows"
MUTED = 2  # LiteGraph's mode of a node that does not run


@dataclass
class Node:
    """A node of a graph. place, size: pixels of its corner and, where not its own, of itself. inputs: of links, by
    name, (key of the node, name that the page shows for its output).
    """

    type: str
    place: tuple[int, int]
    widgets: dict[str, object] = field(default_factory=dict)
    inputs: dict[str, tuple[str, str]] = field(default_factory=dict)
    title: str = ""
    size: tuple[int, int] | None = None
    mode: int = 0


def note(place: tuple[int, int], size: tuple[int, int], text: str) -> Node:
    return Node("MarkdownNote", place, {"": text}, title="Read me", size=size)


QUICKSTART = {
    "note": note(
        (0, 0),
        (380, 420),
        "## A splat becomes a word\n\n"
        "Press **Run**. The built-in toy model learns a *token* from the splat, two minutes on an ordinary processor, "
        "and draws it from all around, as it is and in red.\n\n"
        "- **Your own splat**: choose it in *Load Gaussian Splat* (ComfyUI's `input` folder). The toy knows a small "
        "world of simple things; a real MVDream checkpoint in `models/mvdream` does the real thing.\n"
        "- **Your own words**: write prompts with `<my_object>`.\n"
        "- **Cancel** whenever you like: *Run* goes on where the training was, and a finished one is never done "
        "twice.\n"
        "- **Keep the token**: select the muted *Save Inversion Token*, press Ctrl+M, and it is saved to "
        "`models/embeddings`, from where *Load Inversion Token* takes it without training.",
    ),
    "splat": Node("Invert3DLoadGaussianSplat", (420, 0), {"file": "robot.ply [sample]"}),
    "model": Node("Invert3DMVDreamLoader", (420, 220), {"model": "built-in toy"}),
    "views": Node(
        "Invert3DRenderOrbitViews",
        (800, 0),
        {"count": 4, "elevations_deg": "20", "azimuth_start_deg": 30},
        {"splat": ("splat", "splat")},
        size=(340, 480),
    ),
    "truth": Node("PreviewImage", (1180, 0), {}, {"images": ("views", "images")}, "The splat", (360, 360)),
    "train": Node(
        "Invert3DTrainInversionToken",
        (800, 540),
        {"name": "my_object"},
        {"mvdream": ("model", "mvdream"), "splat": ("splat", "splat")},
        size=(340, 520),
    ),
    "loss": Node(
        "LossGraphNode",
        (1180, 720),
        {"filename_prefix": "invert3d/loss"},
        {"loss": ("train", "loss")},
        size=(360, 300),
    ),
    "apply": Node(
        "Invert3DTokenApply",
        (1180, 540),
        {},
        {"mvdream": ("model", "mvdream"), "token": ("train", "token")},
        size=(360, 120),
    ),
    "sample": Node(
        "Invert3DMVDreamSampler",
        (1580, 0),
        {"prompt": "a <my_object>", "control_after_generate": "fixed"},
        {"mvdream": ("apply", "mvdream"), "cameras": ("views", "cameras")},
        "The token from the same sides",
        (360, 480),
    ),
    "images": Node(
        "SaveImage",
        (1980, 0),
        {"filename_prefix": "invert3d/token"},
        {"images": ("sample", "images")},
        "The token",
        (360, 480),
    ),
    "edit": Node(
        "Invert3DMVDreamSampler",
        (1580, 540),
        {"prompt": "a red <my_object>", "control_after_generate": "fixed"},
        {"mvdream": ("apply", "mvdream"), "cameras": ("views", "cameras")},
        "The token in other words",
        (360, 480),
    ),
    "edited": Node(
        "SaveImage",
        (1980, 540),
        {"filename_prefix": "invert3d/edited"},
        {"images": ("edit", "images")},
        "The edited token",
        (360, 480),
    ),
    "save": Node(
        "Invert3DSaveInversionToken", (1180, 1080), {}, {"token": ("train", "token")}, size=(360, 150), mode=MUTED
    ),
    "load": Node(
        "Invert3DLoadInversionToken",
        (1580, 1080),
        {"file": "my_object.safetensors"},
        size=(360, 150),
        mode=MUTED,
    ),
}

TEXT_TO_VIEWS = {
    "note": note(
        (0, 0),
        (380, 300),
        "## Words become views\n\n"
        "Press **Run**: four consistent views of what the prompt says.\n\n"
        "The built-in toy knows colors and simple things: *a red car with white roof and black wheels*, "
        "*a green turtle with brown legs and yellow head*, *a blue teapot* …\n\n"
        "**Orbit Cameras** says from where; other elevations (0 to 30) and starts work, and so do more cameras.",
    ),
    "model": Node("Invert3DMVDreamLoader", (420, 0), {"model": "built-in toy"}),
    "orbit": Node(
        "Invert3DOrbitCameras",
        (420, 180),
        {"count": 4, "elevations_deg": "20", "azimuth_start_deg": 30},
        size=(320, 340),
    ),
    "sample": Node(
        "Invert3DMVDreamSampler",
        (780, 0),
        {
            "prompt": "a yellow castle with red roof and brown door",
            "seed": 1,
            "control_after_generate": "fixed",
        },
        {"mvdream": ("model", "mvdream"), "cameras": ("orbit", "cameras")},
        size=(360, 520),
    ),
    "images": Node(
        "SaveImage",
        (1180, 0),
        {"filename_prefix": "invert3d/views"},
        {"images": ("sample", "images")},
        "Views",
        (480, 520),
    ),
}

GRAPHS = {"invert3d_quickstart": QUICKSTART, "text_to_views": TEXT_TO_VIEWS}

BUILD = """([nodes, name]) => {
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
    return JSON.stringify({...app.graph.serialize(), id: name, extra: {}})
}"""


def build(page: ComfyPage, name: str) -> dict:
    """The graph of that name as the page saves it."""
    nodes = {key: vars(node) for key, node in GRAPHS[name].items()}
    return json.loads(page.page.evaluate(BUILD, [nodes, name]))


def main() -> None:
    WORKFLOWS.mkdir(exist_ok=True)
    with real_page() as (_, page):
        for name in GRAPHS:
            file = WORKFLOWS / f"{name}.json"
            text = json.dumps(build(page, name), indent=2, ensure_ascii=False)
            file.write_text(text + "\n", encoding="utf-8")
            print(file.relative_to(PACK))


if __name__ == "__main__":
    main()
