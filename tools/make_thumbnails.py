"""Run the example workflows in a real ComfyUI and make their thumbnails of what they draw.

    python tools/make_thumbnails.py [NAME ...]

It starts the ComfyUI that the host tests use, lets its page turn each workflow into a prompt, runs that in full (the
quickstart trains a token: minutes), and writes ``workflows/<name>.jpg``. Needs a Chromium and the test extra.
"""

import argparse
import io
import math
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.host.client import Client
from tests.host.page import real_page
from tests.host.server import PACK

SIDE = 768  # the page draws thumbnails square and scales them down
RUN_SECONDS = 1800
# Titles of the nodes whose views make the picture, a row each; one alone fills a square. A film shows some frames.
ROWS = {
    "invert3d_quickstart": ["The splat", "The token", "The edited token"],
    "text_to_views": ["Views"],
    "splat_convert_and_clean": ["Before", "After"],
    "splat_scene": ["The scene"],
    "views_to_splat": ["The robot", "The splat that was fitted"],
    "turntable_video": ["Create Video"],
    "camera_flight": ["Create Video"],
}
FRAMES = 9  # of a film


def views_of(client: Client, prompt: dict, titles: list[str]) -> list[list[Image.Image]]:
    """The views that the nodes with these titles show, or make a film of, once the prompt has run."""
    ids = [next(key for key, node in prompt.items() if node["_meta"]["title"] == title) for title in titles]
    shown = dict(zip(ids, ids, strict=True))
    for film in (node_id for node_id in ids if prompt[node_id]["class_type"] == "CreateVideo"):
        shown[film] = f"{film} frames"
        prompt[shown[film]] = client.node("PreviewImage", images=prompt[film]["inputs"]["images"])
    run = client.succeed(prompt, timeout=RUN_SECONDS)
    rows = []
    for node_id in ids:
        saved = run.outputs[shown[node_id]]["images"]
        if shown[node_id] != node_id:
            saved = [saved[i * len(saved) // FRAMES] for i in range(FRAMES)]
        rows.append([Image.open(io.BytesIO(client.file(file))).convert("RGB") for file in saved])
    return rows


def compose(rows: list[list[Image.Image]]) -> Image.Image:
    """A white square with the views in their rows; a single row is broken into a square, two are shown by half."""
    if len(rows) == 1:
        (views,) = rows
        side = math.isqrt(len(views))
        rows = [views[i : i + side] for i in range(0, side * side, side)]
    elif len(rows) == 2:
        rows = [row[:2] for row in rows]
    cell = SIDE // max(len(rows), *(len(row) for row in rows))
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    top = (SIDE - cell * len(rows)) // 2
    for i, row in enumerate(rows):
        for j, view in enumerate(row):
            picture.paste(view.resize((cell, cell), Image.Resampling.LANCZOS), (j * cell, top + i * cell))
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(ROWS), metavar="NAME", help=f"of: {', '.join(ROWS)}")
    names = parser.parse_args().names
    if unknown := set(names) - ROWS.keys():
        parser.error(f"no workflow {', '.join(sorted(unknown))}")
    with real_page() as (server, page):
        for name in names:
            prompt = page.prompt_of(PACK / "workflows" / f"{name}.json")
            page.rest()
            file = PACK / "workflows" / f"{name}.jpg"
            compose(views_of(Client(server.url), prompt, ROWS[name])).save(file, quality=90, optimize=True)
            print(f"{file.relative_to(PACK)}, {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
