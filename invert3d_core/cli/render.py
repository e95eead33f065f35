"""`invert3d render`: views of a splat from all around, along a path, or from the cameras of a file."""

import io
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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
    OptionalPath,
    OptionalText,
    Switch,
    chosen_device,
    peak_memory_mb,
    writable_folder,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..cameras import Cameras, Orientation, Sphere
    from ..rendering import Rendering
    from ..splats import GaussianSplats

SIZE, MAX_SIZE = 512, 1 << 14  # of a view: where nothing else says it, and at most
MIN_FPS = 0.001  # a film of fewer frames a second is a slip of the hand
ROUND_THE_OBJECT = ("turns", "views", "azimuths", "elevations", "fov", "radius")  # options that no file needs
SPIRAL_END_DEG = 60.0  # where a spiral ends that is told only where it starts
SHEET_COLUMNS, SHEET_VIEWS, SHEET_CELL = 8, 64, 176
DEPTH_LEVELS = 65535  # of a 16-bit PNG
DEPTH_ROOM = 3  # radii behind the middle of the object up to which a PNG can say the depth


class Shot(NamedTuple):
    """What is rendered.

    cams: in the splat's frame. told: what the report says of each. titles, labels: of each, on the contact sheet, where
    labels are numbers of a kind. remarks: of a file of cameras, what was left out or taken otherwise.
    """

    cams: "Cameras"
    told: list[dict[str, Any]]
    titles: list[str]
    labels: list[str]
    kind: str
    remarks: Sequence[str] = ()


@dataclass(kw_only=True)
class Render(Command):
    """Render a splat from all around, along a path or from a file's cameras: PNGs, a contact sheet and the cameras."""

    file: Positional[Path]
    """A splat file, or the name of a built-in sample."""
    out: Path
    """Folder for view_000.png and so on, contact_sheet.png and transforms.json; files of these names are replaced."""
    cameras: OptionalPath = None
    """Cameras to render from: a COLMAP model (a folder or .zip), transforms.json, a training's cameras.json, or DTU's
    cameras.npz, in the frame of the splat's file."""
    path: Literal["rings", "turntable", "spiral", "keyframes"] = "rings"
    """rings: views on rings of elevations. turntable, spiral: frames of a film round the object. keyframes: frames of a
    flight through the cameras of --cameras, in their order there."""
    frames: OptionalInt = None
    """Frames of a film; by default as many as 4 seconds have."""
    fps: float = 24.0
    """Frames a second of a film, told in transforms.json for whoever puts it together."""
    turns: float = 1.0
    """Full circles of a turntable or spiral; negative goes the other way."""
    easing: Literal["linear", "in", "out", "in-out"] = "linear"
    """How the movement of a film starts and ends: evenly, from rest (in), to rest (out), or both."""
    rest_at_keys: Switch = False
    """The easing holds between every two keyframes, so that the camera rests at each; it cannot be linear then."""
    loop: Switch = False
    """The flight returns to the first keyframe, and the film runs on without a cut."""
    views: int = 8
    """Views on each ring, evenly spaced from azimuth 0."""
    azimuths: OptionalFloats = ()
    """Azimuths in degrees instead: 0 looks at the front, 90 at the side of +x. A turntable or spiral starts at the
    first."""
    elevations: tuple[float, ...] = (15.0,)
    """A ring for each elevation in degrees; positive looks from above. A turntable has one; a spiral goes from the
    first to the last, and from a single one to 60."""
    size: OptionalInt = None
    """Longer side of a view in pixels; by default 512, or what the file of cameras says."""
    width: OptionalInt = None
    """Width of the pictures in pixels, for a file of cameras that does not say it; with --height."""
    height: OptionalInt = None
    """Height of the pictures in pixels, for a file of cameras that does not say it; with --width."""
    fov: float = 40.0
    """Vertical field of view in degrees."""
    radius: OptionalFloat = None
    """Distance of the cameras from the middle of the object in scene units; by default the object fills the view."""
    up: Axis = "auto"
    """Axis of the file that points up; auto is what the file states, else -y."""
    front: Axis = "auto"
    """Axis of the file that the front faces; auto is what the file states, else -z."""
    background: tuple[str, ...] = ("white",)
    """Color behind the object: a name or #rrggbb; or one for each view."""
    alpha: Switch = False
    """Write transparent pictures instead of a background."""
    depth: Literal["none", "png", "npy"] = "none"
    """Write the depth along the view axis, 0 where nothing is: as 16-bit PNG, whose unit transforms.json tells, or as
    .npy, float32 in scene units."""
    depth_kind: Literal["expected", "median"] = "expected"
    """expected: the mean over what is seen in a pixel, smooth. median: the splat behind which at most half of the light
    is left, sharp at edges, 0 where more is left; with gsplat it takes as long again."""
    normals: Switch = False
    """Write the normals as PNG: red right, green up, blue towards the camera, gray where nothing is."""
    antialiased: Switch = False
    """Thin splats smaller than a pixel: for splats trained so, and pictures much smaller than those of the training."""
    sh_degree: OptionalInt = None
    """Highest degree of view-dependent color to draw; by default all there is."""
    backend: Literal["auto", "torch", "gsplat"] = "auto"
    """The rasterizer; auto takes gsplat where it works."""
    device: OptionalText = None
    """Where to draw, such as cpu or cuda; by default CUDA where it works."""

    def run(self) -> None:
        import torch

        from .. import cameras

        began = time.monotonic()
        colors = [color_of(name) for name in self.background]
        chosen = chosen_device(self.device)
        device = chosen or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        asset = assets.load(self.file)
        sphere = cameras.fit_sphere(asset.splat)
        stands = assets.orientation(asset.splat, self.up, self.front)
        self._check()
        shot = self._shot(sphere, stands)
        cams = shot.cams
        if len(colors) not in (1, len(cams)):
            raise InputError(
                f"--background names {len(colors)} colors for {len(cams)} views; expected 1, or {len(cams)}."
            )
        if len(colors) == 1:
            colors *= len(cams)
        folder = writable_folder(self.out)
        unit = depth_unit(cams, sphere)
        names = cameras.formats.view_names(len(cams))
        sheet = _Sheet(shot)
        files = []
        with Bar("rendering") as bar, torch.no_grad():
            # One view after the other is written and forgotten, so that ten thousand take the memory of one.
            for index, view in enumerate(self._draw(asset.splat.to(device), cams, sphere, colors)):
                files.append(self._write(folder, names[index], view, unit))
                sheet.take(index, self._shown(view, colors[index]))
                bar(index + 1, len(cams))
        sheet_file = folder / "contact_sheet.png"
        sheet.save(sheet_file)
        kind = {} if self.depth == "none" else {"depth_kind": self.depth_kind}
        more: dict[str, Any] = {"frames": [{k: v for k, v in made.items() if k != "file"} for made in files], **kind}
        if shot.kind == "frames":
            more["fps"] = self.fps
        if self.depth == "png":
            more["depth_unit_scale_factor"] = unit
        cameras.save(cams, folder / pictures.TRANSFORMS, names=names, more=more)
        self.report(
            {
                "command": "render",
                "file": str(asset.path),
                "splats": len(asset.splat),
                "orientation": {"up": stands.up, "front": stands.front},
                "fov_y_deg": self.fov if self.cameras is None else cams.fov_y_deg.tolist(),
                "size": max(cams.width, cams.height),
                "width": cams.width,
                "height": cams.height,
                "alpha": self.alpha,
                **kind,
                **({"depth_unit": unit} if self.depth == "png" else {}),
                "views": [
                    {"file": str(folder / made["file"]), **told} for made, told in zip(files, shot.told, strict=True)
                ],
                "contact_sheet": str(sheet_file),
                "not_read": [*asset.remarks, *shot.remarks],
                "cameras": str(folder / pictures.TRANSFORMS),
                "seconds": round(time.monotonic() - began, 3),
                "peak_memory_mb": peak_memory_mb(),
            },
            f"{len(files)} views of {asset.path.name} ({len(asset.splat):,} splats) in {folder}, seen in {sheet_file}",
        )

    def _check(self) -> None:
        """Raise InputError where options are out of range or do not go together."""
        if self.size is not None and not 1 <= self.size <= MAX_SIZE:
            raise InputError(f"--size is {self.size}; expected 1 to {MAX_SIZE} pixels.")
        if not MIN_FPS <= self.fps < math.inf:
            raise InputError(f"--fps is {self.fps:g}; expected a number from {MIN_FPS}.")
        if self.frames is not None and self.path == "rings":
            raise InputError(
                "--frames is for --path turntable, spiral or keyframes; rings have --views, a file has its cameras."
            )
        if (self.rest_at_keys or self.loop) and self.path != "keyframes":
            raise InputError("--rest-at-keys and --loop are for --path keyframes.")
        if self.depth_kind != "expected" and self.depth == "none":
            raise InputError("--depth-kind is for a depth that is written; say how with --depth png or npy.")
        if self.cameras is not None:
            if unfit := [name for name in ROUND_THE_OBJECT if getattr(self, name) != getattr(Render, name)]:
                raise InputError(f"--{unfit[0]} is for cameras round the object; those of a file stand as it says.")
            if self.path not in ("rings", "keyframes"):
                raise InputError(
                    f"--path {self.path} goes round the object, --cameras stand in a file; give one of them."
                )
        elif self.path == "keyframes":
            raise InputError("--path keyframes flies through the cameras of a file; name it with --cameras.")
        elif not self.elevations:
            raise InputError("There are no elevations, so no views. Leave --elevations out, or give at least one.")

    # ----------------------------------------------------------------------------------------------------- the cameras

    def _shot(self, sphere: "Sphere", stands: "Orientation") -> Shot:
        from ..cameras import fit_radius

        if self.cameras is not None:
            return self._flight(self.cameras) if self.path == "keyframes" else self._from_file(self.cameras)
        size = SIZE if self.size is None else self.size
        radius = fit_radius(sphere.radius, self.fov, size, size) if self.radius is None else self.radius
        shot = self._rings(radius, size) if self.path == "rings" else self._film(radius, size)
        return shot._replace(cams=stands.into_splat_frame(shot.cams, sphere.center))

    def _rings(self, radius: float, size: int) -> Shot:
        from ..cameras import orbit, paths

        if not self.azimuths and not 1 <= self.views <= paths.MAX_FRAMES:
            raise InputError(f"--views is {self.views}; expected 1 to {paths.MAX_FRAMES}.")
        ring = list(self.azimuths) or [index * 360.0 / self.views for index in range(self.views)]
        angles = [(azimuth, elevation) for elevation in self.elevations for azimuth in ring]
        azimuths, elevations = map(list, zip(*angles, strict=True))
        cams = orbit(azimuths, elevations, radius, self.fov, size, size)
        told = [{"azimuth_deg": azimuth, "elevation_deg": elevation} for azimuth, elevation in angles]
        titles = [f"elevation {elevation:g}°" for elevation in elevations]
        return Shot(cams, told, titles, [f"{azimuth:g}°" for azimuth in azimuths], "azimuths")

    def _film(self, radius: float, size: int) -> Shot:
        from ..cameras import paths

        low, *others = self.elevations
        if self.path == "turntable" and others:
            raise InputError(f"--path turntable has one elevation, found {len(self.elevations)}; a spiral has two.")
        count = self._frame_count()
        start = self.azimuths[0] if self.azimuths else 0.0
        if self.path == "turntable":
            cams = paths.turntable(
                count,
                radius,
                self.fov,
                size,
                size,
                elevation_deg=low,
                start_deg=start,
                turns=self.turns,
                easing=self.easing,
            )
        else:
            cams = paths.spiral(
                count,
                radius,
                self.fov,
                size,
                size,
                elevation_deg=(low, others[-1] if others else SPIRAL_END_DEG),
                start_deg=start,
                turns=self.turns,
                easing=self.easing,
            )
        return self._frames(cams)

    def _flight(self, file: Path) -> Shot:
        from ..cameras import paths

        keys = self._from_file(file)
        made = self.out / pictures.TRANSFORMS
        if made.exists() and any(
            given.exists() and given.samefile(made) for given in (file, file / pictures.TRANSFORMS)
        ):
            raise InputError("The flight would replace the file of its keyframes; give --out another folder.")
        cams = paths.keyframes(
            keys.cams,
            self._frame_count(),
            easing=self.easing,
            ease_at="keys" if self.rest_at_keys else "ends",
            closed=self.loop,
        )
        return self._frames(cams)._replace(remarks=keys.remarks)

    def _frame_count(self) -> int:
        from ..cameras import paths

        return paths.frame_count(4.0, self.fps) if self.frames is None else self.frames

    def _frames(self, cams: "Cameras") -> Shot:
        count = len(cams)
        told = [{"seconds": round(index / self.fps, 6)} for index in range(count)]
        return Shot(cams, told, [self.path] * count, list(map(str, range(count))), "frames")

    def _from_file(self, file: Path) -> Shot:
        from .. import cameras

        if (self.width is None) != (self.height is None):
            raise InputError("--width and --height belong together; give both, or neither.")
        wanted = None if self.width is None or self.height is None else (self.width, self.height)
        loaded = cameras.load(file, size=wanted)
        cams = loaded.cameras
        if self.size is not None:
            cams = cams.scaled(self.size)
        numbers = list(map(str, range(len(cams))))
        return Shot(
            cams,
            [{"camera": name} for name in loaded.names],
            [file.name] * len(cams),
            numbers,
            "cameras",
            loaded.remarks,
        )

    # ---------------------------------------------------------------------------------------------------- the pictures

    def _draw(
        self, splat: "GaussianSplats", cams: "Cameras", sphere: "Sphere", colors: "list[Tensor]"
    ) -> "Iterator[Rendering]":
        import torch

        from ..cameras import near_plane
        from ..rendering import rasterize_each

        return rasterize_each(
            splat,
            cams,
            torch.zeros(3) if self.alpha else colors.__getitem__,
            self.sh_degree,
            [near_plane(view, sphere.center) for view in cams],
            self.backend,
            normals=self.normals,
            antialiased=self.antialiased,
        )

    def _write(self, folder: Path, name: str, view: "Rendering", unit: float) -> dict[str, str]:
        """Write what was asked for of a view; the names of the files."""
        made = {"file": name}
        pictures.save_picture(folder / name, pictures.to_pil(self._picture(view)))
        if self.depth != "none":
            made["depth_file_path"] = f"depth{name.removeprefix('view').removesuffix('.png')}.{self.depth}"
            depth = view.depth_median if self.depth_kind == "median" else view.depth
            save_depth(folder / made["depth_file_path"], depth[0], unit)
        if self.normals:
            made["normal_file_path"] = f"normals{name.removeprefix('view')}"
            shown = pictures.to_pil((view.normals[0] + 1) / 2)
            pictures.save_picture(folder / made["normal_file_path"], shown)
        return made

    def _picture(self, view: "Rendering") -> "Tensor":  # (H,W,3|4)
        import torch

        color = view.color[0]
        if self.alpha:
            opacity = view.alpha[0, ..., None]  # (H,W,1)
            # PNG keeps colors apart from opacity; what was drawn over black is their product.
            color = torch.cat([color / opacity.clamp_min(1e-6), opacity], -1)
        return color.clamp(0, 1).cpu()

    def _shown(self, view: "Rendering", color: "Tensor") -> "Tensor":  # (H,W,3)
        """A view for the contact sheet, which is not transparent."""
        shown = view.color[0]
        return shown + color.to(shown) * (1 - view.alpha[0, ..., None]) if self.alpha else shown


class _Sheet:
    """A contact sheet that keeps small pictures alone, and of many views only evenly spread ones."""

    def __init__(self, shot: Shot) -> None:
        self._shot = shot
        total = len(shot.titles)
        count = min(total, SHEET_VIEWS)
        self._kept = {index * total // count for index in range(count)}
        self._pictures: dict[int, Tensor] = {}

    def take(self, index: int, picture: "Tensor") -> None:  # (H,W,3)
        if index in self._kept:
            import numpy as np
            import torch
            from PIL import Image

            size = (SHEET_CELL, max(1, round(SHEET_CELL * picture.shape[0] / picture.shape[1])))
            small = pictures.to_pil(picture).resize(size, Image.Resampling.LANCZOS)
            self._pictures[index] = torch.from_numpy(np.asarray(small).copy()).half() / 255

    def save(self, path: Path) -> None:
        import torch

        rows: list[pictures.SheetRow] = []
        shown, titles = sorted(self._pictures), self._shot.titles
        while shown:
            title = titles[shown[0]]
            part = [index for index in shown[:SHEET_COLUMNS] if titles[index] == title]
            shown = shown[len(part) :]
            detail = f"{self._shot.kind} {', '.join(self._shot.labels[index] for index in part)}"
            rows.append(pictures.SheetRow(title, detail, torch.stack([self._pictures[index] for index in part])))
        pictures.save_sheet(path, rows, cell=SHEET_CELL)


def depth_unit(cams: "Cameras", sphere: "Sphere") -> float:
    """Scene units in one level of a 16-bit depth picture, so that it reaches well behind the object from everywhere."""
    farthest = float((cams.centers - sphere.center).norm(dim=-1).max())
    return (farthest + DEPTH_ROOM * sphere.radius) / DEPTH_LEVELS


def save_depth(path: Path, depth: "Tensor", unit: float) -> None:  # (H,W)
    """A depth picture: .npy in scene units, .png in levels of unit, 0 where nothing is."""
    import numpy as np
    from PIL import Image

    from ..files import write_atomically

    values = depth.detach().float().cpu().numpy()
    if path.suffix == ".npy":
        data = io.BytesIO()
        np.save(data, values)
        write_atomically(path, data.getvalue(), durable=False)
        return
    # What is there is at least level 1, what lies behind the last level is there.
    levels = np.where(values > 0, np.clip(np.round(values / unit), 1, DEPTH_LEVELS), 0)
    pictures.save_picture(path, Image.fromarray(levels.astype(np.uint16)))


def color_of(name: str) -> "torch.Tensor":  # (3,)
    """A color's name or #rrggbb in [0,1]. Raises InputError for anything else."""
    import torch
    from PIL import ImageColor

    try:
        return torch.tensor(ImageColor.getrgb(name)[:3]) / 255
    except ValueError as error:
        raise InputError(f"--background is {name!r}; expected a color such as white, gray or #a0b0c0.") from error
