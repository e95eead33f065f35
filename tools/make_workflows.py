"""Build the example workflows in ComfyUI's real page, and save them as the page would.

    python tools/make_workflows.py

It starts the ComfyUI that the host tests use, builds each graph by the page's own means, and writes
``workflows/<name>.json``. Needs a Chromium and the test extra. Run it again when a node's widgets change, and
``tools/make_thumbnails.py`` after it.
"""

import io
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from invert3d_core import __version__
from invert3d_core.mvdream.known_models import workflow_models
from tests.host.client import Client
from tests.host.page import ComfyPage, real_page
from tests.host.server import PACK

WORKFLOWS = PACK / "workflows"
SIDE = 1024  # of the picture of a graph
MUTED = 2  # LiteGraph's mode of a node that does not run
NOTE = "MarkdownNote"
OURS, HOST = "invert3d", "comfy-core"  # as the registry calls the packs


@dataclass
class Node:
    """A node of a graph. place, size: pixels of its corner and, where not its own, of itself. inputs: of links, by
    name, (key of the node, name that the page shows for its output). models: files that the page offers to download
    when the node names them and they are not there.
    """

    type: str
    place: tuple[int, int]
    widgets: dict[str, object] = field(default_factory=dict)
    inputs: dict[str, tuple[str, str]] = field(default_factory=dict)
    title: str = ""
    size: tuple[int, int] | None = None
    mode: int = 0
    models: list[dict[str, str]] = field(default_factory=list)


def note(place: tuple[int, int], size: tuple[int, int], text: str) -> Node:
    return Node(NOTE, place, {"": text}, title="Read me", size=size)


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
        "- **Keep the token**: select the muted *Save Inversion Token*, press Ctrl+M and **Run**, and it is saved to "
        "`models/embeddings`, from where *Load Inversion Token* takes it without training.",
    ),
    "splat": Node("Invert3DLoadGaussianSplat", (420, 0), {"file": "robot.ply [sample]"}),
    "model": Node("Invert3DMVDreamLoader", (420, 220), {"model": "built-in toy"}),
    "views": Node(
        "Invert3DRenderOrbitViews",
        (800, 0),
        {"count": 4, "elevations_deg": "20", "azimuth_start_deg": 30},
        {"splat": ("splat", "splat")},
        size=(340, 580),
    ),
    "truth": Node("PreviewImage", (1180, 0), {}, {"images": ("views", "images")}, "The splat", (360, 360)),
    "train": Node(
        "Invert3DTrainInversionToken",
        (800, 640),
        {"name": "my_object"},
        {"mvdream": ("model", "mvdream"), "splat": ("splat", "splat")},
        size=(340, 520),
    ),
    "loss": Node(
        "LossGraphNode",
        (1180, 820),
        {"filename_prefix": "invert3d/loss"},
        {"loss": ("train", "loss")},
        size=(360, 300),
    ),
    "apply": Node(
        "Invert3DTokenApply",
        (1180, 640),
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
        (360, 560),
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
        (1580, 640),
        {"prompt": "a red <my_object>", "control_after_generate": "fixed"},
        {"mvdream": ("apply", "mvdream"), "cameras": ("views", "cameras")},
        "The token in other words",
        (360, 560),
    ),
    "edited": Node(
        "SaveImage",
        (1980, 640),
        {"filename_prefix": "invert3d/edited"},
        {"images": ("edit", "images")},
        "The edited token",
        (360, 480),
    ),
    "save": Node(
        "Invert3DSaveInversionToken", (1180, 1190), {}, {"token": ("train", "token")}, size=(360, 150), mode=MUTED
    ),
    "load": Node(
        "Invert3DLoadInversionToken",
        (1580, 1190),
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

CHECKPOINT = {
    "name": "v1-5-pruned-emaonly-fp16.safetensors",
    "url": "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
    "v1-5-pruned-emaonly-fp16.safetensors",
    "directory": "checkpoints",
}

TOKEN_IN_CORE = {
    "note": note(
        (0, 0),
        (380, 420),
        "## A learned token in ComfyUI's own prompts\n\n"
        "A token is an ordinary textual inversion: any SD1.5 checkpoint draws it.\n\n"
        "1. Choose **your own SD1.5 checkpoint** in *Load Checkpoint*.\n"
        "2. Choose the token in *Load Inversion Token*: one that *Save Inversion Token* wrote for MVDream "
        "sd-v1.5-4view, or a `.pt`, `.bin` or `.safetensors` of A1111, diffusers or the Invert3D release, in "
        "`models/embeddings`.\n"
        "3. Press **Run**.\n\n"
        "*Load Inversion Token* gives the text that ComfyUI's prompts write for it, `embedding:name`; linked into the "
        "prompt, a token that was saved anew is drawn anew.\n\n"
        "Tokens of the built-in toy model do not work here: no other text encoder reads them. A token of "
        "sd-v2.1-base-4view wants an SD2.1 checkpoint.",
    ),
    "checkpoint": Node(
        "CheckpointLoaderSimple",
        (0, 480),
        {"ckpt_name": CHECKPOINT["name"]},
        title="Your SD1.5 checkpoint",
        size=(380, 120),
        models=[CHECKPOINT],
    ),
    "token": Node(
        "Invert3DLoadInversionToken", (0, 650), {"file": "my_object.safetensors"}, title="Your token", size=(380, 150)
    ),
    "words": Node(
        "StringConcatenate",
        (0, 850),
        {"string_a": "a photo of ", "delimiter": ""},
        {"string_b": ("token", "embedding")},
        "Words and token",
        (380, 190),
    ),
    "prompt": Node(
        "CLIPTextEncode",
        (420, 0),
        {},
        {"clip": ("checkpoint", "CLIP"), "text": ("words", "STRING")},
        "Prompt",
        (320, 120),
    ),
    "negative": Node(
        "CLIPTextEncode",
        (420, 180),
        {"text": "blurry, text, watermark"},
        {"clip": ("checkpoint", "CLIP")},
        "Negative prompt",
        (320, 160),
    ),
    "latent": Node("EmptyLatentImage", (420, 400), {"width": 512, "height": 512}, size=(320, 130)),
    "sample": Node(
        "KSampler",
        (420, 590),
        {
            "seed": 1,
            "control_after_generate": "fixed",
            "steps": 25,
            "cfg": 7.5,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
        },
        {
            "model": ("checkpoint", "MODEL"),
            "positive": ("prompt", "CONDITIONING"),
            "negative": ("negative", "CONDITIONING"),
            "latent_image": ("latent", "LATENT"),
        },
        size=(320, 290),
    ),
    "decode": Node(
        "VAEDecode", (420, 940), {}, {"samples": ("sample", "LATENT"), "vae": ("checkpoint", "VAE")}, size=(320, 60)
    ),
    "image": Node(
        "SaveImage",
        (780, 0),
        {"filename_prefix": "invert3d/in_core"},
        {"images": ("decode", "IMAGE")},
        "The token in a picture",
        (520, 1040),
    ),
}

GRAPHS = {"invert3d_quickstart": QUICKSTART, "text_to_views": TEXT_TO_VIEWS, "token_in_core": TOKEN_IN_CORE}
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


def lay_out_files(folder: Path) -> list[Path]:
    """Empty files for what the graphs name and a user brings, below ``models``: a page marks what is not there.

    Returns those that were made.
    """
    files = [folder / "checkpoints" / CHECKPOINT["name"], folder / "embeddings" / "my_object.safetensors"]
    made = [file for file in files if not file.exists()]
    for file in made:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return made


def main() -> None:
    WORKFLOWS.mkdir(exist_ok=True)
    with real_page() as (server, page):
        lay_out_files(server.base / "models")
        page.open()
        host = Client(server.url).get("/system_stats")["system"]["comfyui_version"]
        versions = {OURS: __version__, HOST: host}
        for name in GRAPHS:
            file = WORKFLOWS / f"{name}.json"
            text = json.dumps(build(page, name, versions), indent=2, ensure_ascii=False)
            file.write_text(text + "\n", encoding="utf-8")
            print(file.relative_to(PACK))
            if name in DRAWN:
                draw(page, file.with_suffix(".jpg"))
                print(file.with_suffix(".jpg").relative_to(PACK))


if __name__ == "__main__":
    main()
