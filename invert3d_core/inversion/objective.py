"""The training and validation loss of a batch of tokens under a frozen model."""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..devices import sent
from ..errors import TrainingError
from ..mvdream import MVDream
from ..tokens import Token, prompts
from .captions import SLOT, captions
from .draws import Draw, draw_step, draw_validation
from .losses import denoising_losses, foreground_weights, snr_weights
from .presets import InversionConfig
from .sources import ViewSource


class Batch(NamedTuple):
    """What a loss is taken on beside the vectors: S sets of F views for each of A tokens, where they are computed with.

    latents: (A,S,F,C,h,w), masks: (A,S,F,h,w), cameras: (A,S,F,16). captions: (S,) int64, index into the captions.
    timesteps: (S,F) int64. noise: (S,F,C,h,w).
    """

    latents: Tensor
    masks: Tensor
    cameras: Tensor
    captions: Tensor
    timesteps: Tensor
    noise: Tensor

    def sets(self, start: int, stop: int) -> "Batch":
        """Some of the sets."""
        own = (part[:, start:stop] for part in self[:3])
        return Batch(*own, *(part[start:stop] for part in self[3:]))


class Objective:
    """Losses of the vectors (A,n,d) of A tokens, one number each.

    tokens: the A tokens as they start; captions may use tokens already applied to the model, too.
    """

    def __init__(self, model: MVDream, source: ViewSource, config: InversionConfig, tokens: Sequence[Token]) -> None:
        self._alphas = model.schedule.alphas_cumprod.clone()
        if config.max_timestep >= len(self._alphas):
            raise TrainingError(
                f"max_timestep is {config.max_timestep}, but the model's schedule has {len(self._alphas)} timesteps; "
                f"expected at most {len(self._alphas) - 1}."
            )
        self.tokens = tokens
        self._model = model
        self._source = source
        self._config = config
        self._device = model.device
        # float32 on a GPU, which may have no other; the CPU keeps the schedule's own float64.
        self._device_alphas = self._alphas if self._device.type == "cpu" else self._alphas.float().to(self._device)
        self._snr_weights: Tensor | None = None
        if config.snr_gamma is not None:
            every = torch.arange(len(self._alphas))
            self._snr_weights = snr_weights(every, self._alphas, config.snr_gamma).to(self._device)  # (T,)
        # CPUs are slower with bfloat16 (measured), and a half-precision model needs no other type.
        narrow = config.precision == "bf16" and self._device.type == "cuda" and model.dtype == torch.float32
        self._autocasts = narrow and torch.cuda.is_bf16_supported()
        self._prepare_captions(tokens)
        self._validation: Batch | None = None
        self._ahead: tuple[int, Batch] | None = None

    def _prepare_captions(self, tokens: Sequence[Token]) -> None:
        """The rows of every caption once, and which of the token's vectors stands where."""
        texts = captions(self._config.captions, self._config.suffix_use, self._model.info.caption_suffix)
        count = tokens[0].vectors.shape[0]
        with_token = self._model.with_token(tokens[0])
        with torch.no_grad():
            ids, vectors = with_token.prompt_ids([text.replace(SLOT, f"<{tokens[0].name}>") for text in texts])  # (K,L)
            slot = next(virtual for virtual, rows in vectors.items() if rows is tokens[0].vectors)
            self._rows = prompts.expand(ids, with_token.token_rows(ids), vectors).clone()  # (K,L,d)
            elsewhere = torch.full((*ids.shape, 1), -1.0)
            others = {virtual: torch.full((len(rows), 1), -1.0) for virtual, rows in vectors.items()}
            numbers = {**others, slot: torch.arange(count, dtype=torch.float32)[:, None]}
            places = prompts.expand(ids, elsewhere, numbers)[..., 0].long()  # (K,L), -1 where the token is not
        self._places = places.to(self._rows.device)

    def losses(self, vectors: Tensor, step: int) -> Tensor:  # (A,n,d) -> (A,)
        """Training losses of a step; differentiable in the vectors."""
        return self.losses_on(vectors, self.batch(step))

    @torch.no_grad()
    def batch(self, step: int) -> Batch:
        """What a training step is taken on; drawn ahead where `draw_ahead` has been."""
        if self._ahead is not None and self._ahead[0] == step:
            return self._ahead[1]
        source = self._source
        return self._batch(draw_step(self._config, step, source.pick_ranges, len(self._rows), source.latent_shape))

    def draw_ahead(self, step: int) -> None:
        """Draw a step's batch now, while the GPU is busy with another step's, if that is cheap."""
        self._ahead = None
        if self._source.ready and self._device.type == "cuda":
            self._ahead = step, self.batch(step)

    @torch.no_grad()
    def validation_batches(self, at_once: int) -> list[Batch]:
        """Sets, timesteps, noises and captions that are the same at every call, so many sets to a batch."""
        source = self._source
        if self._validation is None:
            draw = draw_validation(self._config, source.pick_ranges, len(self._rows), source.latent_shape)
            self._validation = self._batch(draw)
        starts = range(0, self._config.validation_sets, at_once)
        return [self._validation.sets(start, start + at_once) for start in starts]

    def _batch(self, draw: Draw) -> Batch:
        posterior, chosen, timesteps, noise = (
            sent(drawn, self._device) for drawn in (draw.posterior, draw.captions, draw.timesteps, draw.noise)
        )
        sets = self._source.sets(draw.picks, posterior)
        return Batch(sets.latents, sets.masks, sets.cameras, chosen.to(self._rows.device), timesteps, noise)

    def _text(self, vectors: Tensor, chosen: Tensor) -> Tensor:  # (A,n,d), (S,) -> (A·S,L,D)
        """Encoded captions, token by token."""
        rows, places = self._rows[chosen], self._places[chosen]  # (S,L,d), (S,L)
        tokens, sets = len(vectors), len(chosen)
        # A copy of the vectors for each caption: added up in order, their gradients are the same in every run.
        learned = vectors.to(rows)[:, None].expand(tokens, sets, *vectors.shape[1:])  # (A,S,n,d)
        index = places.clamp_min(0)[None, :, :, None].expand(tokens, *rows.shape)
        embeddings = torch.where(places[None, :, :, None] >= 0, learned.gather(2, index), rows)  # (A,S,L,d)
        return self._model.encode_embeddings(embeddings.flatten(0, 1))

    def losses_on(self, vectors: Tensor, batch: Batch) -> Tensor:  # (A,n,d) -> (A,)
        """Losses on a batch; differentiable in the vectors. On a GPU it does not wait for it."""
        tokens, count, frames = batch.latents.shape[:3]
        views = tokens * count * frames

        def for_every_token(drawn: Tensor) -> Tensor:  # (S,F,…) -> (A·S·F,…)
            return drawn.expand(tokens, *drawn.shape).reshape(views, *drawn.shape[2:])

        text = self._text(vectors, batch.captions)[:, None].expand(-1, frames, -1, -1).flatten(0, 1)
        cameras = batch.cameras.reshape(views, -1)
        weights = foreground_weights(batch.masks, self._config.foreground_weight).flatten(0, 2)  # (B,1,h,w)
        timesteps = for_every_token(batch.timesteps)
        if self._snr_weights is not None:
            weights = weights * self._snr_weights[timesteps][:, None, None, None]

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            with torch.autocast("cuda", torch.bfloat16) if self._autocasts else contextlib.nullcontext():
                return self._model.predict_noise(noisy, t, text, cameras, num_frames=frames)

        losses = denoising_losses(
            predict, batch.latents.flatten(0, 2), for_every_token(batch.noise), timesteps, weights, self._device_alphas
        )
        return losses.reshape(tokens, -1).mean(dim=1)
