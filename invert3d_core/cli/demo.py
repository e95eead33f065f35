"""`invert3d demo`: the whole story on the built-in toy model, with numbers: splat, token, views."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import assets, pictures
from .command import (
    Bar,
    Command,
    InputError,
    OptionalInt,
    OptionalText,
    load_model,
    peak_memory_mb,
    stopping_between_steps,
    writable_folder,
)
from .invert import first_step, initial_words, kept

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from ..cameras import Cameras
    from ..inversion import InversionConfig, InversionResult
    from ..mvdream import MVDream
    from ..toy.samples import Captions

FIRST_SEED = 100  # of the noises, as in benchmarks/toy_inversion.py
EDITS = 3
EDIT_COLORS = ("blue", "red", "yellow", "green", "pink")

ABOUT = {
    "token_psnr_db": "foreground PSNR of views drawn from 'a <token>' against the rendered splat, dB: over the union "
    "of both silhouettes on white, all four views pooled, the mean over the noises; higher is better",
    "short_caption_psnr_db": "the same for views drawn from the short caption alone, without the token",
    "full_caption_psnr_db": "the same for views drawn from the full caption, which names every part and its color",
    "token_iou": "overlap of the drawn and the true silhouettes, 0 to 1, the mean over the noises; so for captions",
    "edits": "prompts with a color word before the token; iou_with_token is the overlap of their silhouettes with "
    "those of the unedited token from the same noise: the shape should stay",
    "guidance": "guidance scale of each kind of prompt, each at its own best",
    "views": "azimuths and elevation of the scored views, in degrees; the token was learned from other views",
    "resumed_from_step": "0, or the step from which an interrupted training went on",
    "seconds": "wall time of this run; training_seconds and drawing_seconds are parts of it",
    "peak_memory_mb": "most memory the process held, in 10^6 bytes; null where the system does not say",
}


@dataclass(frozen=True)
class Drawn:
    """Views (S,P,V,H,W,3) of the token, of the edited prompts, and of the short and full caption."""

    token: "Tensor"
    edits: "Tensor"
    captions: "Tensor"


@dataclass(kw_only=True)
class Demo(Command):
    """A built-in splat becomes a token of the built-in toy model, and the token becomes views: no download, no GPU.

    Writes contact_sheet.png, token.safetensors and report.json.
    """

    out: Path = Path("demo_output")
    """Folder for the results; those of an earlier demo are replaced."""
    sample: OptionalText = None
    """The built-in sample to learn; by default the first."""
    steps: OptionalInt = None
    """Training steps; by default those of the preset "recommended"."""
    sampling_steps: OptionalInt = None
    """Steps of drawing a view; by default those of the benchmarks."""
    noises: int = 4
    """Noises that each number is the mean over."""
    seed: int = 0
    """Seed of the training."""
    model: str = "toy"
    """The model to use."""
    device: OptionalText = None
    """Where to compute, such as cpu or cuda; by default CUDA where it works."""

    def run(self) -> None:
        from .. import inversion, tokens
        from ..files import write_atomically
        from ..toy import samples, scoring

        began = time.monotonic()
        if self.noises < 1:
            raise InputError(f"--noises is {self.noises}; expected at least 1.")
        changes = {} if self.steps is None else {"steps": self.steps}
        config = inversion.preset("recommended", seed=self.seed, **changes)
        sample = samples.names()[0] if self.sample is None else self.sample
        captions = samples.captions(sample)
        folder = writable_folder(self.out)

        self.say("Invert3D demo: a Gaussian splat becomes a word, and the word becomes pictures.")
        self.say("[1/5] Loading the model.")
        model = load_model(self.model, self.device, "fp32")
        self.say(f"      {model.info.title}, on {model.device}")
        self.say(f"[2/5] Rendering the built-in sample '{sample}': {captions.full}.")
        asset = assets.load(samples.path(sample))
        cams = scoring.scoring_cameras(model.info)
        truth = inversion.SplatViews(asset.splat).render(cams, asset.splat.positions.new_zeros(3), 1.0)[0]

        name = f"my_{sample}"
        self.say(f"[3/5] Learning the token <{name}>: {config.vectors} vectors, up to {config.steps} steps.")
        start = time.monotonic()
        with stopping_between_steps() as check:
            result, first = self._learn(model, asset, config, name, check)
            training_seconds = time.monotonic() - start
            self.say(f"      the best vectors are those of step {result.best_step}")

            self.say("[4/5] Drawing views with the token, with colors before it, and with words alone.")
            start = time.monotonic()
            edits = edit_prompts(captions, name)
            try:
                drawn = self._draw(model.with_token(result.token), name, edits, captions, cams, check)
            except KeyboardInterrupt:
                where = self._checkpoint(model, config, sample)
                raise KeyboardInterrupt(
                    f"stopped while drawing; the training is kept in '{where}': run the same command again to go on"
                ) from None
            drawing_seconds = time.monotonic() - start

        self.say("[5/5] Writing the results.")
        report = {
            "command": "demo",
            "sample": sample,
            "model": model.info.title,
            "token": f"<{name}>",
            "short_caption": captions.short,
            "full_caption": captions.full,
            **_numbers(drawn, truth, edits),
            "guidance": {"token": scoring.TOKEN_GUIDANCE, "captions": scoring.CAPTION_GUIDANCE},
            "training_steps": len(result.losses),
            "best_step": result.best_step,
            "resumed_from_step": first,
            "sampling_steps": self._sampling_steps,
            "noises": self.noises,
            "seed": self.seed,
            "views": {"azimuths_deg": list(scoring.AZIMUTHS_DEG), "elevation_deg": scoring.ELEVATION_DEG},
            "device": str(model.device),
            "training_seconds": round(training_seconds, 1),
            "drawing_seconds": round(drawing_seconds, 1),
        }
        tokens.save(result.token, folder / "token.safetensors", overwrite=True)
        _save_sheet(folder / "contact_sheet.png", report, drawn, truth)
        self._checkpoint(model, config, sample).unlink(missing_ok=True)
        report["seconds"] = round(time.monotonic() - began, 1)
        report["peak_memory_mb"] = peak_memory_mb()
        report["about"] = ABOUT
        write_atomically(folder / "report.json", (json.dumps(report, indent=1) + "\n").encode())
        self.report(report, _summary(report, folder))

    @property
    def _sampling_steps(self) -> int:
        from ..toy import scoring

        return scoring.SAMPLING_STEPS if self.sampling_steps is None else self.sampling_steps

    def _checkpoint(self, model: "MVDream", config: "InversionConfig", sample: str) -> Path:
        """A file of its own for each sample, settings and weights: a demo asked for otherwise starts anew."""
        key = json.dumps([asdict(config), sample, model.info.model_hash])
        return self.out / f"training-{hashlib.sha256(key.encode()).hexdigest()[:8]}.safetensors"

    def _learn(
        self, model: "MVDream", asset: assets.Asset, config: "InversionConfig", name: str, check: "Callable[[], None]"
    ) -> "tuple[InversionResult, int]":
        """The training's result, and the step it went on from."""
        from .. import inversion

        checkpoint = self._checkpoint(model, config, str(asset.sample))
        with Bar("      training", check) as bar:
            try:
                result = inversion.train_token(
                    model,
                    asset.splat.to(model.device),
                    config,
                    name=name,
                    initial_words=initial_words(asset.sample, model, config),
                    progress=bar,
                    checkpoint=checkpoint,
                )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(kept(bar, checkpoint)) from None
        return result, first_step(bar, result)

    def _draw(
        self,
        model: "MVDream",
        name: str,
        edits: "Sequence[str]",
        captions: "Captions",
        cams: "Cameras",
        check: "Callable[[], None]",
    ) -> Drawn:
        from ..mvdream.drawing import draw_prompts
        from ..toy import scoring

        seeds = [FIRST_SEED + index for index in range(self.noises)]

        def draw(what: str, prompts: "Sequence[str]", noises: "Sequence[int]", guidance: float) -> "Tensor":
            with Bar(f"      {what}", check) as bar:
                return draw_prompts(model, prompts, cams, noises, guidance, steps=self._sampling_steps, progress=bar)

        return Drawn(
            draw("token", [f"a <{name}>"], seeds, scoring.TOKEN_GUIDANCE),
            draw("edited prompts", edits, seeds[:1], scoring.TOKEN_GUIDANCE),
            draw("words alone", [captions.short, captions.full], seeds, scoring.CAPTION_GUIDANCE),
        )


def edit_prompts(captions: "Captions", name: str) -> list[str]:
    """Prompts that give the token colors which the asset does not have."""
    from ..toy.assets import article

    own = captions.full.split()
    return [f"{article(color)} {color} <{name}>" for color in EDIT_COLORS if color not in own][:EDITS]


def _numbers(drawn: Drawn, truth: "Tensor", edits: "Sequence[str]") -> dict[str, Any]:
    """What is measured of the views; see `ABOUT`."""
    from ..metrics import foreground_mask, silhouette_iou
    from ..toy.scoring import scores

    of_token = scores(drawn.token, truth[None])
    of_captions = scores(drawn.captions, truth[None].expand(2, -1, -1, -1, -1))
    psnr = {"token": of_token[0][0], "short_caption": of_captions[0][0], "full_caption": of_captions[0][1]}
    iou = {"token": of_token[1][0], "short_caption": of_captions[1][0], "full_caption": of_captions[1][1]}
    plain = foreground_mask(drawn.token[0]).expand(len(edits), -1, -1, -1)
    overlap = silhouette_iou(foreground_mask(drawn.edits[0]), plain)
    return {
        **{f"{name}_psnr_db": round(float(value), 3) for name, value in psnr.items()},
        **{f"{name}_iou": round(float(value), 4) for name, value in iou.items()},
        "edits": [
            {"prompt": prompt, "iou_with_token": round(float(value), 4)}
            for prompt, value in zip(edits, overlap, strict=True)
        ],
    }


def _save_sheet(path: Path, report: dict[str, Any], drawn: Drawn, truth: "Tensor") -> None:
    """Every row from the same, first noise."""
    token = f"a {report['token']}"
    rows = [
        pictures.SheetRow("ground truth", f"the splat '{report['sample']}' itself, rendered", truth),
        pictures.SheetRow(token, f"learned token · {_score(report, 'token')}", drawn.token[0, 0]),
        *(
            pictures.SheetRow(edit["prompt"], f"edited · shape kept: IoU {edit['iou_with_token']:.2f}", views)
            for edit, views in zip(report["edits"], drawn.edits[0], strict=True)
        ),
        *(
            pictures.SheetRow(report[name], f"words alone · {_score(report, name)}", views)
            for name, views in zip(("short_caption", "full_caption"), drawn.captions[0], strict=True)
        ),
    ]
    headings = [f"azimuth {azimuth:g}°" for azimuth in report["views"]["azimuths_deg"]]
    pictures.save_sheet(path, rows, headings)


def _score(report: dict[str, Any], name: str) -> str:
    return f"PSNR {report[f'{name}_psnr_db']:.1f} dB, IoU {report[f'{name}_iou']:.2f}"


def _summary(report: dict[str, Any], folder: Path) -> str:
    rows = [
        (f"token    a {report['token']}", "token"),
        (f"words    {report['short_caption']}", "short_caption"),
        (f"words    {report['full_caption']}", "full_caption"),
    ]
    width = max(len(text) for text, _ in rows)
    memory = report["peak_memory_mb"]
    return "\n".join(
        [
            "",
            "How near the drawn views are to the splat (foreground PSNR, silhouette IoU; higher is better):",
            *(f"  {text:<{width}}  {_score(report, name)}" for text, name in rows),
            f"{report['seconds']:.0f} s" + (f", at most {memory:.0f} MB of memory" if memory else ""),
            f"Look at {folder / 'contact_sheet.png'}; the token is {folder / 'token.safetensors'}, every number is in "
            f"{folder / 'report.json'}",
        ]
    )
