"""The help pictures of saving and fitting splats, for `make_help_pictures.py`: files written and fits done by the core.

That of Orient Splat is the sheet that the node itself makes of the sample.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from invert3d_core import cameras, lift3d, splats
from invert3d_core.cameras import Cameras
from invert3d_core.cli.pictures import SheetRow, save_sheet
from invert3d_core.rendering import rasterize
from tools.camera_pictures import CELL, Stage

FILES = ("robot.ply", "robot.compressed.ply", "robot.spz", "robot.sog")
SHOWN = 4  # views of a row


def save_files(studio: Any, file: Path) -> None:
    stage = Stage()
    views = stage.placed(stage.ring(SHOWN))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            path = Path(folder) / name
            splats.save(stage.splat, path)
            drawn = rasterize(splats.load(path), views).color.clamp(0, 1)
            rows.append(SheetRow(name.partition(".")[2], f"{path.stat().st_size / 1000:.0f} kB", drawn))
    save_sheet(file, rows, (), CELL)


def fit_views(studio: Any, file: Path) -> None:
    stage = Stage()
    given = stage.placed(cameras.concatenate([stage.ring(8, elevation) for elevation in (0.0, 20.0, 45.0)]))
    seen = rasterize(stage.splat, given)
    fitted = lift3d.fit_splats(seen.color.clamp(0, 1), seen.alpha, given).splats
    others: Cameras = stage.placed(cameras.turn(stage.ring(SHOWN, 30.0), 65.0))
    rows = [
        SheetRow("given", f"{SHOWN} of {len(given)} views", seen.color[8 : 8 + 2 * SHOWN : 2].clamp(0, 1)),
        SheetRow("fitted", f"{len(fitted):,} splats, from other sides", rasterize(fitted, others).color.clamp(0, 1)),
    ]
    save_sheet(file, rows, (), CELL)


PICTURES: dict[str, Callable[[Any, Path], None]] = {
    "Invert3DSaveGaussianSplat": save_files,
    "Invert3DSplatFromViews": fit_views,
}
