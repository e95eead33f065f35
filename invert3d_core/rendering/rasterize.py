"""Pictures of Gaussian splats: the one public call, and what it returns."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..cameras import Cameras
from ..cameras.conversions import to_intrinsics, to_viewmats
from ..errors import RenderError
from . import gsplat_backend, torch_backend
from .projection import Frame, Limits, Scene

if TYPE_CHECKING:
    from ..splats import GaussianSplats

Backend = Literal["auto", "torch", "gsplat"]


class Rendering:
    """Pictures of C cameras.

    color: (C,H,W,3) over the background, display space, at least 0 (above 1 where a splat's colour is).
    alpha: (C,H,W) in [0,1], what hides the background. depth: (C,H,W) expected distance along the view axis in scene
    units, Σ w z / Σ w, and 0 where alpha is 0. depth_median: (C,H,W) distance of the splat behind which at most half
    of the light is left, and 0 where more is left; without gradients.
    """

    def __init__(
        self, color: Tensor, alpha: Tensor, depth: Tensor, depth_median: Tensor | Callable[[], Tensor]
    ) -> None:
        self.color = color
        self.alpha = alpha
        self.depth = depth
        self._depth_median = depth_median

    @cached_property
    def depth_median(self) -> Tensor:
        """Median depth (C,H,W). The gsplat backend has none, so there it is drawn by the torch one at the first use."""
        median = self._depth_median if isinstance(self._depth_median, Tensor) else self._depth_median()
        del self._depth_median  # and with it the scene that it may hold
        return median


def rasterize(
    g: "GaussianSplats",
    cams: Cameras,
    background: Sequence[float] | Tensor = (1.0, 1.0, 1.0),
    sh_degree: int | None = None,
    near: float = 0.2,
    backend: Backend = "auto",
) -> Rendering:
    """Draw Gaussian splats from cameras in the splat's own frame (`Orientation.into_splat_frame`).

    g: N splats on the device that draws; cams: C cameras on any device. background: a colour (3,), one per camera
    (C,3), or pictures (H,W,3) or (C,H,W,3). sh_degree: the highest degree of colour to use; None = all there is.
    near: splats nearer than this along the view axis are left out, scene units, > 0. backend: "torch", "gsplat" (CUDA,
    float32), or "auto": gsplat where a real call to it works, else torch.

    Semantics of 3D Gaussian splatting (Kerbl et al., 2023): EWA projection, 0.3 px² of blur, alpha = min(0.99,
    o exp(−m/2)), alphas below 1/255 skipped, front to back by depth, stopped before the transmittance would fall below
    1e-4, colour = max(0, SH + 0.5), blended in display space. gsplat 1.5.3 caps alpha at 0.999 instead, which moves
    colours by up to 0.016. Differentiable in all tensors of g, in the cameras and in the background.

    Raises RenderError when shapes do not fit, the degree is not there, near is not positive, or the named backend does
    not work here.
    """
    degree = g.degree if sh_degree is None else sh_degree
    if not 0 <= degree <= g.degree:
        raise RenderError(
            f"rasterize: sh_degree is {sh_degree}, but the splat holds degrees 0 to {g.degree}; ask for one of these"
        )
    if not near > 0:
        raise RenderError(f"rasterize: near is {near}, expected a positive distance in scene units")
    behind = _background(background, cams, g.positions)
    scene = scene_of(g, cams)
    frame = Frame(cams.width, cams.height, degree, float(near), Limits())

    if _choose(backend, g.positions) == "gsplat" and len(g.positions) and len(cams):
        color, alpha, depth = gsplat_backend.draw(scene, frame)
        median = partial(_median_by_torch, scene, frame)
    else:
        drawn = torch_backend.composite(scene, frame)
        color, alpha = drawn.color, drawn.alpha
        depth = torch.where(alpha > 0, drawn.depth / torch.where(alpha > 0, alpha, 1), 0)
        median = drawn.depth_median
    return Rendering(color + (1 - alpha)[..., None] * behind, alpha, depth, median)


def scene_of(g: "GaussianSplats", cams: Cameras) -> Scene:
    """Splats and cameras as tensors on the device of the splats; matrices are made in float64 on the CPU."""
    precise = cams.to("cpu", torch.float64)
    viewmats, intrinsics = to_viewmats(precise).to(g.positions), to_intrinsics(precise).to(g.positions)
    centers = precise.centers.to(g.positions)
    return Scene(g.positions, g.scales, g.rotations, g.opacities, g.sh, viewmats, intrinsics[:, 1, 1], centers)


@torch.no_grad()
def _median_by_torch(scene: Scene, frame: Frame) -> Tensor:
    return torch_backend.composite(scene, frame).depth_median


def _choose(backend: str, positions: Tensor) -> str:
    if backend not in ("auto", "torch", "gsplat"):
        raise RenderError(f"rasterize: backend is {backend!r}, expected 'auto', 'torch' or 'gsplat'")
    if backend == "torch":
        return "torch"
    if positions.device.type != "cuda" or positions.dtype != torch.float32:
        reason = f"it draws float32 splats on a CUDA device, these are {positions.dtype} on {positions.device}"
    else:
        reason = gsplat_backend.why_not(positions.device)
    if reason and backend == "gsplat":
        raise RenderError(f"rasterize: the gsplat backend cannot be used: {reason}; use backend='torch' or 'auto'")
    return "torch" if reason else "gsplat"


def _background(background: Sequence[float] | Tensor, cams: Cameras, like: Tensor) -> Tensor:
    """The background as something that broadcasts against (C,H,W,3)."""
    value = torch.as_tensor(background).to(like)
    shape, picture = tuple(value.shape), (cams.height, cams.width, 3)
    if shape in ((3,), picture, (1, *picture), (len(cams), *picture)):
        return value
    if shape == (len(cams), 3):
        return value[:, None, None]
    raise RenderError(
        f"rasterize: the background has shape {shape}, expected a colour (3,), one per camera ({len(cams)}, 3), or "
        f"pictures {picture} or {(len(cams), *picture)}; resize it to the cameras' width and height"
    )
