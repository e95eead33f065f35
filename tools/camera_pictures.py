"""The help pictures of the camera nodes, for `make_help_pictures.py`: each is drawn from the very cameras it shows."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from invert3d_core import cameras, rendering, splats
from invert3d_core.cameras import Cameras, Orientation, conversions, paths
from invert3d_core.cli.pictures import SheetRow, save_sheet
from invert3d_core.toy import samples

SAMPLE, FOV, SIDE, CELL = "robot", 40.0, 224, 104


class Stage:
    """The sample, and how far cameras stand from it."""

    def __init__(self) -> None:
        self.splat = splats.load(samples.path(SAMPLE))
        self.sphere = cameras.fit_sphere(self.splat)
        self.stands = Orientation.stated_or_usual(self.splat.comment)
        self.radius = cameras.fit_radius(self.sphere.radius, FOV, SIDE, SIDE)

    def ring(self, count: int, elevation_deg: float = 20.0) -> Cameras:
        return cameras.orbit(cameras.azimuths(count, 20), elevation_deg, self.radius, FOV, SIDE, SIDE)

    def placed(self, cams: Cameras) -> Cameras:
        return self.stands.into_splat_frame(cams, self.sphere.center)

    def seen(self, cams: Cameras) -> Tensor:  # (C,H,W,3)
        return rendering.rasterize(self.splat, self.placed(cams)).color


def camera_path(studio: Any, file: Path) -> None:
    stage, count = Stage(), 7
    lens = (FOV, SIDE, SIDE)
    keys = cameras.concatenate([stage.ring(4)[0], cameras.orbit(200, 60, 0.6 * stage.radius, *lens)])
    films = {
        "turntable": paths.turntable(count, stage.radius, *lens, elevation_deg=20),
        "spiral": paths.spiral(count, (1.3 * stage.radius, 0.7 * stage.radius), *lens, turns=1),
        "keyframes": paths.keyframes(keys, count, easing="in-out"),
    }
    details = {"turntable": "runs on without a cut", "spiral": "height and distance change", "keyframes": "two cameras"}
    rows = [SheetRow(name, details[name], stage.seen(film)) for name, film in films.items()]
    save_sheet(file, rows, [f"frame {index}" for index in range(count)], CELL)


def load_cameras(studio: Any, file: Path) -> None:
    stage = Stage()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "transforms.json"
        cameras.save(stage.placed(stage.ring(5)), path)
        loaded = cameras.load(path)
    row = SheetRow("transforms.json", "what the splat looks like from its cameras", stage.seen(loaded.cameras))
    save_sheet(file, [row], loaded.names, 140)


def to_camera_info(studio: Any, file: Path) -> None:
    stage = Stage()
    headings = ["index 0", "index 1", "index 2", "index -1"]
    save_sheet(file, [SheetRow("all", "camera_info is the one of the index", stage.seen(stage.ring(4)))], headings, 150)


def from_camera_info(studio: Any, file: Path) -> None:
    stage = Stage()
    infos = conversions.to_camera_info(stage.ring(4))
    cams = conversions.from_camera_info(infos, SIDE, SIDE)
    row = SheetRow("cameras", "of a list of four camera_info", stage.seen(cams))
    spots = [", ".join(f"{info['position'][axis]:.1f}" for axis in "xyz") for info in infos]
    save_sheet(file, [row], spots, 150)


def join(studio: Any, file: Path) -> None:
    stage = Stage()
    both = cameras.concatenate([stage.ring(4, 0), stage.ring(4, 60)])
    rows = [SheetRow("first", "", stage.seen(both[:4])), SheetRow("second", "", stage.seen(both[4:]))]
    save_sheet(file, rows, (), CELL)


def select(studio: Any, file: Path) -> None:
    stage = Stage()
    ring = stage.ring(8)
    shown = stage.seen(ring)
    kept = torch.full_like(shown, 0.93)
    kept[1::2] = shown[1::2]
    rows = [SheetRow("cameras", "", shown), SheetRow("selected", "start 1, every 2", kept)]
    save_sheet(file, rows, [str(index) for index in range(8)], 84)


PICTURES: dict[str, Callable[[Any, Path], None]] = {
    "Invert3DCameraPath": camera_path,
    "Invert3DLoadCameras": load_cameras,
    "Invert3DCamerasToCameraInfo": to_camera_info,
    "Invert3DCamerasFromCameraInfo": from_camera_info,
    "Invert3DJoinCameras": join,
    "Invert3DSelectCameras": select,
}
