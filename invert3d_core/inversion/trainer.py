"""Textual inversion of a multi-view model: learning the vectors of one token, or of many independent ones at once."""

import contextlib
import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, TrainingError
from ..files import check_writable
from ..mvdream import MVDream
from ..progress import Progress, StopAndKeep, no_progress
from ..tokens import Token, check_name
from . import checkpoint as checkpoints
from .checkpoint import TrainingState
from .losses import initial_vectors
from .objective import Objective
from .optimizer import learning_rate_at
from .passes import Passes
from .presets import InversionConfig, preset
from .sources import view_source
from .views import Views, fingerprint, model_orbit

logger = logging.getLogger("invert3d")

_PREVIEW_STEPS = 12


@dataclass(frozen=True, eq=False)
class InversionResult:
    """What training gives.

    token: the learned token; its `initial` are the initial words' rows. losses: training loss of each step.
    validation_losses: (step, loss) pairs, step 0 being the initial words; empty without validation.
    best_step: the step whose vectors the token holds. stopped_early: whether the steps were not all needed.
    previews: (step, picture (H,4·W,3) in [0,1]) of the previews the progress callback asked for in this process.
    """

    token: Token
    losses: list[float]
    validation_losses: list[tuple[int, float]]
    best_step: int
    stopped_early: bool
    previews: list[tuple[int, Tensor]]


def train_token(
    model: MVDream,
    views: Views,
    config: InversionConfig | None = None,
    *,
    name: str = "asset",
    initial_words: str | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
) -> InversionResult:
    """Learn a token that means the object in the views to the model (textual inversion, Gal et al. 2022).

    model: frozen throughout; only the token's vectors get gradients. Works inside a host's inference mode.
    views: a `GaussianSplats` or `SplatViews` (rendered here), a `ViewSet` (pictures, masks and cameras), or a
        `LatentBank` (already encoded).
    config: settings, see `preset`; None is "recommended". name: what prompts will write as ``<name>``.
    initial_words: words whose embeddings the vectors start from; None takes the config's.
    progress: called with step 0 while the views are prepared, then after every step with "loss" and "learning_rate"
        (and "validation_loss" where there is one), and every `preview_every` steps with a picture of what the token
        means by then. Whatever it raises stops the run after the state is saved to the checkpoint; only `StopAndKeep`,
        raised after a step, ends it as if it had needed no more steps.
    checkpoint: file that keeps the state; a run that finds its own there goes on from it (or returns at once if it was
        finished) and ends with the same bits as an uninterrupted one on the CPU. resume: False starts anew. Where
        it cannot be written at first that is an error; later, as on a disk that is full by then, a warning in the log.

    Raises TrainingError if the views or settings cannot be used, if the training diverges, and if the checkpoint
    belongs to another run; StorageError if the checkpoint cannot be written; TokenError if the name, or a caption
    with all vectors, cannot be used.
    """
    return train_tokens(
        model,
        [views],
        config,
        names=[name],
        initial_words=None if initial_words is None else [initial_words],
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
    )[0]


def train_tokens(
    model: MVDream,
    views: Sequence[Views],
    config: InversionConfig | None = None,
    *,
    names: Sequence[str],
    initial_words: Sequence[str] | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
) -> list[InversionResult]:
    """Learn independent tokens in one batch, one per entry of views; each comes out as it would alone.

    Every token has its own loss, gradient, moments, norms, best validation and early stop, and sees the draws it would
    see alone. views: all of one kind, banks with equally many sets. names: one per entry, all different.
    Other arguments as in `train_token`; a preview shows the first token.
    """
    config = config or preset("recommended")
    words = [config.initial_words] * len(names) if initial_words is None else list(initial_words)
    if not names or not len(views) == len(names) == len(words) or len(set(names)) < len(names):
        raise TrainingError(
            f"{len(views)} views, {len(names)} names ({len(set(names))} different) and {len(words)} initial words were "
            "given; expected one of each per token, the names all different."
        )
    for name in names:
        check_name(name)
    # A host runs nodes under inference mode, where nothing can be differentiated.
    with torch.inference_mode(False), torch.enable_grad(), _frozen(model):
        run = _Run(model, views, config, list(names), words, Path(checkpoint) if checkpoint is not None else None)
        return run.train(progress or no_progress, resume)


class _Run:
    """One call of `train_tokens`."""

    def __init__(
        self,
        model: MVDream,
        views: Sequence[Views],
        config: InversionConfig,
        names: list[str],
        words: list[str],
        path: Path | None,
    ) -> None:
        if model.text_encoder is None or model.tokenizer is None:
            raise TrainingError("The model was made without text encoder or tokenizer. Load it from a checkpoint.")
        if model.dtype == torch.float16:
            raise TrainingError(
                "The model is loaded in float16, in which the token's gradients vanish. Load it in bfloat16 or float32."
            )
        self.model = model
        self.tokenizer = model.tokenizer
        self.views = views
        self.config = config
        self.names = names
        self.path = path
        self.table = model.text_encoder.get_input_embeddings().weight.detach().float()
        self.initial = torch.stack([self._initial(text) for text in words]).to(model.device)  # (A,n,d)
        self.previews: list[tuple[int, Tensor]] = []
        self._preview_fits = True
        settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in checkpoints.FREE_SETTINGS}
        self.fingerprint: dict[str, Any] = {
            "config": {**settings, "initial_words": words if len(words) > 1 else words[0]},
            "names": names,
            "inputs": [fingerprint(v) for v in views],
            "model": {"base": model.info.base, "hash": model.info.model_hash},
        }

    def train(self, progress: Progress, resume: bool) -> list[InversionResult]:
        found = None
        if self.path is not None and resume:
            found = checkpoints.load(self.path, self.fingerprint)
        state, finished = found or (self._start(), False)
        state = _on_device(state, self.model.device)
        if found:
            word = "was finished at" if finished else "goes on from"
            logger.info("Training %s step %d of '%s'.", word, state.step, self.path)
        if finished or not self._goes_on(state):
            if self.path is not None and not finished:  # stopped after its last step
                checkpoints.keep(self.path, state, self.fingerprint, finished=True)
            return self._results(state)
        if self.path is not None:
            check_writable(self.path)
        rate = self._peak_learning_rate()
        norm = float(self.table.norm(dim=1).mean())
        # Rendering and encoding may take a while: let the callback cancel there, too.
        source = view_source(self.views, self.model, self.config, lambda: progress(state.step, self.config.steps))
        objective = Objective(
            self.model, source, self.config, [self._token(a, self.initial[a], {}) for a in self._jobs]
        )
        saved = state.step if found else -1
        try:
            with Passes(self.model, objective, self.config, norm) as passes:
                while self._goes_on(state):
                    # Assigned whole: whatever interrupts a step leaves the state before it.
                    state, metrics = self._step(passes, state, rate)
                    every = self.config.checkpoint_every
                    if self.path is not None and every and state.step % every == 0:
                        kept = checkpoints.keep(self.path, state, self.fingerprint, finished=False)
                        saved = state.step if kept else saved
                    try:
                        progress(state.step, self.config.steps, metrics=metrics, preview=self._preview_of(state))
                    except StopAndKeep:
                        # What was learned since the last validation gets its chance to be the best.
                        if self.config.validation_every and "validation_loss" not in metrics:
                            state = self._validated(passes, state)
                        break
        except BaseException:
            if self.path is not None and state.step > max(saved, 0):
                checkpoints.keep(self.path, state, self.fingerprint, finished=False)
            raise
        if self.path is not None:
            checkpoints.keep(self.path, state, self.fingerprint, finished=True)
        return self._results(state)

    def _goes_on(self, state: TrainingState) -> bool:
        return state.step < self.config.steps and bool(state.active.any())

    @property
    def _jobs(self) -> range:
        return range(len(self.names))

    def _initial(self, text: str) -> Tensor:  # (n,d)
        """The rows of the initial words, repeated to the number of vectors."""
        ids = self.tokenizer.encode(text)
        unknown = self.tokenizer.unknown_words(text)
        if not ids or unknown:
            raise TrainingError(
                f"The initial words {text!r} "
                + (f"hold {', '.join(unknown)}, which the model does not know." if unknown else "are empty.")
                + " Name the object with words the model knows."
            )
        position = None
        if self.config.add_position_row:
            modules = self.model.text_encoder.named_modules()
            position = next(m.weight[0] for n, m in modules if n.endswith("position_embedding")).detach().float()
        return initial_vectors(self.table[torch.tensor(ids, device=self.table.device)], self.config.vectors, position)

    def _peak_learning_rate(self) -> float:
        unit = float(self.table.square().mean().sqrt()) if self.config.learning_rate_unit == "vocabulary" else 1.0
        return self.config.learning_rate * unit

    def _start(self) -> TrainingState:
        jobs = len(self.names)
        zeros = torch.zeros_like(self.initial)
        return TrainingState(
            step=0,
            vectors=self.initial,
            first_moment=zeros,
            second_moment=zeros,
            active=torch.ones(jobs, dtype=torch.bool),
            losses=torch.zeros(0, jobs),
            validation_steps=torch.zeros(0, dtype=torch.int64),
            validation_losses=torch.zeros(0, jobs),
            best_vectors=self.initial,
            best_loss=torch.full((jobs,), math.inf),
            best_step=torch.zeros(jobs, dtype=torch.int64),
            waiting=torch.zeros(jobs, dtype=torch.int64),
        )

    def _step(self, passes: Passes, state: TrainingState, peak: float) -> tuple[TrainingState, dict[str, float]]:
        """The state after one more step, and what to report of it."""
        config = self.config
        if state.step == 0 and config.validation_every:
            state = self._validated(passes, state)

        def rate_at(step: int) -> float:
            return learning_rate_at(step, config.steps, peak, config.warmup_steps, config.final_learning_rate)

        rate, following = rate_at(state.step), state.step + 1
        moved = passes.step(state.step, state.vectors, state.first_moment, state.second_moment, state.active, rate)
        every = config.validation_every
        validates = every > 0 and (following % every == 0 or following == config.steps)
        if following < config.steps and not validates:  # after a validation, other tokens may be active
            passes.begin(following, moved, state.active, rate_at(following))
        # One transfer for the log and for the check that the step was sound.
        numbers = moved.numbers()
        log = numbers[0]
        if not bool(torch.isfinite(numbers).all()):
            raise TrainingError(
                f"The training diverged at step {state.step + 1}: the loss is {log.tolist()}. Lower the learning rate "
                f"({config.learning_rate}), or check the views for NaN."
            )
        state = replace(
            state,
            step=state.step + 1,
            vectors=moved.vectors,
            first_moment=moved.first_moment,
            second_moment=moved.second_moment,
            losses=torch.cat([state.losses, log.where(state.active, torch.nan)[None]]),
        )
        metrics = {"loss": float(state.losses[-1].nanmean()), "learning_rate": rate}
        if validates:
            state = self._validated(passes, state)
            metrics["validation_loss"] = float(state.validation_losses[-1].nanmean())
        return state, metrics

    @torch.no_grad()
    def _validated(self, passes: Passes, state: TrainingState) -> TrainingState:
        """The state with one more validation: the best vectors kept, tokens without progress stopped."""
        losses = passes.validation_losses(state.vectors).cpu().where(state.active, torch.nan)  # (A,)
        better = state.active & (losses < state.best_loss)
        choose = better.to(state.vectors.device)[:, None, None]
        waiting = torch.where(better, 0, state.waiting + 1)
        stopped = waiting >= self.config.patience if self.config.patience else torch.zeros_like(better)
        return replace(
            state,
            validation_steps=torch.cat([state.validation_steps, torch.tensor([state.step])]),
            validation_losses=torch.cat([state.validation_losses, losses[None]]),
            best_vectors=torch.where(choose, state.vectors, state.best_vectors),
            best_loss=torch.where(better, losses, state.best_loss),
            best_step=torch.where(better, state.step, state.best_step),
            waiting=waiting,
            active=state.active & ~stopped,
        )

    def _preview_of(self, state: TrainingState) -> Callable[[], Tensor] | None:
        every = self.config.preview_every
        if not every or state.step % every or not self._preview_fits:
            return None

        def preview() -> Tensor:  # (H,4·W,3)
            token = self._token(0, state.vectors[0], {})
            caption = self.config.captions[0].replace("{}", f"<{token.name}>")
            try:
                picture = preview_strip(self.model.with_token(token), caption)
            except ModelError as error:  # a training is worth more than its previews
                logger.warning("There are no more previews of this training: %s", error)
                self._preview_fits = False
                size = self.model.info.image_size
                return torch.ones(size, 4 * size, 3)
            self.previews.append((state.step, picture))
            return picture

        return preview

    def _token(self, job: int, vectors: Tensor, provenance: Mapping[str, Any]) -> Token:
        info = self.model.info
        rows = [t.detach().to("cpu", torch.float32).clone() for t in (vectors, self.initial[job])]
        return Token(self.names[job], rows[0], rows[1], info.base, info.model_hash, provenance)

    def _results(self, state: TrainingState) -> list[InversionResult]:
        """One result per token; what is in a token's provenance is the same however the run got there."""
        validated = self.config.validation_every > 0
        results: list[InversionResult] = []
        for a, words in zip(self._jobs, _as_list(self.fingerprint["config"]["initial_words"]), strict=True):
            best = int(state.best_step[a]) if validated else state.step
            # A token that stopped early has NaN where the others went on.
            losses = [loss for loss in state.losses[:, a].tolist() if not math.isnan(loss)]
            validation = [
                (step, loss)
                for step, loss in zip(
                    state.validation_steps.tolist(), state.validation_losses[:, a].tolist(), strict=True
                )
                if not math.isnan(loss)
            ]
            provenance = {
                "config": {**self.fingerprint["config"], "initial_words": words},
                "input": self.fingerprint["inputs"][a],
                "model": self.model.info.title,
                "step": best,
                "loss": losses[best - 1] if best else None,
                "validation_loss": float(state.best_loss[a]) if validated else None,
                "versions": _versions(),
            }
            vectors = state.best_vectors[a] if validated else state.vectors[a]
            # Through JSON, so that the token in memory equals the one read back from its file.
            token = self._token(a, vectors, json.loads(json.dumps(provenance)))
            results.append(
                InversionResult(
                    token, losses, validation, best, len(losses) < self.config.steps, self.previews if a == 0 else []
                )
            )
        return results


def preview_strip(model: MVDream, prompt: str, steps: int = _PREVIEW_STEPS, seed: int = 0) -> Tensor:
    """Four views around the object side by side, (H,4·W,3) float32 in [0,1] on the CPU, in few sampling steps."""
    info = model.info
    cams = model_orbit(info, [0.0, 90.0, 180.0, 270.0], sum(info.elevation_range_deg) / 2)
    with torch.no_grad():
        pictures = model.sample(prompt, cams, steps=steps, seed=seed)
    return torch.cat(list(pictures.float().cpu()), dim=1)


@contextlib.contextmanager
def _frozen(model: MVDream) -> Iterator[None]:
    """The networks in evaluation mode, without gradients of their own, and usable by autograd; as before afterwards."""
    networks = [m for m in (model.unet, model.vae, model.text_encoder) if m is not None]
    for module in networks:
        _leave_inference_mode(module)
    training = [(module, module.training) for network in networks for module in network.modules()]
    wanted = [(p, p.requires_grad) for network in networks for p in network.parameters()]
    try:
        for network in networks:
            network.eval().requires_grad_(False)
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


def _leave_inference_mode(module: torch.nn.Module) -> None:
    """Replace weights made under inference mode by clones, one by one: autograd cannot save such tensors."""
    clones: dict[torch.nn.Parameter, torch.nn.Parameter] = {}  # weights that parts share stay shared
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.is_inference():
                if parameter not in clones:
                    clones[parameter] = torch.nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                setattr(part, name, clones[parameter])
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.is_inference():
                setattr(part, name, buffer.clone())


def _on_device(state: TrainingState, device: torch.device) -> TrainingState:
    rows = ("vectors", "first_moment", "second_moment", "best_vectors")
    return replace(state, **{name: getattr(state, name).to(device) for name in rows})


def _as_list(words: str | list[str]) -> list[str]:
    return [words] if isinstance(words, str) else words


def _versions() -> dict[str, str]:
    import diffusers
    import transformers

    from .. import __version__

    return {
        "invert3d": __version__,
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
