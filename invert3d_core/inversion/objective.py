"""The training and validation loss of a batch of tokens under a frozen model."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import TrainingError
from ..mvdream import MVDream
from ..tokens import Token, prompts
from .captions import SLOT, captions
from .draws import Draw, draw_step, draw_validation
from .losses import denoising_losses, foreground_weights, snr_weights
from .presets import InversionConfig
from .sources import Sets, ViewSource


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
        self._model = model
        self._source = source
        self._config = config
        self._device = model.device
        # float32 on a GPU, which may have no other; the CPU keeps the schedule's own float64.
        self._device_alphas = self._alphas if self._device.type == "cpu" else self._alphas.float().to(self._device)
        self._prepare_captions(tokens)
        self._validation: tuple[Draw, Sets] | None = None

    def _prepare_captions(self, tokens: Sequence[Token]) -> None:
        """Ids of every caption once, with the first token's virtual id where the token stands."""
        texts = captions(self._config.captions, self._config.suffix_use, self._model.info.caption_suffix)
        name = tokens[0].name
        with_token = self._model.with_token(tokens[0])
        with torch.no_grad():
            self._ids, vectors = with_token.prompt_ids([text.replace(SLOT, f"<{name}>") for text in texts])  # (K,L)
            self._rows = with_token.token_rows(self._ids).clone()  # (K,L,d)
        self._slot = next(virtual for virtual, rows in vectors.items() if rows is tokens[0].vectors)
        self._others = {virtual: rows.detach() for virtual, rows in vectors.items() if virtual != self._slot}
        # Ids of their own for the batch's tokens, beyond those of the tokens that captions use.
        self._virtual = [max(vectors) + 1 + a for a in range(len(tokens))]

    def losses(self, vectors: Tensor, step: int) -> Tensor:  # (A,n,d) -> (A,)
        """Training losses of a step; differentiable in the vectors."""
        source = self._source
        draw = draw_step(self._config, step, source.pick_ranges, len(self._ids), source.latent_shape)
        return self._losses(vectors, draw, source.sets(draw.picks, draw.posterior))

    @torch.no_grad()
    def validation_losses(self, vectors: Tensor) -> Tensor:  # (A,n,d) -> (A,)
        """Losses on sets, timesteps, noises and captions that are the same at every call."""
        source = self._source
        if self._validation is None:
            draw = draw_validation(self._config, source.pick_ranges, len(self._ids), source.latent_shape)
            self._validation = draw, source.sets(draw.picks, draw.posterior)
        draw, sets = self._validation
        # One set at a time: no more memory than a training step.
        losses = [
            self._losses(vectors, _row(draw, i), Sets(*(part[:, i : i + 1] for part in sets)))
            for i in range(len(draw.picks))
        ]
        return torch.stack(losses).mean(dim=0)

    def _text(self, vectors: Tensor, caption: Tensor) -> Tensor:  # (A,n,d), (S,) -> (A·S,L,D)
        """Encoded captions, token by token."""
        per_token: list[Tensor] = []
        for virtual in self._virtual:
            ids = self._ids[caption]
            per_token.append(torch.where(ids == self._slot, virtual, ids))
        ids = torch.cat(per_token)
        rows = self._rows[caption.to(self._rows.device)].repeat(len(self._virtual), 1, 1)
        trained = dict(zip(self._virtual, vectors.to(rows.device), strict=True))
        return self._model.encode_embeddings(prompts.expand(ids, rows, {**self._others, **trained}))

    def _losses(self, vectors: Tensor, draw: Draw, sets: Sets) -> Tensor:  # (A,)
        config, device = self._config, self._device
        tokens, count, frames = sets.latents.shape[:3]
        batch = tokens * count * frames

        def for_every_token(drawn: Tensor) -> Tensor:  # (S,F,…) -> (A·S·F,…)
            return drawn.to(device).expand(tokens, *drawn.shape).reshape(batch, *drawn.shape[2:])

        text = self._text(vectors, draw.captions).repeat_interleave(frames, dim=0)
        cameras = sets.cameras.reshape(batch, -1)
        timesteps = for_every_token(draw.timesteps)
        weights = foreground_weights(sets.masks, config.foreground_weight).flatten(0, 2)  # (B,1,h,w)
        if config.snr_gamma is not None:
            snr = snr_weights(draw.timesteps.flatten(), self._alphas, config.snr_gamma)
            weights = weights * for_every_token(snr.reshape(draw.timesteps.shape))[:, None, None, None]

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            with self._autocast():
                return self._model.predict_noise(noisy, t, text, cameras, num_frames=frames)

        losses = denoising_losses(
            predict,
            sets.latents.flatten(0, 2),
            for_every_token(draw.noise),
            timesteps,
            weights,
            self._device_alphas,
        )
        return losses.reshape(tokens, -1).mean(dim=1)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        """bfloat16 on GPUs that have it; CPUs are slower with it (measured), and a half-precision model needs none."""
        if self._config.precision == "bf16" and self._device.type == "cuda" and self._model.dtype == torch.float32:
            return torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_bf16_supported())
        return contextlib.nullcontext()


def _row(draw: Draw, i: int) -> Draw:
    """The i-th set of some draws alone."""
    return Draw(*(getattr(draw, name)[i : i + 1] for name in Draw.__dataclass_fields__))
