"""Fitting Gaussian splats to posed pictures."""

import dataclasses
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

from ..cameras import Cameras, near_plane
from ..errors import FormatError, TrainingError
from ..files import check_writable
from ..inversion.draws import step_generator
from ..metrics import psnr
from ..progress import Progress, StopAndKeep, no_progress
from ..rendering import rasterize
from ..splats import GaussianSplats
from . import checkpoint as checkpoints
from .checkpoint import FitState
from .density import Density, PlainDensity
from .gsplat_density import GsplatDensity, refuse_mcmc, why_not
from .hull import seen_region
from .losses import fit_loss
from .parameters import COMMENTS, Parameters, make_optimizers, position_rate_at, splats_of, start
from .presets import FREE_SETTINGS, FitConfig, preset
from .views import PosedViews, fingerprint, posed_views

logger = logging.getLogger("invert3d")

STRIP_VIEWS = 4
VIEWS_AT_ONCE = 8  # drawn together where nothing is differentiated

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, eq=False)
class FitResult:
    """What a fit gives.

    splats: in the cameras' own frame, on the pictures' device. losses: of each step. psnr: in dB, of the splats drawn
    from all cameras against all pictures over their own background. stopped_early: whether the steps were not all
    needed. picture: (2·H,V·W,3) in [0,1] on the CPU, some of the views above and the splats below.
    """

    splats: GaussianSplats
    losses: list[float]
    psnr: float
    stopped_early: bool
    picture: Tensor


def fit_splats(
    images: Tensor,
    masks: Tensor | None,
    cams: Cameras,
    config: FitConfig | None = None,
    *,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
) -> FitResult:
    """Gaussian splats that look like the pictures from the cameras (3D Gaussian splatting, Kerbl et al. 2023).

    images: (C,H,W,3) in [0,1]; the fit runs on their device. masks: (C,H,W), 1 on the object; None guesses the object
        from a plain background. cams: C in the frame that the splats shall have, for an object's own y up and the front
        +z. config: settings, see `preset`; None is "recommended". Works inside a host's inference mode.
    progress: called with step 0 while the fit is prepared and, between the views of a step, with the steps done; after
        every step with "loss" and "splats", and every `preview_every` steps with a picture. Whatever it raises stops
        the fit after the state is saved to the checkpoint; only `StopAndKeep`, raised after a step, ends it as if it
        had needed no more steps.
    checkpoint: file that keeps the state; a fit that finds its own there goes on from it (or returns at once if it was
        finished) and ends with the same bits as an uninterrupted one on the CPU. resume: False starts anew. Where it
        cannot be written at first that is an error; later, as on a disk that is full by then, a warning in the log.

    Raises TrainingError if pictures or settings cannot be used, if the fit diverges, and if the checkpoint belongs to
    another fit; CameraError if the cameras do not look at one thing; StorageError if the checkpoint cannot be written.
    """
    config = config or preset("recommended")
    # A host runs nodes under inference mode, where nothing can be differentiated.
    with torch.inference_mode(False), torch.enable_grad():
        settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE_SETTINGS}
        marks = {**settings, **fingerprint(images, masks, cams)}
        path = Path(checkpoint) if checkpoint is not None else None
        return _Fit(posed_views(images, masks, cams), config, path, marks).run(progress or no_progress, resume)


class _Fit:
    """One call of `fit_splats`; its values change in place, and are whole between steps."""

    def __init__(self, views: PosedViews, config: FitConfig, path: Path | None, marks: dict[str, object]) -> None:
        self.views = views
        self.config = config
        self.path = path
        self.marks = marks
        self.region = seen_region(views.cameras)
        self.near = near_plane(views.cameras, self.region.center)
        self.step = 0
        self.losses: list[float] = []
        self._whole = True

    def run(self, progress: Progress, resume: bool) -> FitResult:
        config, path = self.config, self.path
        found = checkpoints.load(path, self.marks, self._device) if path is not None and resume else None
        finished = found is not None and found[1]
        total = config.steps
        if path is not None and not finished:
            check_writable(path)
        self.step = found[0].step if found else 0

        def between() -> None:
            progress(self.step, total)

        between()
        if found:
            logger.info("The fit goes on from step %d of '%s'.", found[0].step, path)
            self._restore(found[0])
        else:
            self.params = start(self.views, self.region, config, step_generator(config.seed, "start", 0), between)
            self.optimizers = make_optimizers(self.params, config)
        if finished:
            return self._result(between)
        self.density = self._density(between)
        self.density.stats = dict(found[0].stats) if found else {}
        saved = self.step if found else -1
        try:
            while self.step < total:
                loss = self._advance()
                if path is not None and config.checkpoint_every and self.step % config.checkpoint_every == 0:
                    saved = self.step if checkpoints.keep(path, self._state(), self.marks, finished=False) else saved
                metrics = {"loss": loss, "splats": float(len(self.params["means"]))}
                due = config.preview_every and self.step % config.preview_every == 0
                try:
                    progress(self.step, total, metrics=metrics, preview=self._strip if due else None)
                except StopAndKeep:
                    break
        except BaseException:
            if path is not None and self._whole and self.step > max(saved, 0):
                checkpoints.keep(path, self._state(), self.marks, finished=False)
            raise
        self._splats()  # refused before it counts as a result
        if path is not None:
            checkpoints.keep(path, self._state(results_only=True), self.marks, finished=True)
        return self._result(between)

    @property
    def _device(self) -> torch.device:
        return self.views.images.device

    def _generator(self, stream: str, step: int) -> torch.Generator:
        return step_generator(self.config.seed, stream, step)

    def _density(self, between: Callable[[], None]) -> Density:
        """What draws and changes the splats: gsplat's strategies where gsplat works, else our own."""
        config, generator = self.config, partial(self._generator, "density")
        reason = why_not(self._device) if config.density != "fixed" else None
        if config.density == "mcmc" and reason:
            refuse_mcmc(reason)
        if config.density != "fixed" and not reason:
            return GsplatDensity(config, self.region.radius, self.near, generator)
        return PlainDensity(config, self.region.radius, self.near, generator, between)

    def _advance(self) -> float:
        """Do one step; returns its loss."""
        config, views = self.config, self.views
        picks = self._picks(self.step)
        backgrounds = self._backgrounds(self.step, len(picks))
        degree = config.sh_degree if not config.sh_every else min(config.sh_degree, self.step // config.sh_every)
        chosen = torch.tensor(picks, device=self._device)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        drawn = self.density.draw(self.params, views.cameras[picks], backgrounds, degree)
        target, mask, certain = views.over(chosen, backgrounds), views.masks[chosen], views.certain[chosen]
        loss = fit_loss(drawn, target, mask, certain, self.params, config, self.region.radius)
        number = float(loss.detach())
        if number != number or abs(number) == float("inf"):
            raise TrainingError(f"The fit diverged at step {self.step + 1}: the loss is {number}. {self._remedy}")
        loss.backward()
        rate = position_rate_at(self.step, config) * self.region.radius
        self._whole = False
        self.optimizers["means"].param_groups[0]["lr"] = rate
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.step += 1
        self.density.changed(self.params, self.optimizers, self.step, rate)
        self.losses.append(number)
        self._whole = True
        return number

    def _picks(self, step: int) -> list[int]:
        """The views of a step (0 the first): every view once before any is seen again."""
        count, size = len(self.views), min(self.config.views_per_step, len(self.views))
        places = range(step * size, (step + 1) * size)
        orders = {
            epoch: torch.randperm(count, generator=self._generator("order", epoch)).tolist()
            for epoch in {place // count for place in places}
        }
        return [orders[place // count][place % count] for place in places]

    def _backgrounds(self, step: int, count: int) -> Tensor:  # (V,3)
        if self.views.objects is None or self.config.background == "own":
            return self.views.background.expand(count, 3)
        return torch.rand(count, 3, generator=self._generator("background", step)).to(self._device)

    def _state(self, results_only: bool = False) -> FitState:
        moments = (
            {}
            if results_only
            else {
                f"{name}.{key}": value
                for name, optimizer in self.optimizers.items()
                for key, value in optimizer.state[self.params[name]].items()
            }
        )
        stats = {} if results_only else self.density.stats
        return FitState(self.step, dict(self.params), moments, stats, torch.tensor(self.losses, dtype=torch.float64))

    def _restore(self, state: FitState) -> None:
        self.step, self.losses = state.step, state.losses.tolist()
        self.params: Parameters = {name: Parameter(value) for name, value in state.params.items()}
        self.optimizers = make_optimizers(self.params, self.config)
        for name, optimizer in self.optimizers.items():
            if f"{name}.step" in state.moments:
                moments = {key: state.moments[f"{name}.{key}"] for key in _MOMENTS}
                moments["step"] = moments["step"].cpu()  # where Adam wants it
                optimizer.state[self.params[name]] = moments

    @torch.no_grad()
    def _draw(self, picks: list[int]) -> Tensor:  # (V,H,W,3)
        cams = self.views.cameras[picks]
        return rasterize(splats_of(self.params), cams, self.views.background, near=self.near).color.clamp(0, 1)

    def _truth(self, picks: list[int]) -> Tensor:  # (V,H,W,3)
        chosen = torch.tensor(picks, device=self._device)
        return self.views.over(chosen, self.views.background.expand(len(picks), 3))

    def _strip(self) -> Tensor:  # (2·H,V·W,3)
        """Views evenly over the cameras, above the pictures and below the splats."""
        count = min(STRIP_VIEWS, len(self.views))
        picks = [i * len(self.views) // count for i in range(count)]
        rows = [torch.cat(list(pictures), 1) for pictures in (self._truth(picks), self._draw(picks))]
        return torch.cat(rows).cpu()

    def _splats(self) -> GaussianSplats:
        """The splats as they are now, without gradients."""
        values = {name: value.detach() for name, value in self.params.items()}
        splats = splats_of(values, comment=COMMENTS[self.views.cameras.frame])
        try:
            return splats.validate()
        except FormatError as error:
            raise TrainingError(f"The fit diverged by step {self.step}: {error} {self._remedy}") from error

    @property
    def _remedy(self) -> str:
        return f"Lower the learning rates (the positions have {self.config.position_rate})."

    def _result(self, between: Callable[[], None]) -> FitResult:
        return FitResult(
            self._splats(), self.losses, self._reached(between), self.step < self.config.steps, self._strip()
        )

    def _reached(self, between: Callable[[], None]) -> float:
        """The PSNR of all views, pooled; so many are drawn at a time that memory does not grow with them."""
        errors = []
        for i in range(0, len(self.views), VIEWS_AT_ONCE):
            some = list(range(i, min(i + VIEWS_AT_ONCE, len(self.views))))
            errors += (10 ** (-psnr(self._draw(some), self._truth(some)) / 10)).tolist()
            between()
        error = sum(errors) / len(errors)
        return -10 * math.log10(error) if error else math.inf
