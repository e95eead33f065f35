"""Run the example workflows in a real ComfyUI and make their thumbnails of what they draw.

    python tools/make_thumbnails.py [NAME ...]

It starts the ComfyUI that the host tests use, lets its page turn each workflow into a prompt, runs that in full (the
quickstart trains a token: minutes), and writes ``workflows/<name>.jpg``. Needs a Chromium and the test extra.
"""

import argparse
import io
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.host.client import Client
from tests.host.page import real_page
from tests.host.server import PACK

SIDE = 768  # the page draws thumbnails square and scales them down
RUN_SECONDS = 1800
# Titles of the nodes whose views make the picture, a row each; one alone fills a square of 2 × 2.
ROWS = {"invert3d_quickstart": ["The splat", "The token", "The edited token"], "text_to_views": ["Views"]}


def views_of(client: Client, prompt: dict, titles: list[str]) -> list[list[Image.Image]]:
    """The views that the nodes with these titles show once the prompt has run."""
    run = client.succeed(prompt, timeout=RUN_SECONDS)
    ids = [next(key for key, node in prompt.items() if node["_meta"]["title"] == title) for title in titles]
    return [
        [Image.open(io.BytesIO(client.file(saved))).convert("RGB") for saved in run.outputs[node_id]["images"]]
        for node_id in ids
    ]


def compose(rows: list[list[Image.Image]]) -> Image.Image:
    """A white square with the views in their rows; a single row of four is broken into two."""
    if len(rows) == 1:
        rows = [rows[0][:2], rows[0][2:4]]
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
