"""Make the pictures of the nodes' help pages: ``web/docs/pictures/<node id>.jpg``.

    python tools/make_help_pictures.py [--steps N] [NODE ...]

All are drawn by the package itself with the built-in model and samples. Those of the token nodes learn a token first,
which takes minutes. Run it again when the model or a node's drawing changes.
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from invert3d_core import cameras, inversion, mvdream, rendering, splats
from invert3d_core.cameras import Cameras, Orientation
from invert3d_core.cli.pictures import SheetRow, save_sheet
from invert3d_core.inversion.views import model_orbit
from invert3d_core.toy import samples
from invert3d_core.toy.scoring import CAPTION_GUIDANCE, TOKEN_GUIDANCE
from tools import camera_pictures, editing_pictures, splat_pictures

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "web" / "docs" / "pictures"
LARGEST = 30_000  # bytes of a picture: every installation carries all of them
CELL = 112  # pixels of a view
SAMPLE, NAME = "robot", "my_robot"
TURNS = ["0°", "90°", "180°", "270°"]
ELEVATION_DEG = 20.0
SAMPLING_STEPS = 25
INK, SEEN, PAPER = (24, 24, 24), (226, 234, 244), (255, 255, 255)


class Studio:
    """What the pictures have in common: the model, the sample, and the token learned from it, each made once."""

    def __init__(self, steps: int) -> None:
        self.steps = steps  # of the training, 0 for the preset's
        self.previews: dict[int, Tensor] = {}  # step → strip of four views (H,4·W,3)

    @cached_property
    def model(self) -> mvdream.MVDream:
        return mvdream.load("toy")

    @cached_property
    def token(self) -> Any:
        """The token of the sample; its training leaves `previews`."""
        changes = {"steps": self.steps} if self.steps else {}
        config = inversion.preset("recommended", preview_every=20, **changes)

        def keep(step: int, total: int, *, metrics: Any = None, preview: Any = None) -> None:
            if preview is not None:
                self.previews[step] = preview() if callable(preview) else preview
                print(f"  step {step} of {total}")

        words = samples.captions(SAMPLE).initial_words
        return inversion.train_token(
            self.model, sample(SAMPLE), config, name=NAME, initial_words=words, progress=keep
        ).token

    def cameras(self) -> Cameras:
        """Four a quarter turn apart, as the model draws them."""
        return model_orbit(self.model.info, [0.0, 90.0, 180.0, 270.0], ELEVATION_DEG)

    def draw(self, prompt: str, strength: float | None = None) -> Tensor:
        """Four views (4,H,W,3) of a prompt, with the token at a strength known to the model unless that is None."""
        model = self.model if strength is None else self.model.with_token(self.token, strength)
        print(f"  {prompt}" + ("" if strength is None else f" at {strength:g}"))
        guidance = CAPTION_GUIDANCE if strength is None else TOKEN_GUIDANCE
        return model.sample(prompt, self.cameras(), steps=SAMPLING_STEPS, guidance_scale=guidance, seed=1)


def sample(name: str) -> splats.GaussianSplats:
    return splats.load(samples.path(name))


def views(name: str, azimuths_deg: Sequence[float]) -> rendering.Rendering:
    """A built-in sample from these sides on white."""
    splat = sample(name)
    sphere = cameras.fit_sphere(splat)
    distance = cameras.fit_radius(sphere.radius, 40, 256, 256)
    around = cameras.orbit(azimuths_deg, ELEVATION_DEG, distance, fov_y_deg=40, width=256, height=256)
    orientation = Orientation.stated_or_usual(splat.comment)
    return rendering.rasterize(splat, orientation.into_splat_frame(around, sphere.center))


def load_splat(studio: Studio, file: Path) -> None:
    names = samples.names()
    pictures = torch.cat([views(name, [30]).color for name in names])
    save_sheet(file, [SheetRow("Samples", "built in, each a .ply file", pictures)], names, 160)


def orbit_cameras(studio: Studio, file: Path) -> None:
    """A ring seen from above, and two rings from the side, drawn from the very cameras."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (720, 330), PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    ring = cameras.orbit(cameras.azimuths(8), 15, 1.0, fov_y_deg=40, width=64, height=64)
    rings = cameras.orbit([0, 0, 180, 180], [0, 30, 0, 30], 1.0, fov_y_deg=40, width=64, height=64)
    halves = (
        (ring, (180, 160), 0, 2, "count 8, seen from above", "+z", [f"{a:g}°" for a in cameras.azimuths(8)]),
        (rings, (540, 190), 2, 1, "elevations_deg 0, 30, seen from the side", "", ["0°", "30°"] * 2),
    )
    for cams, (x, y), right, down, title, front, labels in halves:
        flip = 1 if down == 2 else -1  # heights grow upwards
        for eye, label in zip(cams.centers, labels, strict=True):
            at = torch.tensor([float(eye[right]), flip * float(eye[down])])
            aside = torch.stack([-at[1], at[0]]) * 24  # as far as the object reaches
            seen = [(x + float(p[0]), y + float(p[1])) for p in (at * 106, aside, -aside)]
            draw.polygon(seen, SEEN)
            draw.circle(seen[0], 6, INK)
            draw.text((x + float(at[0]) * 134, y + float(at[1]) * 134), label, INK, font, anchor="mm")
        draw.circle((x, y), 24, (240, 196, 120))
        draw.text((x, y + (12 if down == 2 else 0)), front, INK, font, anchor="mm")
        draw.text((x, 318), title, INK, font, anchor="ms")
    picture.save(file)


def render_views(studio: Studio, file: Path) -> None:
    seen = views(SAMPLE, [0, 90, 180, 270])
    near, far = seen.depth[seen.alpha > 0.5].aminmax()
    depth = torch.where(seen.alpha > 0.5, 1 - 0.8 * (seen.depth - near) / (far - near), torch.zeros(()))
    rows = [
        SheetRow("images", "", seen.color),
        SheetRow("masks", "1 on the object", seen.alpha[..., None].expand(-1, -1, -1, 3)),
        SheetRow("depth", "drawn bright where near", depth[..., None].expand(-1, -1, -1, 3)),
    ]
    save_sheet(file, rows, TURNS, CELL)


def loader(studio: Studio, file: Path) -> None:
    prompts = ("a red car with white roof and black wheels", "a blue teapot")
    rows = [SheetRow(f"“{prompt}”", "the built-in toy", studio.draw(prompt)) for prompt in prompts]
    save_sheet(file, rows, TURNS, CELL)


def train(studio: Studio, file: Path) -> None:
    learned = studio.draw(f"a <{NAME}>", 1.0)
    early = sorted(studio.previews)[:1]
    rows = [
        SheetRow("The splat", "what is to be learned", views(SAMPLE, [0, 90, 180, 270]).color),
        *(SheetRow(f"Step {step}", "a preview of the training", _strip(studio.previews[step])) for step in early),
        SheetRow("The token", f"drawn from “a <{NAME}>”", learned),
    ]
    save_sheet(file, rows, TURNS, CELL)


def save_token(studio: Studio, file: Path) -> None:
    row = SheetRow(f"<{NAME}>", f"saved as models/embeddings/ {NAME}.safetensors", studio.draw(f"a <{NAME}>", 1.0))
    save_sheet(file, [row], (), CELL)


def load_token(studio: Studio, file: Path) -> None:
    row = SheetRow(f"{NAME}.safetensors", f"loaded, then “a white <{NAME}>”", studio.draw(f"a white <{NAME}>", 1.0))
    save_sheet(file, [row], (), CELL)


def apply_token(studio: Studio, file: Path) -> None:
    details = {
        0.0: f"the words it started from: “{samples.captions(SAMPLE).initial_words}”",
        0.5: "half way",
        1.0: "as learned",
        1.5: "exaggerated",
    }
    rows = [
        SheetRow(f"strength {strength:g}", detail, studio.draw(f"a <{NAME}>", strength))
        for strength, detail in details.items()
    ]
    save_sheet(file, rows, (), CELL)


def sampler(studio: Studio, file: Path) -> None:
    prompts = [f"a <{NAME}>", f"a red <{NAME}>", f"a green <{NAME}>"]
    rows = [SheetRow(f"“{prompt}”", "same seed", studio.draw(prompt, 1.0)) for prompt in prompts]
    save_sheet(file, rows, TURNS, CELL)


PICTURES: dict[str, Callable[[Studio, Path], None]] = {
    "Invert3DLoadGaussianSplat": load_splat,
    "Invert3DOrbitCameras": orbit_cameras,
    "Invert3DRenderOrbitViews": render_views,
    "Invert3DMVDreamLoader": loader,
    "Invert3DMVDreamSampler": sampler,
    "Invert3DTrainInversionToken": train,
    "Invert3DSaveInversionToken": save_token,
    "Invert3DLoadInversionToken": load_token,
    "Invert3DTokenApply": apply_token,
    **editing_pictures.PICTURES,
    **camera_pictures.PICTURES,
    **splat_pictures.PICTURES,
}


def compressed(picture: Path) -> bytes:
    """A picture as the best JPEG file that is no larger than LARGEST."""
    from PIL import Image

    with Image.open(picture) as image:
        for quality in range(90, 30, -5):
            file = io.BytesIO()
            image.convert("RGB").save(file, "JPEG", quality=quality, optimize=True)
            if len(file.getvalue()) <= LARGEST:
                return file.getvalue()
    raise ValueError(f"{picture.name} has too much in it for {LARGEST:,} bytes")


def _strip(preview: Any) -> Tensor:
    """A preview of four views side by side as (4,H,W,3)."""
    strip = torch.as_tensor(preview).float()
    return torch.stack(strip.chunk(4, dim=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nodes", nargs="*", default=list(PICTURES), metavar="NODE", help=f"of: {', '.join(PICTURES)}")
    parser.add_argument("--steps", type=int, default=0, help="of the training; by default the preset's")
    options = parser.parse_args()
    if unknown := set(options.nodes) - PICTURES.keys():
        parser.error(f"no node {', '.join(sorted(unknown))}")
    studio = Studio(options.steps)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for node in options.nodes:
        file = FOLDER / f"{node}.jpg"
        with tempfile.TemporaryDirectory() as folder:
            drawn = Path(folder) / "picture.png"
            PICTURES[node](studio, drawn)
            content = compressed(drawn)
        file.write_bytes(content)
        print(f"{file.relative_to(ROOT)}, {len(content):,} bytes")


if __name__ == "__main__":
    main()
