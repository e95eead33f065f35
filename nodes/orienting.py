"""How a splat stands: seen, chosen, and from then on stated by the splat itself."""

from typing import NamedTuple

import numpy as np
import torch
from comfy_api.latest import Types, io, ui
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..invert3d_core import cameras as core
from ..invert3d_core import rendering
from ..invert3d_core.cameras import Orientation
from ..invert3d_core.splats import GaussianSplats
from ..invert3d_core.splats.edit import most_visible
from ..invert3d_core.splats.orientation import FRONTS, Guess, candidates, stating, turned
from . import host
from .cameras import AXES
from .editing import CATEGORY

CHOICES = 4
AS_CHOSEN = "as chosen"
TURNS = ["0", "90", "180", "270"]

TILE = 256
LINE, MARGIN = 14, 5  # of the labels, in pixels
FRAME = 3
FOV_Y_DEG, ELEVATION_DEG = 30.0, 15.0
NEAR = 0.05  # of the distance: where views begin
PAPER, INK, MARK = (255, 255, 255), (24, 24, 24), (25, 113, 194)
SHADE = (0.91, 0.91, 0.91)  # behind the object
MOST_DRAWN = 100_000  # splats: the pictures are small


def base_stance(guess: Guess, up: str) -> Orientation:
    """The stance that is turned to find the front: a candidate's, or that of the up which is set by hand."""
    return guess.orientation if up == AS_CHOSEN else Orientation(up, FRONTS[up])


def chosen_stance(base: Orientation, turn_deg: int, front: str) -> Orientation:
    """A stance turned about its up, or with the front that is set by hand. ValueError when that is no side of it."""
    if front == AS_CHOSEN:
        return turned(base, turn_deg // 90)
    if front[1] == base.up[1]:
        raise ValueError(f"front is {front!r}, but up is {base.up!r}, on the same axis: choose another front or up")
    return Orientation(base.up, front)


class Tile(NamedTuple):
    """A picture of the sheet: how the object stands in it, what is written below, and whether it is what is chosen."""

    stands: Orientation
    lines: tuple[str, ...]
    marked: bool


def tiles_of(guesses: list[Guess], base: Orientation, chosen: Orientation) -> list[list[Tile]]:
    """The candidates in a row, and below them the one that is turned from its four sides."""
    sides = [turned(base, quarters) for quarters in range(4)]
    return [
        [
            Tile(
                guess.orientation,
                (f"choice {number}: {axes(guess.orientation)}", note(guess)),
                guess.orientation == base,
            )
            for number, guess in enumerate(guesses, 1)
        ],
        [
            Tile(side, (f"turn {turn}: front {side.front}",), side == chosen)
            for side, turn in zip(sides, TURNS, strict=True)
        ],
    ]


def sheet_of(splat: GaussianSplats, rows: list[list[Tile]]) -> Tensor:  # (H,W,3)
    """The pictures in rows with their labels, in [0,1] on the CPU."""
    drawn = most_visible(splat, MOST_DRAWN).to(host.torch_device())
    sphere, font = core.fit_sphere(drawn), ImageFont.load_default(LINE - 1)
    height = TILE + 2 * LINE + 3 * MARGIN
    sheet = Image.new("RGB", (TILE * CHOICES, height * len(rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            host.raise_if_cancelled()
            x, y = column * TILE, row * height
            pixels = view_of(drawn, tile.stands, sphere).mul(255).round().to(torch.uint8)
            sheet.paste(Image.fromarray(pixels.numpy()), (x, y))
            draw.text((x + MARGIN, y + TILE + MARGIN), "\n".join(tile.lines), INK, font)
            if tile.marked:
                draw.rectangle((x, y, x + TILE - 1, y + TILE - 1), outline=MARK, width=FRAME)
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)


def view_of(splat: GaussianSplats, stands: Orientation, sphere: core.Sphere) -> Tensor:
    """A small picture (H,W,3) of the front of an object that stands so, in [0,1] on the CPU."""
    distance = core.fit_radius(sphere.radius, FOV_Y_DEG, TILE, TILE)
    around = core.orbit(0, ELEVATION_DEG, distance, FOV_Y_DEG, TILE, TILE)
    cams = stands.into_splat_frame(around, sphere.center)
    return rendering.rasterize(splat, cams, SHADE, near=NEAR * distance).color[0].clamp(0, 1).cpu()


def axes(stands: Orientation) -> str:
    """A stance in a few words."""
    return f"up {stands.up}, front {stands.front}"


def note(guess: Guess) -> str:
    """How sure a candidate is, as short as a picture is wide."""
    if guess.stated:
        return "stated by the file"
    return f"guessed, {guess.confidence:.0%}" if guess.confidence >= 0.01 else "unlikely"


class OrientSplat(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DOrientSplat",
            display_name="Orient Splat",
            category=CATEGORY,
            description="Shows how a Gaussian splat may stand, and lets you choose; the splats themselves stay as they "
            "are.",
            search_aliases=["up axis", "upright splat", "front of splat", "rotate splat", "guess orientation"],
            is_output_node=True,
            inputs=[
                io.Splat.Input("splat"),
                io.Combo.Input(
                    "choice",
                    options=[str(number) for number in range(1, CHOICES + 1)],
                    default="1",
                    tooltip="Which picture of the upper row stands upright. 1 is what the file states, else what is "
                    "known of such files and the shape suggest.",
                ),
                io.Combo.Input(
                    "turn_deg",
                    options=TURNS,
                    default="0",
                    tooltip="Which picture of the lower row shows the front: degrees about the vertical.",
                ),
                io.Combo.Input(
                    "up",
                    options=[AS_CHOSEN, *AXES],
                    default=AS_CHOSEN,
                    tooltip="The axis of the file that points up, where no picture of the upper row is right.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "front",
                    options=[AS_CHOSEN, *AXES],
                    default=AS_CHOSEN,
                    tooltip="The axis of the file that the front faces, in place of a turn.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Splat.Output(
                    "oriented",
                    display_name="splat",
                    tooltip="States how it stands: up and front on auto follow it in all nodes, and files keep it.",
                ),
                io.Image.Output("pictures", display_name="pictures", tooltip="The candidates, and the chosen one."),
                io.String.Output("info", display_name="info", tooltip="What is chosen and what was guessed, in words."),
            ],
        )

    @classmethod
    def execute(cls, splat: Types.SPLAT, choice: str, turn_deg: str, up: str, front: str) -> io.NodeOutput:
        items, oriented, sheets, lines = host.splat_from_host(splat), [], [], []
        bar = host.HostProgress()
        for item in items:
            guesses = candidates(item, CHOICES)
            base = base_stance(guesses[int(choice) - 1], up)
            chosen = chosen_stance(base, int(turn_deg), front)
            oriented.append(stating(item, chosen))
            sheets.append(sheet_of(item, tiles_of(guesses, base, chosen)))
            first = guesses[0]
            why = f"{note(first)}: {axes(first.orientation)} ({'; '.join(first.reasons)})"
            lines.append(f"{axes(chosen)} chosen; {why}")
            bar(len(sheets), len(items))
        pictures, info = torch.stack(sheets), "\n".join(lines)
        shown = ui.PreviewImage(pictures, cls=cls).as_dict() | {"text": [info]}
        return io.NodeOutput(host.splat_to_host(oriented), host.image_to_host(pictures), info, ui=shown)


NODES = [OrientSplat]
