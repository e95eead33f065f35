"""`invert3d lift`: pictures with cameras become a splat."""

import contextlib
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from .command import (
    Bar,
    Command,
    InputError,
    OptionalInt,
    OptionalPath,
    OptionalText,
    Switch,
    chosen_device,
    stopping_between_steps,
    writable_folder,
)
from .invert import kept
from .pictures import TRANSFORMS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..cameras import Cameras
    from ..lift3d import FitConfig, FitResult

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(kw_only=True)
class Lift(Command):
    """Fit a splat to pictures with cameras.

    Ctrl-C keeps what was fitted; the same command goes on from there.
    """

    views: Positional[Path]
    """Folder of the pictures, by the names that the cameras' file gives them; transparent ones carry their masks."""
    out: Path
    """The splat's file; its ending says the format, such as .ply."""
    cameras: OptionalPath = None
    """The cameras: transforms.json, a COLMAP model (a folder or .zip), a training's cameras.json, or DTU's cameras.npz;
    by default transforms.json beside the pictures."""
    masks: OptionalPath = None
    """Folder of masks by the names of the pictures, white on the object; by default what is transparent, else what
    differs from a plain background."""
    preset: Literal["recommended", "reference", "mcmc"] = "recommended"
    """Settings: for an object, those of 3D Gaussian splatting, or more detail under a limit through gsplat."""
    max_splats: OptionalInt = None
    """How many splats there may be; by default the preset's."""
    steps: OptionalInt = None
    """Steps of the fit; by default the preset's."""
    sh_degree: OptionalInt = None
    """Degree of view-dependent color, 0 to 4; by default the preset's."""
    seed: int = 0
    """Seed of everything that is drawn."""
    checkpoint: OptionalPath = None
    """File that keeps the state of the fit; by default beside the splat, and removed when that is saved."""
    resume: bool = True
    """Go on from the checkpoint where there is one, or start anew."""
    overwrite: Switch = False
    """Replace a splat file that is there already."""
    device: OptionalText = None
    """Where to fit, such as cpu or cuda; by default CUDA where it works."""

    def run(self) -> None:
        import torch

        from .. import lift3d, splats
        from ..files import locked

        began = time.monotonic()
        # Whatever could spoil the end is looked at before the work.
        checkpoint = self._check_paths()
        config = self._config()
        device = chosen_device(self.device) or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        lift3d.check_device(config, device)
        cams, images, masks, remarks = self._load()
        self.say(
            f"Fitting a splat to {len(cams)} pictures of {cams.width}×{cams.height}: up to {config.max_splats:,} "
            f"splats, {config.steps} steps on {device}."
        )
        with locked(checkpoint):  # the same command may run twice
            moved = None if masks is None else masks.to(device)
            result, first = self._fit(images.to(device), moved, cams, config, checkpoint)
            lost = splats.save(result.splats.to("cpu"), self.out)
            if self.checkpoint is None:
                checkpoint.unlink(missing_ok=True)
        self.report(
            {
                "command": "lift",
                "file": str(self.out),
                "splats": len(result.splats),
                "sh_degree": result.splats.degree,
                "views": len(cams),
                "masks": masks is not None,
                "preset": config.preset,
                "seed": config.seed,
                "steps": len(result.losses),
                "resumed_from_step": first,
                "loss": result.losses[-1],
                "psnr": result.psnr,
                "not_read": remarks,
                "not_kept": lost,
                "device": str(device),
                "seconds": round(time.monotonic() - began, 3),
            },
            f"wrote {len(result.splats):,} splats to {self.out}; they are {result.psnr:.1f} dB from the pictures",
        )

    def _check_paths(self) -> Path:
        """The checkpoint's path, once everything is known to be usable. Raises Invert3DError or OSError."""
        from ..splats import formats

        formats.for_writing(self.out, None)
        if not self.views.is_dir():
            raise InputError(f"'{self.views}' is no folder; expected the folder of the pictures.")
        if self.out.exists() and not self.overwrite:
            raise InputError(f"'{self.out}' exists already. Choose another name, or add --overwrite.")
        checkpoint = self.checkpoint or self.out.with_name(f"{self.out.stem}.checkpoint.safetensors")
        for file in (self.out, checkpoint):
            writable_folder(file.parent)
        return checkpoint

    def _config(self) -> "FitConfig":
        from .. import lift3d

        chosen = {"max_splats": self.max_splats, "steps": self.steps, "sh_degree": self.sh_degree}
        changes = {key: value for key, value in chosen.items() if value is not None}
        return lift3d.preset(self.preset, seed=self.seed, **changes)

    def _load(self) -> "tuple[Cameras, Tensor, Tensor | None, list[str]]":
        """Cameras, pictures (C,H,W,3) on white where they are transparent, masks (C,H,W) if there are any; remarks."""
        import torch

        from .. import cameras

        width, height = usual_size(self.views)
        loaded = cameras.load(self.cameras or self.views / TRANSFORMS, size=(width, height))
        pictures = [read_picture(find(self.views, name), (height, width)) for name in loaded.names]
        colors = torch.stack([picture[..., :3] * picture[..., 3:] + 1 - picture[..., 3:] for picture in pictures])
        masks: Tensor | None = torch.stack([picture[..., 3] for picture in pictures])
        if self.masks is not None:
            folder = self.masks
            masks = torch.stack([read_picture(find(folder, name), (height, width))[..., 0] for name in loaded.names])
        elif bool((masks == 1).all()):
            masks = None
        return loaded.cameras, colors, masks, loaded.remarks

    def _fit(
        self, images: "Tensor", masks: "Tensor | None", cams: "Cameras", config: "FitConfig", checkpoint: Path
    ) -> "tuple[FitResult, int]":
        """The result, and the step it went on from."""
        from .. import lift3d

        with stopping_between_steps() as check, Bar("fitting", check) as bar:
            try:
                result = lift3d.fit_splats(
                    images, masks, cams, config, progress=bar, checkpoint=checkpoint, resume=self.resume
                )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(kept(bar, checkpoint)) from None
        return result, bar.first or 0


def usual_size(folder: Path) -> tuple[int, int]:
    """(width, height) of most pictures in a folder, which may hold a contact sheet, too. Raises InputError if none."""
    from PIL import Image

    sizes: Counter[tuple[int, int]] = Counter()
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in ENDINGS:
            with contextlib.suppress(OSError), Image.open(path) as image:
                sizes[image.size] += 1
    if not sizes:
        raise InputError(f"'{folder}' holds no pictures; expected files ending in {', '.join(ENDINGS)}.")
    return sizes.most_common(1)[0][0]


def find(folder: Path, name: str) -> Path:
    """The picture of a name in a folder: there, or without the folders and the ending that the name has.

    Raises InputError when there is none.
    """
    plain = Path(name.replace("\\", "/"))
    tries = [folder / plain.name, *(folder / (plain.stem + ending) for ending in ENDINGS)]
    if not plain.is_absolute() and ".." not in plain.parts:
        tries.insert(0, folder / plain)
    for path in tries:
        if path.is_file():
            return path
    raise InputError(f"'{folder}' holds no picture '{name}', which the cameras' file names.")


def read_picture(path: Path, size: tuple[int, int] | None = None) -> "torch.Tensor":  # (H,W,4)
    """A picture's colours and opacity in [0,1]. Raises InputError for a damaged file, or another (height, width)."""
    import numpy as np
    import torch
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.asarray(image.convert("RGBA"), dtype=np.float32) / 255)
    except (OSError, SyntaxError) as error:  # Pillow's word for a broken PNG
        raise InputError(f"'{path}' is no picture that can be read ({error}).") from error
    if size is not None and pixels.shape[:2] != size:
        raise InputError(
            f"'{path}' is {pixels.shape[1]}×{pixels.shape[0]}, but most pictures {size[1]}×{size[0]}; expected one "
            "size for all."
        )
    return pixels
