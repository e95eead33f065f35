"""The help pictures of the editing nodes, for `make_help_pictures.py`: each is drawn from splats edited by the core."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from invert3d_core import cameras, rendering, splats
from invert3d_core.cameras import Orientation
from invert3d_core.cli.pictures import SheetRow, save_sheet
from invert3d_core.splats import GaussianSplats, edit
from invert3d_core.toy import samples

SAMPLE, OTHER, SIDE, CELL = "robot", "guitar", 256, 150


class Table:
    """The sample, and a camera before it that does not follow what is done to it."""

    def __init__(self, wider: float = 1.0) -> None:
        self.splat = splats.load(samples.path(SAMPLE))
        self.sphere = cameras.fit_sphere(self.splat)
        self.middle, self.radius = self.sphere.center, self.sphere.radius
        stands = Orientation.stated_or_usual(self.splat.comment)
        distance = wider * cameras.fit_radius(self.radius, 40, SIDE, SIDE)
        self.camera = stands.into_splat_frame(cameras.orbit(25, 15, distance, 40, SIDE, SIDE), self.middle)

    def seen(self, *edited: GaussianSplats) -> Tensor:  # (E,H,W,3)
        return torch.cat([rendering.rasterize(splat, self.camera).color.clamp(0, 1) for splat in edited])


def sheet(file: Path, title: str, pictures: Tensor, headings: Sequence[str]) -> None:
    save_sheet(file, [SheetRow(title, "", pictures)], headings, CELL)


def transform(studio: Any, file: Path) -> None:
    table = Table(1.3)
    turned = edit.transform(table.splat, edit.from_angles(0, 60, 0), center=table.middle)
    smaller = edit.transform(turned, translation=(0.3 * table.radius, 0, 0), scale=0.5, center=table.middle)
    pictures = table.seen(table.splat, turned, smaller)
    sheet(file, "Transform", pictures, ["as it was", "rotate_y 60", "scale 0.5, moved"])


def crop(studio: Any, file: Path) -> None:
    table = Table()
    box = edit.inside_box(table.splat, table.middle, [2 * table.radius, 0.9 * table.radius, 2 * table.radius])
    ball = edit.inside_ellipsoid(table.splat, table.middle, [1.3 * table.radius] * 3)
    parts = [edit.select(table.splat, mask) for mask in (box, ball, ~box)]
    sheet(file, "Crop", table.seen(table.splat, *parts), ["as it was", "box", "sphere", "outside of the box"])


def clean(studio: Any, file: Path) -> None:
    """The sample with what a training would have left around it."""
    table, generator = Table(), torch.Generator().manual_seed(4)
    count = 60
    dust = edit.select(table.splat, torch.arange(count))
    around = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    reach = table.radius * (0.7 + 0.5 * torch.rand(count, 1, generator=generator))
    stretch = 0.01 * table.radius * (1 + 12 * torch.rand(count, 3, generator=generator) ** 6)
    dusty = edit.merge(
        [
            table.splat,
            GaussianSplats(
                table.middle + reach * around,
                stretch,
                torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1),
                0.3 + 0.5 * torch.rand(count, 1, generator=generator),
                edit.tint(dust, (0.6, 0.5, 0.4)).sh,
            ),
        ]
    )
    cleaned = edit.prune(dusty, min_opacity=0.01, max_size=table.radius, floater_tolerance=6)
    sheet(file, "Clean", table.seen(dusty, cleaned), [f"{len(dusty):,} splats", f"{len(cleaned):,} splats"])


def decimate(studio: Any, file: Path) -> None:
    table = Table()
    quarter, tenth = len(table.splat) // 4, len(table.splat) // 10
    fewer = [edit.decimate(table.splat, quarter), edit.decimate(table.splat, tenth)]
    pictures = table.seen(table.splat, *fewer, edit.most_visible(table.splat, quarter))
    names = [f"{len(table.splat):,} splats", f"{quarter:,}, merge", f"{tenth:,}, merge", f"{quarter:,}, drop"]
    sheet(file, "Decimate", pictures, names)


def merge(studio: Any, file: Path) -> None:
    table = Table(1.5)
    other = splats.load(samples.path(OTHER))
    left = edit.transform(table.splat, translation=(-0.6 * table.radius, 0, 0))
    beside = table.middle + torch.tensor([0.8 * table.radius, 0, 0])
    right = edit.transform(edit.normalize(other, table.radius), translation=beside)
    sheet(file, "Join", table.seen(left, right, edit.merge([left, right])), ["splat", "other", "joined"])


def recolor(studio: Any, file: Path) -> None:
    table = Table()
    changed = [
        edit.adjust_colors(table.splat, hue_deg=120),
        edit.tint(table.splat, (0.25, 0.5, 1.0)),
        edit.match_colors(table.splat, edit.splat_statistics(splats.load(samples.path(OTHER)))),
    ]
    names = ["as it was", "hue_deg 120", "tint #4080ff", f"colors of {OTHER}"]
    sheet(file, "Recolor", table.seen(table.splat, *changed), names)


def adjust(studio: Any, file: Path) -> None:
    table = Table()
    changed = [
        edit.gain(table.splat, scale=0.4),
        table.splat,
        edit.gain(table.splat, scale=2),
        edit.gain(table.splat, 0.2),
    ]
    sheet(file, "Adjust", table.seen(*changed), ["size 0.4", "size 1", "size 2", "opacity 0.2"])


def normalize(studio: Any, file: Path) -> None:
    """A splat that lies askew in its file, and what a camera before the origin sees of it."""
    table = Table()
    lying = edit.transform(table.splat, edit.from_angles(-90, 0, 0), (0.4, -0.2, 0.3), 0.6)
    upright = edit.normalize(lying, 1.0, "center", Orientation("-z", "+y"), Orientation("+y", "+z"))
    camera = cameras.orbit(25, 15, cameras.fit_radius(1.0, 40, SIDE, SIDE), 40, SIDE, SIDE)
    pictures = torch.cat([rendering.rasterize(splat, camera).color.clamp(0, 1) for splat in (lying, upright)])
    sheet(file, "Normalize", pictures, ["as it was", "radius 1, y up"])


PICTURES: dict[str, Callable[[Any, Path], None]] = {
    "Invert3DTransformSplat": transform,
    "Invert3DCropSplat": crop,
    "Invert3DCleanSplat": clean,
    "Invert3DDecimateSplat": decimate,
    "Invert3DMergeSplats": merge,
    "Invert3DRecolorSplat": recolor,
    "Invert3DAdjustSplat": adjust,
    "Invert3DNormalizeSplat": normalize,
}
