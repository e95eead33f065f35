"""Sets of views for a batch of tokens, drawn from banks or rendered anew."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..cameras import orbit
from ..devices import sent
from ..errors import TrainingError
from ..mvdream import MVDream
from ..splats import GaussianSplats
from .losses import masks_at_latent_size
from .presets import InversionConfig
from .views import (
    SET_SIZE,
    Framing,
    LatentBank,
    SplatViews,
    Views,
    ViewSet,
    camera_vectors,
    encode_views,
    frame,
    render_bank,
)


class Sets(NamedTuple):
    """S sets of F views for each of A tokens: latents (A,S,F,C,h,w), masks (A,S,F,h,w), cameras (A,S,F,16)."""

    latents: Tensor
    masks: Tensor
    cameras: Tensor


class ViewSource(Protocol):
    """Where a step takes its views from.

    pick_ranges: the inclusive range of each whole number that picks a set. latent_shape: (F,C,h,w) of one set.
    ready: whether sets only have to be looked up.
    """

    pick_ranges: list[tuple[int, int]]
    latent_shape: tuple[int, ...]
    ready: bool

    def sets(self, picks: Tensor, posterior: Tensor) -> Sets:
        """The picked sets of every token; picks (S,len(pick_ranges)), posterior (S,F,C,h,w) noise of the VAE's draw."""
        ...


def view_source(
    views: Sequence[Views], model: MVDream, config: InversionConfig, between: Callable[[], None] = lambda: None
) -> ViewSource:
    """The source of a run: renders and encodes banks, or gets ready to render. between: as in `render_bank`.

    Raises TrainingError if the views do not fit the config or each other.
    """
    splats = [SplatViews(v) if isinstance(v, GaussianSplats) else v for v in views]
    if config.views == "fresh":
        if not all(isinstance(v, SplatViews) for v in splats):
            raise TrainingError(
                f"The preset '{config.preset}' renders new views at every step, so it needs a splat; prepared "
                "views were given. Give the splat itself, or choose the preset 'recommended'."
            )
        return FreshViews([v for v in splats if isinstance(v, SplatViews)], model, config)
    banks: list[LatentBank] = []
    for view in splats:
        if isinstance(view, SplatViews):
            banks.append(render_bank(model, view, config, between))
        else:
            banks.append(encode_views(model, view, config, between) if isinstance(view, ViewSet) else view)
    return Banks(banks, model)


class Banks:
    """One bank per token, on the model's device; a pick is the number of a set."""

    ready = True

    def __init__(self, banks: Sequence[LatentBank], model: MVDream) -> None:
        shapes = {(tuple(bank.sets.shape), tuple(bank.mean.shape[1:])) for bank in banks}
        if len(shapes) > 1:
            raise TrainingError(
                f"Tokens trained together need banks of one shape; these have (sets, latents) {sorted(shapes)}. Train "
                "them apart, or make their banks with the same cameras."
            )
        ((sets, frames), latent), *_ = shapes
        if latent != model.latent_shape or sets < 1:
            raise TrainingError(
                f"The bank has {sets} sets of latents {latent}; the model's latents are {model.latent_shape}. Encode "
                "the views with the model they train a token of."
            )
        device = model.device
        self.pick_ranges = [(0, sets - 1)]
        self.latent_shape: tuple[int, ...] = (frames, *latent)
        rows = [bank.sets.to(bank.mean.device) for bank in banks]
        # Gathered set by set once, so that a step only indexes.
        self._mean = torch.stack([b.mean[r] for b, r in zip(banks, rows, strict=True)]).to(device)  # (A,S,F,C,h,w)
        self._std = torch.stack([b.std[r] for b, r in zip(banks, rows, strict=True)]).to(device)
        self._masks = torch.stack([b.masks[r] for b, r in zip(banks, rows, strict=True)]).to(device)
        self._cameras = torch.stack([b.cameras[r] for b, r in zip(banks, rows, strict=True)]).to(device)

    def sets(self, picks: Tensor, posterior: Tensor) -> Sets:
        chosen = sent(picks[:, 0], self._mean.device)
        latents = self._mean[:, chosen] + self._std[:, chosen] * posterior.to(self._mean)
        return Sets(latents, self._masks[:, chosen], self._cameras[:, chosen])


class FreshViews:
    """Splats rendered and encoded at every step, as published; a pick is elevation and first azimuth in degrees."""

    ready = False

    def __init__(self, splats: Sequence[SplatViews], model: MVDream, config: InversionConfig) -> None:
        self.pick_ranges = [config.fresh_elevation_deg, config.fresh_azimuth_deg]
        self.latent_shape: tuple[int, ...] = (SET_SIZE, *model.latent_shape)
        self._framed = [(splat, frame(splat, model.info, config)) for splat in splats]
        self._model = model
        self._config = config

    @torch.no_grad()
    def sets(self, picks: Tensor, posterior: Tensor) -> Sets:
        parts = [self._render(splat, framing, picks, posterior) for splat, framing in self._framed]
        return Sets(*(torch.stack(column) for column in zip(*parts, strict=True)))

    def _render(
        self, views: SplatViews, framing: Framing, picks: Tensor, posterior: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        model, config, size = self._model, self._config, self._model.info.image_size
        quarter = 360.0 / SET_SIZE
        azimuths = (picks[:, 1:].double() + torch.arange(SET_SIZE) * quarter).flatten()
        elevations = picks[:, 0].double().repeat_interleave(SET_SIZE)
        cams = orbit(azimuths, elevations, framing.radius, framing.fov_y_deg, size, size)
        images, masks = views.render(cams, framing.center, config.background)
        mean, std = model.encode_images(images)
        mean, std = (x.to(model.device, torch.float32).reshape(posterior.shape) for x in (mean, std))
        small = masks_at_latent_size(masks.float(), *model.latent_shape[1:]).to(model.device)
        vectors = camera_vectors(model, cams, config.align_front).to(model.device, torch.float32)
        sets = (picks.shape[0], SET_SIZE)
        latents = mean + std * posterior.to(mean)
        return latents, small.reshape(*sets, *small.shape[1:]), vectors.reshape(*sets, -1)
