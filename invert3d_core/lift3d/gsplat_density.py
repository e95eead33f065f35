"""The field's density control, gsplat's strategies, on a GPU where gsplat works."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..cameras import Cameras
from ..cameras.conversions import to_intrinsics, to_viewmats
from ..errors import TrainingError
from ..rendering import gsplat_backend
from ..rendering.projection import BLUR
from .density import Drawn, reset_opacities
from .parameters import Optimizers, Parameters, replace_rows, sh_of
from .presets import FitConfig

_WATCHED = ("grad2d", "count")


def why_not(device: torch.device) -> str | None:
    """Why gsplat's strategies cannot be used on a device, in words; None when they can. The first call tries it."""
    return gsplat_backend.why_not(device) if device.type == "cuda" else f"gsplat needs a CUDA device, not {device}"


def check_device(config: FitConfig, device: torch.device) -> None:
    """Raises TrainingError when settings need gsplat on a device that it has nothing for; without trying it."""
    if config.density == "mcmc" and device.type != "cuda":
        refuse_mcmc(why_not(device))


def refuse_mcmc(reason: str | None) -> NoReturn:
    """Raises the TrainingError of an "mcmc" without gsplat."""
    raise TrainingError(f'The density "mcmc" cannot be used: {reason}. Choose "adaptive" or "fixed".')


class GsplatDensity:
    """Density control by gsplat's DefaultStrategy ("adaptive") or MCMCStrategy ("mcmc"), and drawing as they need it.

    extent, near, generator: as in `density.PlainDensity`. What the strategies draw at random comes from the global
    generators, which are set by ours for as long as they work and put back afterwards.
    """

    def __init__(
        self, config: FitConfig, extent: float, near: float, generator: Callable[[int], torch.Generator]
    ) -> None:
        self.stats: dict[str, Tensor] = {}
        self._config = config
        self._extent = extent
        self._near = near
        self._generator = generator
        self._info: dict[str, Any] | None = None
        self._strategy = _strategy(config)
        mcmc = config.density == "mcmc"
        # MCMC's holds constants that take a while to compute, and nothing of the fit.
        self._state = self._strategy.initialize_state(**({} if mcmc else {"scene_scale": extent}))

    def draw(self, params: Parameters, cams: Cameras, backgrounds: Tensor, degree: int) -> Drawn:
        """Pictures over colours (V,3), with spherical harmonics up to a degree."""
        from gsplat import rasterization

        means = params["means"]
        precise = cams.to("cpu", torch.float64)
        color, alpha, info = rasterization(
            means,
            params["quats"],
            params["scales"].exp(),
            params["opacities"].sigmoid(),
            sh_of(params),
            to_viewmats(precise).to(means),
            to_intrinsics(precise).to(means),
            cams.width,
            cams.height,
            near_plane=self._near,
            eps2d=BLUR,
            sh_degree=degree,
            packed=False,
        )
        if torch.is_grad_enabled():
            info["means2d"].retain_grad()
            self._info = info
        alpha = alpha[..., 0]
        return Drawn(color + (1 - alpha)[..., None] * backgrounds[:, None, None], alpha)

    def changed(self, params: Parameters, optimizers: Optimizers, step: int, position_rate: float) -> None:
        """To be called after the optimisers' step; step: 1 for the first."""
        if self._info is None or self._info["means2d"].grad is None:
            return
        info, self._info = self._info, None
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self._generator(step).initial_seed())  # noqa: TID251, gsplat knows no other
            if self._config.density == "mcmc":
                # A splat wanders by its covariance times the rate: over lengths squared, so that units do not matter.
                rate = position_rate / self._extent**2
                self._strategy.step_post_backward(params, optimizers, self._state, step, info, lr=rate)
                return
            self._strategy.grow_grad2d = self._threshold(len(params["means"]), step)
            state = {**self._state, **self.stats}
            self._strategy.step_post_backward(params, optimizers, state, step, info, packed=False)
            self.stats = {name: state[name] for name in _WATCHED if state[name] is not None}
        self._keep_to_limit(params, optimizers)
        config = self._config
        # Release 1.5.3 has the reset and never comes to it: its condition reads `0 & step > 0`.
        if config.reset_every and step < config.refine_until and step % config.reset_every == 0:
            reset_opacities(params, optimizers, 2 * config.prune_opacity)

    def _keep_to_limit(self, params: Parameters, optimizers: Optimizers) -> None:
        """Remove the faintest splats beyond the limit: what the threshold could not know is the pull of this step."""
        if len(params["means"]) <= self._config.max_splats:
            return
        kept = params["opacities"].detach().topk(self._config.max_splats).indices.sort().values
        replace_rows(params, optimizers, kept, {name: value.detach()[:0] for name, value in params.items()})
        self.stats = {name: value[kept] for name, value in self.stats.items()}

    def _threshold(self, count: int, step: int) -> float:
        """The pull above which splats grow, raised where more would than there may be: the strategy knows no limit."""
        config, room = self._config, self._config.max_splats - count
        if step % config.refine_every or "grad2d" not in self.stats:
            return config.grow_gradient
        pull = self.stats["grad2d"] / self.stats["count"].clamp_min(1)
        if int((pull > config.grow_gradient).sum()) <= room:
            return config.grow_gradient
        return float("inf") if room <= 0 else float(pull.topk(room + 1).values[-1])


def _strategy(config: FitConfig) -> Any:
    from gsplat import DefaultStrategy, MCMCStrategy

    if config.density == "mcmc":
        return MCMCStrategy(
            cap_max=config.max_splats,
            noise_lr=config.noise_rate,
            refine_start_iter=config.refine_from,
            refine_stop_iter=config.refine_until,
            refine_every=config.refine_every,
            min_opacity=config.prune_opacity,
        )
    return DefaultStrategy(
        prune_opa=config.prune_opacity,
        grow_grad2d=config.grow_gradient,
        grow_scale3d=config.split_scale,
        prune_scale3d=config.prune_scale,
        refine_start_iter=config.refine_from,
        refine_stop_iter=config.refine_until,
        refine_every=config.refine_every,
        # 0 would reset at every step.
        reset_every=config.reset_every or config.steps + 1,
    )
