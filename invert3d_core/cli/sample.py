"""`invert3d sample`: views of what a prompt says."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import UseAppendAction

from . import pictures
from .command import Bar, Command, InputError, OptionalFloat, OptionalInt, OptionalText, load_model, writable_folder

if TYPE_CHECKING:
    from ..mvdream import MVDream

SHEET_COLUMNS = 4


@dataclass(kw_only=True)
class Sample(Command):
    """Draw consistent views of a prompt with a multi-view model."""

    model: str
    """toy, or an MVDream checkpoint: a file, or a folder that holds one."""
    prompt: str
    """What to draw, with tokens as <name>."""
    out: Path
    """Folder for view_000.png and so on, and contact_sheet.png; files of these names in it are replaced."""
    token: UseAppendAction[list[tuple[Path, ...]]] = field(default_factory=list)
    """Token files that the prompt may name."""
    strength: float = 1.0
    """Strength of the tokens: 0 stands for their initial words, 1 for what was learned."""
    negative: str = ""
    """What the views should not be."""
    guidance: OptionalFloat = None
    """How closely the prompt is followed; by default the model's own value."""
    rescale: OptionalFloat = None
    """Guidance rescale, 0 to 1, against over-saturated views; by default the model's own value."""
    steps: OptionalInt = None
    """Sampling steps; by default the model's own number."""
    sampler: Literal["ddim", "dpmpp_2m", "euler"] = "ddim"
    """ddim is the published one; dpmpp_2m (DPM-Solver++) and euler often need fewer steps."""
    seed: int = 0
    """Seed of the noise."""
    views: int = 4
    """Views around the object, evenly spaced; models are trained for 4."""
    azimuth: float = 0.0
    """Azimuth of the first view in degrees: 0 looks at the front."""
    elevation: OptionalFloat = None
    """Elevation of all views in degrees; by default the middle of what the model was trained for."""
    device: OptionalText = None
    """Where to draw, such as cpu or cuda; by default CUDA where it works."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of the model's weights; fp16 and bf16 halve the memory and are for GPUs."""

    def run(self) -> None:
        from ..inversion.views import model_orbit

        began = time.monotonic()
        if self.views < 1:
            raise InputError(f"--views is {self.views}; expected at least 1.")
        folder = writable_folder(self.out)
        model = self._with_tokens(load_model(self.model, self.device, self.dtype))
        info = model.info
        elevation = sum(info.elevation_range_deg) / 2 if self.elevation is None else self.elevation
        azimuths = [self.azimuth + index * 360.0 / self.views for index in range(self.views)]
        cams = model_orbit(info, azimuths, elevation)
        guidance = info.guidance_scale if self.guidance is None else self.guidance
        with Bar("drawing") as bar:
            drawn = model.sample(
                self.prompt,
                cams,
                negative=self.negative,
                steps=self.steps,
                guidance_scale=guidance,
                guidance_rescale=self.rescale,
                sampler=self.sampler,
                seed=self.seed,
                progress=bar,
            )
        files = pictures.save_views(folder, drawn)
        sheet = folder / "contact_sheet.png"
        detail = f"{info.title}, guidance {guidance:g}, {bar.total} steps of {self.sampler}, seed {self.seed}"
        first, *others = drawn.split(SHEET_COLUMNS)
        rows = [pictures.SheetRow(self.prompt, detail, first), *(pictures.SheetRow("", "", part) for part in others)]
        pictures.save_sheet(sheet, rows, cell=min(256, info.image_size * 2))
        self.report(
            {
                "command": "sample",
                "model": info.title,
                "prompt": self.prompt,
                "negative": self.negative,
                "tokens": {name: strength for name, (_, strength) in model.tokens.items()},
                "guidance": guidance,
                "steps": bar.total,
                "sampler": self.sampler,
                "seed": self.seed,
                "size": info.image_size,
                "views": [
                    {"file": str(file), "azimuth_deg": azimuth, "elevation_deg": elevation}
                    for file, azimuth in zip(files, azimuths, strict=True)
                ],
                "contact_sheet": str(sheet),
                "device": str(model.device),
                "seconds": round(time.monotonic() - began, 3),
            },
            f"{len(files)} views of {self.prompt!r} in {folder}, all in {sheet}",
        )

    def _with_tokens(self, model: "MVDream") -> "MVDream":
        from .. import tokens

        for path in (path for paths in self.token for path in paths):
            token = tokens.load(path)
            if token.name in model.tokens:
                raise InputError(f"Two of the token files are named <{token.name}>; expected different names.")
            model = model.with_token(token, self.strength)
        return model
