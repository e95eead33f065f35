"""How many splats a fit has and where: cloned, split and removed by how much the pictures pull at them.

A plain version of the adaptive density control of "3D Gaussian Splatting" (Kerbl et al. 2023) for every device; where
gsplat works, `gsplat_density` has the field's own.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..cameras import Cameras
from ..rendering import rasterize
from ..splats.gaussians import rotation_matrices
from .parameters import Optimizers, Parameters, replace_rows, splats_of
from .presets import FitConfig

SPLIT_SHRINK = 1.6  # of the published method
_UNCOUNTED = 1e-12  # a pull below this is a splat that no pixel sees


class Drawn(NamedTuple):
    """Pictures of V cameras, with gradients: color (V,H,W,3) over the backgrounds, alpha (V,H,W)."""

    color: Tensor
    alpha: Tensor


class Density(Protocol):
    """Draws the splats, watches what the loss does to them, and changes how many there are.

    stats: what was watched since the last change, by name; empty before the first step. It belongs to the state of a
    fit.
    """

    stats: dict[str, Tensor]

    def draw(self, params: Parameters, cams: Cameras, backgrounds: Tensor, degree: int) -> Drawn:
        """Pictures over colours (V,3), with spherical harmonics up to a degree."""
        ...

    def changed(self, params: Parameters, optimizers: Optimizers, step: int, position_rate: float) -> None:
        """To be called after the optimisers' step; step: 1 for the first. position_rate: of that step, scene units."""
        ...


class PlainDensity:
    """Density control without gsplat: fixed, or adaptive.

    extent: radius of the region, scene units. near: see `rendering.rasterize`. between: called between the pictures of
    a step, so that a step can be left. generator: of a step, for what is drawn in it.
    """

    def __init__(
        self,
        config: FitConfig,
        extent: float,
        near: float,
        generator: Callable[[int], torch.Generator],
        between: Callable[[], None],
    ) -> None:
        self.stats: dict[str, Tensor] = {}
        self._config = config
        self._extent = extent
        self._near = near
        self._generator = generator
        self._between = between
        self._watched: list[tuple[Tensor, Cameras]] = []

    def draw(self, params: Parameters, cams: Cameras, backgrounds: Tensor, degree: int) -> Drawn:
        """Pictures over colours (V,3), with spherical harmonics up to a degree."""
        watch = self._config.density == "adaptive" and torch.is_grad_enabled()
        self._watched = []
        colors, alphas = [], []
        for cam, background in zip(cams, backgrounds, strict=True):
            means = params["means"]
            if watch:  # a tensor for each view: its gradient is the pull of that view alone
                means = means.clone()
                means.retain_grad()
                self._watched.append((means, cam))
            drawn = rasterize(splats_of(params, means), cam, background, degree, self._near)
            colors.append(drawn.color)
            alphas.append(drawn.alpha)
            self._between()
        return Drawn(torch.cat(colors), torch.cat(alphas))

    @torch.no_grad()
    def changed(self, params: Parameters, optimizers: Optimizers, step: int, position_rate: float) -> None:
        """To be called after the optimisers' step; step: 1 for the first."""
        config = self._config
        if config.density != "adaptive" or step >= config.refine_until:
            self.stats = {}
            return
        self._count(params)
        if step > config.refine_from and step % config.refine_every == 0:
            self._refine(params, optimizers, step)
            self.stats = {}
        if config.reset_every and step % config.reset_every == 0:
            reset_opacities(params, optimizers, 2 * config.prune_opacity)

    def _count(self, params: Parameters) -> None:
        """Add the pulls of the step's views."""
        if not self.stats:
            self.stats = {name: torch.zeros(len(params["means"])).to(params["means"]) for name in ("grad2d", "count")}
        for means, cam in self._watched:
            if means.grad is not None:
                # The loss is a mean over the views; a pull is that of one view alone.
                pull = screen_pull(means.detach(), means.grad * len(self._watched), cam)
                self.stats["grad2d"] += pull
                self.stats["count"] += pull > _UNCOUNTED
        self._watched = []

    def _refine(self, params: Parameters, optimizers: Optimizers, step: int) -> None:
        config = self._config
        pull = self.stats["grad2d"] / self.stats["count"].clamp_min(1)
        largest = params["scales"].detach().exp().amax(-1)
        faint = params["opacities"].detach().sigmoid() < config.prune_opacity
        if config.reset_every and step > config.reset_every:
            faint |= largest > config.prune_scale * self._extent
        grows = (pull > config.grow_gradient) & ~faint
        room = config.max_splats - int((~faint).sum())
        if int(grows.sum()) > room:  # those that are pulled at most
            ordered = torch.where(grows, pull, -1).argsort(descending=True, stable=True)
            grows = torch.zeros_like(grows).index_fill(0, ordered[: max(0, room)], True)
        large = largest > config.split_scale * self._extent
        cloned, split = (grows & ~large).nonzero()[:, 0], (grows & large).nonzero()[:, 0]
        kept = (~faint & ~(grows & large)).nonzero()[:, 0]
        added = {}
        halves = split.repeat(2)
        for name, value in params.items():
            rows = value.detach()[halves]
            if name == "means":
                noise = torch.randn(len(halves), 3, generator=self._generator(step)).to(rows)
                offsets = noise * params["scales"].detach()[halves].exp()
                turns = rotation_matrices(params["quats"].detach()[halves])
                rows = rows + (turns * offsets[:, None]).sum(-1)
            elif name == "scales":
                rows = (rows.exp() / SPLIT_SHRINK).log()
            added[name] = torch.cat([value.detach()[cloned], rows])
        if len(kept) + len(cloned) + len(halves):
            replace_rows(params, optimizers, kept, added)


@torch.no_grad()
def reset_opacities(params: Parameters, optimizers: Optimizers, highest: float) -> None:
    """Make every splat at most so opaque, so that those that the pictures ask for must earn it again."""
    params["opacities"].clamp_(max=float(torch.logit(torch.tensor(highest))))
    state = optimizers["opacities"].state[params["opacities"]]
    for key in ("exp_avg", "exp_avg_sq"):
        state[key].zero_()


def screen_pull(
    means: Tensor,  # (N,3)
    gradient: Tensor,  # (N,3)
    cam: Cameras,
) -> Tensor:  # (N,)
    """How strongly a loss pulls at splats on the screen of one camera: the length of its gradient by their place there,
    in units of half a picture, as the published thresholds count it.

    A place on the screen moves by J for a move in space, so the gradient in space is that on the screen times J; the
    screen's is found back by least squares. What a move in space changes besides (depth, footprint, the colour's
    direction) is counted as far as it pulls across the view.
    """
    rotation = cam.c2w[0, :3, :3].mT.to(means)  # rows right, up, backward
    offset = means - cam.centers[0].to(means)
    x, y, z = (offset[:, None] * rotation).sum(-1).unbind(-1)
    depth = (-z).clamp_min(1e-6)
    focal = cam.height / 2 / torch.tan(torch.deg2rad(cam.fov_y_deg[0].to(means)) / 2)
    # Rows of J: right and up on the screen in pixels.
    across = (focal / depth)[:, None] * (rotation[0] + (x / depth)[:, None] * rotation[2])
    along = (focal / depth)[:, None] * (rotation[1] + (y / depth)[:, None] * rotation[2])
    aa, bb, ab = (across * across).sum(-1), (along * along).sum(-1), (across * along).sum(-1)
    ga, gb = (across * gradient).sum(-1), (along * gradient).sum(-1)
    determinant = (aa * bb - ab * ab).clamp_min(1e-20)
    pull = torch.stack([(bb * ga - ab * gb) * cam.width / 2, (aa * gb - ab * ga) * cam.height / 2], -1)
    return pull.norm(dim=-1) / determinant
