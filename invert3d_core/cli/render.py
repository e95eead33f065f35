"""`invert3d render`: views of a splat from all around."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from . import assets, pictures
from .assets import Axis
from .command import (
    Bar,
    Command,
    InputError,
    OptionalFloat,
    OptionalFloats,
    OptionalInt,
    OptionalText,
    Switch,
    chosen_device,
    writable_folder,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..cameras import Cameras
    from ..splats import GaussianSplats

NEAR, NEAR_SHARE = 0.2, 0.05  # of 3D Gaussian splatting in scene units; of the distance, for small objects
SHEET_COLUMNS = 8


@dataclass(kw_only=True)
class Render(Command):
    """Render a splat from all around: a PNG per view and a contact sheet."""

    file: Positional[Path]
    """A splat file, or the name of a built-in sample."""
    out: Path
    """Folder for view_000.png and so on, and contact_sheet.png; files of these names in it are replaced."""
    views: int = 8
    """Views on each ring, evenly spaced from azimuth 0."""
    azimuths: OptionalFloats = ()
    """Azimuths in degrees instead: 0 looks at the front, 90 at the side of +x."""
    elevations: tuple[float, ...] = (15.0,)
    """A ring for each elevation in degrees; positive looks from above."""
    size: int = 512
    """Width and height of a view in pixels."""
    fov: float = 40.0
    """Vertical field of view in degrees."""
    radius: OptionalFloat = None
    """Distance of the cameras from the middle of the object in scene units; by default the object fills the view."""
    up: Axis = "auto"
    """Axis of the file that points up; auto is what the file states, else -y."""
    front: Axis = "auto"
    """Axis of the file that the front faces; auto is what the file states, else -z."""
    background: str = "white"
    """Color behind the object: a name or #rrggbb."""
    alpha: Switch = False
    """Write transparent pictures instead of a background."""
    sh_degree: OptionalInt = None
    """Highest degree of view-dependent color to draw; by default all there is."""
    backend: Literal["auto", "torch", "gsplat"] = "auto"
    """The rasterizer; auto takes gsplat where it works."""
    device: OptionalText = None
    """Where to draw, such as cpu or cuda; by default CUDA where it works."""

    def run(self) -> None:
        import torch

        began = time.monotonic()
        color = color_of(self.background)
        chosen = chosen_device(self.device)
        device = chosen or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        asset = assets.load(self.file)
        angles = [(azimuth, elevation) for elevation in self.elevations for azimuth in self._ring()]
        cams, stands, distance = self._cameras(asset.splat, angles)
        folder = writable_folder(self.out)
        drawn = self._draw(asset.splat.to(device), cams, max(1e-4, min(NEAR, NEAR_SHARE * distance)), color)
        files = pictures.save_views(folder, drawn)
        sheet = folder / "contact_sheet.png"
        self._save_sheet(sheet, drawn, angles, color)
        self.report(
            {
                "command": "render",
                "file": str(asset.path),
                "splats": len(asset.splat),
                "orientation": {"up": stands[0], "front": stands[1]},
                "fov_y_deg": self.fov,
                "size": self.size,
                "alpha": self.alpha,
                "views": [
                    {"file": str(file), "azimuth_deg": azimuth, "elevation_deg": elevation}
                    for file, (azimuth, elevation) in zip(files, angles, strict=True)
                ],
                "contact_sheet": str(sheet),
                "seconds": round(time.monotonic() - began, 3),
            },
            f"{len(files)} views of {asset.path.name} ({len(asset.splat):,} splats) in {folder}, all in {sheet}",
        )

    def _ring(self) -> list[float]:
        if self.azimuths:
            return list(self.azimuths)
        if self.views < 1:
            raise InputError(f"--views is {self.views}; expected at least 1.")
        return [index * 360.0 / self.views for index in range(self.views)]

    def _cameras(
        self, splat: "GaussianSplats", angles: list[tuple[float, float]]
    ) -> "tuple[Cameras, tuple[str, str], float]":
        """The cameras in the splat's frame, which of its axes are up and front, and the cameras' distance."""
        from ..cameras import fit_radius, fit_sphere, orbit

        if not angles:
            raise InputError("There are no elevations, so no views. Leave --elevations out, or give at least one.")
        sphere = fit_sphere(splat)
        radius = fit_radius(sphere.radius, self.fov, self.size, self.size) if self.radius is None else self.radius
        azimuths, elevations = map(list, zip(*angles, strict=True))
        cams = orbit(azimuths, elevations, radius, self.fov, self.size, self.size)
        stands = assets.orientation(splat, self.up, self.front)
        return stands.into_splat_frame(cams, sphere.center), (stands.up, stands.front), radius

    def _draw(self, splat: "GaussianSplats", cams: "Cameras", near: float, color: "Tensor") -> "Tensor":  # (C,H,W,3|4)
        import torch

        from ..rendering import rasterize

        drawn: list[torch.Tensor] = []
        with Bar("rendering") as bar, torch.no_grad():
            for camera in cams:
                behind = torch.zeros(3) if self.alpha else color
                view = rasterize(splat, camera, behind, self.sh_degree, near, self.backend)
                picture = view.color[0]
                if self.alpha:
                    opacity = view.alpha[0, ..., None]  # (H,W,1)
                    # PNG keeps colors apart from opacity; what was drawn over black is their product.
                    picture = torch.cat([picture / opacity.clamp_min(1e-6), opacity], -1)
                drawn.append(picture.clamp(0, 1).cpu())
                bar(len(drawn), len(cams))
        return torch.stack(drawn)

    def _save_sheet(self, path: Path, drawn: "Tensor", angles: list[tuple[float, float]], color: "Tensor") -> None:
        shown = drawn[..., :3] * drawn[..., 3:] + color * (1 - drawn[..., 3:]) if self.alpha else drawn
        ring = len(angles) // len(self.elevations)
        rows = []
        for start in range(0, len(angles), ring):
            for first in range(start, start + ring, SHEET_COLUMNS):
                part = slice(first, min(first + SHEET_COLUMNS, start + ring))
                turned = ", ".join(f"{azimuth:g}" for azimuth, _ in angles[part])
                rows.append(pictures.SheetRow(f"elevation {angles[first][1]:g}°", f"azimuths {turned}°", shown[part]))
        pictures.save_sheet(path, rows)


def color_of(name: str) -> "torch.Tensor":  # (3,)
    """A color's name or #rrggbb in [0,1]. Raises InputError for anything else."""
    import torch
    from PIL import ImageColor

    try:
        return torch.tensor(ImageColor.getrgb(name)[:3]) / 255
    except ValueError as error:
        raise InputError(f"--background is {name!r}; expected a color such as white, gray or #a0b0c0.") from error
