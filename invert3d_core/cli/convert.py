"""`invert3d convert`: a splat in another format, and what that format does not keep."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from . import assets
from .assets import Axis
from .command import Bar, Command, InputError, OptionalInt, OptionalText, Switch

if TYPE_CHECKING:
    from ..splats import GaussianSplats


@dataclass(kw_only=True)
class Convert(Command):
    """Write a splat in another format, and say what that format does not keep."""

    source: Positional[Path]
    """A splat file of any format, a folder that is an unbundled .sog, or the name of a built-in sample."""
    destination: Positional[Path]
    """The new file, whose ending says the format: .ply, .compressed.ply, .splat, .spz, .ksplat, .sog or .glb. A name
    meta.json gives an unbundled .sog."""
    format: OptionalText = None
    """Format to write whatever the ending: ply, compressed_ply, splat, spz, ksplat, sog or gltf."""
    sh_degree: OptionalInt = None
    """Highest degree of view-dependent color to keep, 0 to 4; by default all that the format holds."""
    max_splats: OptionalInt = None
    """Keep only so many splats, those that cover most; by default all."""
    upright: Switch = False
    """Turn the splats so that up is +y and the front +z, as viewers of glTF expect; by default they stay."""
    up: Axis = "auto"
    """For --upright, the axis of the source that points up; auto is what it states, else -y."""
    front: Axis = "auto"
    """For --upright, the axis of the source that the front faces; auto is what it states, else -z."""
    keep_order: Switch = False
    """Keep the order of the splats where the format would sort them, which makes files larger."""
    spz_version: Literal[2, 3, 4] = 3
    """Of an .spz: 3 for most viewers, 2 for old ones, 4 for files that load faster (needs the package zstandard)."""
    ksplat_level: Literal[0, 1, 2] = 1
    """Compression of a .ksplat: 0 none, 1 half the size, 2 still smaller colors."""
    overwrite: Switch = False
    """Replace a file that is already there."""

    def run(self) -> None:
        from ..splats import formats, save
        from ..splats.orientation import gltf_remark

        began = time.monotonic()
        form = formats.for_writing(self.destination, self.format)
        self._check_destination()
        asset = assets.load(self.source / "meta.json" if self.source.is_dir() else self.source)
        splat = self._reduced(asset.splat)
        with Bar("compressing") as bar:
            wanted = {
                "sort": not self.keep_order,
                "version": self.spz_version,
                "level": self.ksplat_level,
                "progress": bar,
            }
            lost = save(splat, self.destination, form.name, **form.options(wanted))
        values = {
            "command": "convert",
            "source": str(asset.path),
            "source_format": asset.format,
            "source_bytes": file_size(asset.path),
            "file": str(self.destination),
            "format": form.name,
            "limits": form.limits,
            "bytes": file_size(self.destination),
            "splats": len(splat),
            "left_out": len(asset.splat) - len(splat),
            "sh_degree": splat.degree,
            "upright": self.upright,
            "not_read": asset.remarks,
            "not_kept": lost,
            "seconds": round(time.monotonic() - began, 3),
        }
        size = values["bytes"] / 1e6
        text = f"wrote {len(splat):,} splats to {self.destination} ({form.name}, {size:,.2f} MB)"
        remark = gltf_remark(splat) if form.name == formats.gltf.NAME else None
        if remark is not None:
            self.say(f"{remark}; --upright turns them from there, or from the axis that --up names.")
        self.report(values, text if lost or asset.remarks else f"{text}, everything kept")

    def _check_destination(self) -> None:
        if not self.destination.exists():
            return
        if not self.overwrite:
            raise InputError(f"'{self.destination}' is already there. Name another file, or add --overwrite.")
        if self.source.exists() and self.destination.samefile(self.source):
            raise InputError(f"'{self.destination}' is the source itself. Name another file.")

    def _reduced(self, splat: "GaussianSplats") -> "GaussianSplats":
        from ..cameras import Orientation
        from ..splats.edit import most_visible, normalize, with_degree
        from ..splats.spherical_harmonics import MAX_DEGREE

        if self.sh_degree is not None:
            if not 0 <= self.sh_degree <= MAX_DEGREE:
                raise InputError(f"--sh-degree is {self.sh_degree}; expected 0 to {MAX_DEGREE}.")
            splat = with_degree(splat, min(self.sh_degree, splat.degree))
        if self.max_splats is not None:
            if self.max_splats < 1:
                raise InputError(f"--max-splats is {self.max_splats}; expected at least 1.")
            splat = most_visible(splat, self.max_splats)
        if self.upright:
            stands = assets.orientation(splat, self.up, self.front)
            splat = normalize(splat, None, "keep", stands, Orientation("+y", "+z"))
        return splat


def file_size(path: Path) -> int:
    """Bytes of a splat file; of an unbundled .sog with the pictures that its meta.json names."""
    if path.name.lower() != "meta.json":
        return path.stat().st_size
    parts = [part for part in json.loads(path.read_bytes()).values() if isinstance(part, dict)]
    pictures = {path.parent / name for part in parts for name in part.get("files", ())}
    return path.stat().st_size + sum(picture.stat().st_size for picture in pictures)
