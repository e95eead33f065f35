"""What a fit moves: splats as unbounded values, where they start, and one Adam for each kind of them."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Adam

from ..cameras import Sphere
from ..cameras.conversions import to_intrinsics, to_viewmats
from ..splats import GaussianSplats
from ..splats.spherical_harmonics import C0, coefficients
from .hull import Hull, project, visual_hull
from .presets import FitConfig
from .views import PosedViews

Parameters = dict[str, Parameter]
"""means (N,3), scales (N,3) logarithms, quats (N,4), opacities (N,) logits, sh0 (N,1,3) and, above degree 0,
shN (N,K-1,3): the names that gsplat's strategies know."""

Optimizers = dict[str, Adam]

# What cameras stand in: the world of an asset, or that of a file, of which nothing is known.
COMMENTS = {"asset": 'fitted to views by Invert3D, up="+y", front="+z"', "splat": "fitted to views by Invert3D"}
SCALE_SHARE = 0.6  # of the distance between neighbours: splats that just close a surface
HIGHER_DEGREES = 1 / 20  # of the rate of the base colour
ADAM = {"betas": (0.9, 0.999), "eps": 1e-15}  # of 3D Gaussian splatting: gradients are far below the usual 1e-8


def start(
    views: PosedViews,
    region: Sphere,
    config: FitConfig,
    generator: torch.Generator,
    between: Callable[[], None] = lambda: None,
) -> Parameters:
    """Splats on the surface of the visual hull in the colours of the views that face them, or anywhere in the region.

    generator: on the CPU. between: called between views.
    """
    device = views.images.device
    hull = visual_hull(views.silhouettes, views.cameras, region, between) if config.start == "hull" else None
    if hull is None:
        directions = F.normalize(torch.randn(config.splats, 3, generator=generator), dim=-1)
        radii = region.radius * torch.rand(config.splats, 1, generator=generator) ** (1 / 3)
        means = (region.center + radii * directions).to(device)
        colors = torch.full((config.splats, 3), 0.5, device=device)
        spacing = region.radius * (4 / 3 * math.pi / config.splats) ** (1 / 3)
    else:
        picks = _spread(len(hull.points), config.splats, generator).to(device)
        jitter = (torch.rand(config.splats, 3, generator=generator) - 0.5).to(device)
        means = hull.points[picks] + hull.spacing * jitter
        colors = _facing_colors(hull, views)[picks]
        spacing = hull.spacing * math.sqrt(len(hull.points) / config.splats)
    quats = F.normalize(torch.randn(config.splats, 4, generator=generator), dim=-1).to(device)
    logit = math.log(config.start_opacity / (1 - config.start_opacity))
    values = {
        "means": means,
        "scales": torch.full((config.splats, 3), math.log(SCALE_SHARE * spacing), device=device),
        "quats": quats,
        "opacities": torch.full((config.splats,), logit, device=device),
        "sh0": ((colors - 0.5) / C0)[:, None],
    }
    if config.sh_degree:
        values["shN"] = torch.zeros(config.splats, coefficients(config.sh_degree) - 1, 3, device=device)
    return {name: Parameter(value) for name, value in values.items()}


def splats_of(params: Mapping[str, Tensor], means: Tensor | None = None, comment: str = "") -> GaussianSplats:
    """The splats that the parameters stand for, with gradients to them. means: to use in place of theirs."""
    return GaussianSplats(
        params["means"] if means is None else means,
        params["scales"].exp(),
        F.normalize(params["quats"], dim=-1),
        params["opacities"].sigmoid()[:, None],
        sh_of(params),
        comment=comment,
        check_values=False,
    )


def sh_of(params: Mapping[str, Tensor]) -> Tensor:  # (N,K,3)
    """All coefficients of the colours, with gradients."""
    return torch.cat([params["sh0"], params["shN"]], 1) if "shN" in params else params["sh0"]


def make_optimizers(params: Parameters, config: FitConfig) -> Optimizers:
    """One Adam for each kind of value; the one of the positions gets its rate at each step."""
    rates = {
        "means": config.position_rate,
        "scales": config.scale_rate,
        "quats": config.rotation_rate,
        "opacities": config.opacity_rate,
        "sh0": config.color_rate,
        "shN": config.color_rate * HIGHER_DEGREES,
    }
    return {name: Adam([value], lr=rates[name], **ADAM) for name, value in params.items()}


def position_rate_at(step: int, config: FitConfig) -> float:
    """The rate of the positions at a step (0 the first): exponential from position_rate to final_position_rate."""
    done = step / max(1, config.steps - 1)
    return config.position_rate ** (1 - done) * config.final_position_rate**done


def replace_rows(
    params: Parameters,
    optimizers: Optimizers,
    kept: Tensor,  # (K,) int64
    added: dict[str, Tensor],  # name -> (A,…)
) -> None:
    """Keep some splats, in this order, and put others behind them, whose moments start at 0."""
    for name, old in list(params.items()):
        new = Parameter(torch.cat([old.detach()[kept], added[name]]))
        optimizer = optimizers[name]
        state = optimizer.state.pop(old, {})
        for key in ("exp_avg", "exp_avg_sq"):
            if key in state:
                state[key] = torch.cat([state[key][kept], torch.zeros_like(added[name])])
        optimizer.param_groups[0]["params"] = [new]
        optimizer.state[new] = state
        params[name] = new


def _spread(available: int, count: int, generator: torch.Generator) -> Tensor:  # (count,) int64
    """Indices spread evenly: none is taken twice before all are taken once."""
    rounds = [torch.randperm(available, generator=generator) for _ in range(-(-count // available))]
    return torch.cat(rounds)[:count]


def _facing_colors(hull: Hull, views: PosedViews) -> Tensor:  # (P,3)
    """What the views show at each cell of the hull, those that face it most; what may hide it is not known."""
    total = torch.zeros_like(hull.points)
    weights = torch.zeros(len(hull.points), 1, device=hull.points.device)
    cams = views.cameras
    precise = cams.to("cpu", torch.float64)
    viewmats, focals = to_viewmats(precise).to(hull.points), to_intrinsics(precise)[:, 1, 1].tolist()
    for i, focal in enumerate(focals):
        pixel, shown = project(hull.points, viewmats[i], focal, cams.width, cams.height)
        toward = F.normalize(cams.centers[i].to(hull.points) - hull.points, dim=-1)
        row, column = pixel[:, 1], pixel[:, 0]
        weight = (toward * hull.normals).sum(-1).clamp_min(1e-3).square()
        weight = (weight * (shown & views.silhouettes[i, row, column]))[:, None]
        total += weight * views.images[i, row, column]
        weights += weight
    return torch.where(weights > 0, total / weights.clamp_min(1e-12), 0.5).clamp(0, 1)
