"""Pictures of Gaussian splats: the public calls, and what they return."""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..cameras import Cameras, conversions
from ..devices import sent
from ..errors import RenderError
from . import gsplat_backend, torch_backend
from .projection import Frame, Limits, Scene

if TYPE_CHECKING:
    from ..splats import GaussianSplats

Backend = Literal["auto", "torch", "gsplat"]
Background = Sequence[float] | Tensor
WHITE = (1.0, 1.0, 1.0)


class Rendering:
    """Pictures of C cameras.

    color: (C,H,W,3) over the background, display space, at least 0 (above 1 where a splat's colour is).
    alpha: (C,H,W) in [0,1], what hides the background. depth: (C,H,W) expected distance along the view axis in scene
    units, Σ w z / Σ w, and 0 where alpha is 0. depth_median: (C,H,W) distance of the splat behind which at most half
    of the light is left, and 0 where more is left; without gradients. normals: (C,H,W,3), when they were asked for,
    unit vectors in OpenGL camera space (x right, y up, z towards the viewer), and 0 where alpha is 0.
    """

    def __init__(
        self,
        color: Tensor,
        alpha: Tensor,
        depth: Tensor,
        depth_median: Tensor | Callable[[], Tensor],
        normals: Tensor | None = None,
    ) -> None:
        self.color = color
        self.alpha = alpha
        self.depth = depth
        self._depth_median = depth_median
        self._normals = normals

    @cached_property
    def depth_median(self) -> Tensor:
        """Median depth (C,H,W). The gsplat backend has none, so there it is drawn by the torch one at the first use."""
        median = self._depth_median if isinstance(self._depth_median, Tensor) else self._depth_median()
        del self._depth_median  # and with it the scene that it may hold
        return median

    @property
    def normals(self) -> Tensor:
        """Normals (C,H,W,3). Raises RenderError when they were not asked for."""
        if self._normals is None:
            raise RenderError("This rendering has no normals: they are drawn by rasterize(..., normals=True).")
        return self._normals


class _Plan(NamedTuple):
    """What stays the same for all cameras of a call."""

    frame: Frame
    backend: str


def rasterize(
    g: "GaussianSplats",
    cams: Cameras,
    background: Background = WHITE,
    sh_degree: int | None = None,
    near: float = 0.2,
    backend: Backend = "auto",
    *,
    normals: bool = False,
    antialiased: bool = False,
) -> Rendering:
    """Draw Gaussian splats from cameras in the splat's own frame (`Orientation.into_splat_frame`).

    g: N splats on the device that draws; cams: C cameras on any device. background: a colour (3,), one per camera
    (C,3), or pictures (H,W,3) or (C,H,W,3). sh_degree: the highest degree of colour to use; None = all there is.
    near: splats nearer than this along the view axis are left out, scene units, > 0. backend: "torch", "gsplat" (CUDA,
    float32), or "auto": gsplat where a real call to it works, else torch. normals: draw `Rendering.normals` too: the
    normal of a splat is its shortest axis, turned towards the camera; they are blended as colours are, then brought to
    length 1. antialiased: a splat that the blur widens loses opacity in the same measure, o √(det Σ / det(Σ + 0.3 I))
    with its screen covariance Σ (Mip-Splatting, Yu et al., 2024; gsplat's rasterize_mode "antialiased"). It suits
    splats that were trained so, and pictures much smaller than those of the training.

    Semantics of 3D Gaussian splatting (Kerbl et al., 2023): EWA projection, 0.3 px² of blur, alpha = min(0.99,
    o exp(−m/2)), alphas below 1/255 skipped, front to back by depth, stopped before the transmittance would fall below
    1e-4, colour = max(0, SH + 0.5), blended in display space. gsplat 1.5.3 differs in two points (see
    `gsplat_backend`). Differentiable in all tensors of g, in the cameras and in the background. Memory grows with the
    splats and with the pictures that are returned; for many cameras `rasterize_each` holds one picture at a time.

    Raises RenderError when shapes do not fit, the degree is not there, near is not positive, or the named backend does
    not work here.
    """
    plan = _plan(g, cams, sh_degree, near, backend, normals, antialiased)
    return _draw(g, cams, _background(background, cams, g.positions), plan)


def rasterize_each(
    g: "GaussianSplats",
    cams: Cameras,
    background: Background | Callable[[int], Background] = WHITE,
    sh_degree: int | None = None,
    near: float | Sequence[float] = 0.2,
    backend: Backend = "auto",
    *,
    normals: bool = False,
    antialiased: bool = False,
) -> Iterator[Rendering]:
    """Draw one camera after the other: `rasterize` of each, C renderings of one picture each, in the cameras' order.

    Nothing is kept, so that the memory is that of one picture however many there are. background: as for `rasterize`,
    or a function that gives the background of the camera with an index, (3,) or (H,W,3), when its turn comes. near: one
    for all, or one for each camera. The rest as for `rasterize`, gradients included.

    Raises RenderError as `rasterize`: at once, but for what a function gives as a background.
    """
    one = isinstance(near, (int, float))
    nears = [near] * len(cams) if one else near
    if len(nears) != len(cams):
        raise RenderError(f"rasterize: near has {len(nears)} distances for {len(cams)} cameras; give one or as many")
    worst = near if one else min(nears, key=lambda distance: distance > 0, default=1.0)  # NaN is not above 0 either
    plan = _plan(g, cams, sh_degree, worst, backend, normals, antialiased)
    behind = background if callable(background) else _each(_background(background, cams, g.positions), len(cams))

    def draw() -> Iterator[Rendering]:
        for index, (cam, distance) in enumerate(zip(cams, nears, strict=True)):
            its_plan = plan._replace(frame=plan.frame._replace(near=float(distance)))
            yield _draw(g, cam, _background(behind(index), cam, g.positions), its_plan)

    return draw()


def _each(background: Tensor, count: int) -> Callable[[int], Tensor]:
    """The background of each camera out of one that broadcasts against (C,H,W,3)."""
    if background.ndim < 4 or len(background) != count:
        return lambda index: background
    return lambda index: background[index].squeeze((0, 1)) if background.shape[1:3] == (1, 1) else background[index]


def _plan(
    g: "GaussianSplats",
    cams: Cameras,
    sh_degree: int | None,
    near: float,
    backend: str,
    normals: bool,
    antialiased: bool,
) -> _Plan:
    degree = g.degree if sh_degree is None else sh_degree
    if not 0 <= degree <= g.degree:
        raise RenderError(
            f"rasterize: sh_degree is {sh_degree}, but the splat holds degrees 0 to {g.degree}; ask for one of these"
        )
    if not near > 0:
        raise RenderError(f"rasterize: near is {near}, expected a positive distance in scene units")
    frame = Frame(cams.width, cams.height, degree, float(near), Limits(), normals, antialiased)
    return _Plan(frame, _choose(backend, g.positions))


def _draw(g: "GaussianSplats", cams: Cameras, behind: Tensor, plan: _Plan) -> Rendering:
    scene, frame = scene_of(g, cams), plan.frame
    if plan.backend == "gsplat" and len(g.positions) and len(cams):
        color, alpha, depth, normal = gsplat_backend.draw(scene, frame)
        median = partial(_median_by_torch, scene, frame)
    else:
        drawn = torch_backend.composite(scene, frame)
        color, alpha, normal, median = drawn.color, drawn.alpha, drawn.normal, drawn.depth_median
        depth = torch.where(alpha > 0, drawn.depth / torch.where(alpha > 0, alpha, 1), 0)
    normals = torch.nn.functional.normalize(normal, dim=-1) if frame.normals else None
    return Rendering(color + (1 - alpha)[..., None] * behind, alpha, depth, median, normals)


def scene_of(g: "GaussianSplats", cams: Cameras) -> Scene:
    """Splats and cameras as tensors on the device of the splats."""
    return Scene(g.positions, g.scales, g.rotations, g.opacities, g.sh, *_camera_tensors(cams, g.positions))


_kept: WeakKeyDictionary[Cameras, tuple[object, tuple[Tensor, ...]]] = WeakKeyDictionary()


def _camera_tensors(cams: Cameras, like: Tensor) -> tuple[Tensor, ...]:
    """World-to-camera matrices, intrinsics and centres, with the dtype and device of a tensor.

    A GPU draws a small splat in less than a millisecond, of which making these would take a tenth; so they are kept
    with cameras that need no gradients.
    """
    learned = cams.c2w.requires_grad or cams.fov_y_deg.requires_grad
    # What is made while a stream is captured is nothing before the replay.
    if not like.is_cuda or cams.c2w.is_cuda or learned or torch.cuda.is_current_stream_capturing():
        return _made_camera_tensors(cams, like)
    # What one stream has on its way another may not read yet; and whoever may have changed the cameras in place.
    stream = torch.cuda.current_stream(like.device).cuda_stream
    key = like.dtype, like.device, stream, cams.c2w.numpy().tobytes(), cams.fov_y_deg.numpy().tobytes()
    known = _kept.get(cams)
    if known is None or known[0] != key:
        with torch.inference_mode(False):  # what is kept must serve outside a host's inference mode, too
            known = _kept[cams] = key, _made_camera_tensors(cams, like)
    return known[1]


def _made_camera_tensors(cams: Cameras, like: Tensor) -> tuple[Tensor, ...]:
    """They are made in float64 on the CPU and sent in one copy."""
    precise = copy(cams)  # without the checks of new ones: cameras that are learned drift from rotations
    for name in ("c2w", "fov_y_deg"):
        object.__setattr__(precise, name, getattr(cams, name).to("cpu", torch.float64))
    viewmats, intrinsics = conversions.to_viewmats(precise), conversions.to_intrinsics(precise)
    numbers = torch.cat([viewmats.flatten(1), intrinsics.flatten(1), precise.centers], 1)
    # A copy that waits for the GPU would keep it from being given this picture while it draws the one before.
    numbers = sent(numbers.to(like.dtype), like.device)
    viewmats, intrinsics, centers = numbers.split([16, 9, 3], 1)
    return viewmats.unflatten(1, (4, 4)), intrinsics.unflatten(1, (3, 3)), centers


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
    value = sent(torch.as_tensor(background).to(like.dtype), like.device)
    shape, picture = tuple(value.shape), (cams.height, cams.width, 3)
    if shape in ((3,), picture, (1, *picture), (len(cams), *picture)):
        return value
    if shape == (len(cams), 3):
        return value[:, None, None]
    raise RenderError(
        f"rasterize: the background has shape {shape}, expected a colour (3,), one per camera ({len(cams)}, 3), or "
        f"pictures {picture} or {(len(cams), *picture)}; resize it to the cameras' width and height"
    )
