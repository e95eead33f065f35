"""The field's CUDA rasteriser, gsplat, as an optional accelerator: used when a real call to it works, never required.

Its results differ from the torch backend's in one point: release 1.5.3 caps alpha at 0.999 instead of 0.99. With equal
caps both agree to float32 rounding.
"""

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .projection import BLUR, Frame, Limits, Scene

logger = logging.getLogger("invert3d")

FAR = 1e10  # gsplat's own default: no far plane


def why_not(device: torch.device) -> str | None:
    """Why gsplat cannot draw on a CUDA device, in words; None when it can.

    The first call per device of a process tries it on a tiny scene, forward and backward, and logs what came of it;
    where gsplat has no compiled kernels for this torch it compiles them, which takes minutes, once.
    """
    index = device.index if device.index is not None else torch.cuda.current_device()
    return _try(index)


@cache
def _try(index: int) -> str | None:
    try:
        import gsplat

        with torch.inference_mode(False), torch.enable_grad():
            reason = _probe(torch.device("cuda", index))
        version = getattr(gsplat, "__version__", "of unknown version")
    except ImportError as error:
        reason, version = f"gsplat is not installed ({error})", ""
    except Exception as error:  # an accelerator that does not work must never be a reason to stop
        reason, version = f"a test call failed ({type(error).__name__}: {error})", ""
    if reason:
        logger.info("Drawing splats with torch: %s", reason)
    else:
        logger.info("Drawing splats on cuda:%d with gsplat %s", index, version)
    return reason


def _probe(device: torch.device) -> str | None:
    """One splat in the middle of a 16×16 picture must come out where the formula says, with a gradient."""
    position = torch.tensor([[0.0, 0.0, 2.0]], device=device, requires_grad=True)
    scene = Scene(
        position,
        torch.full((1, 3), 0.2, device=device),
        torch.tensor([[1.0, 0.0, 0.0, 0.0]], device=device),
        torch.full((1, 1), 0.5, device=device),
        torch.zeros(1, 1, 3, device=device),
        torch.eye(4, device=device)[None],
        torch.full((1,), 16.0, device=device),
        torch.zeros(1, 3, device=device),
    )
    color, alpha, depth = draw(scene, Frame(16, 16, 0, 0.2, Limits()))
    (color.sum() + depth[0, 8, 8]).backward()
    variance = (16.0 * 0.2 / 2) ** 2 + BLUR
    expected = 0.5 * torch.exp(torch.tensor(-0.25 / variance)).item()  # half a pixel off in x and in y
    found = float(alpha[0, 8, 8])
    if abs(found - expected) > 1e-3 or abs(float(color[0, 8, 8, 0]) - expected / 2) > 1e-3:
        return f"a test call gave alpha {found:.4f} where {expected:.4f} is right"
    if position.grad is None or not position.grad.isfinite().all():
        return "a test call gave no gradient"
    return None


def draw(scene: Scene, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
    """Colour (C,H,W,3) without a background, alpha (C,H,W) and expected depth (C,H,W; 0 where alpha is 0)."""
    from gsplat import rasterization

    focal = scene.focal
    intrinsics = torch.zeros(len(focal), 3, 3, dtype=focal.dtype, device=focal.device)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal
    intrinsics[:, 0, 2], intrinsics[:, 1, 2], intrinsics[:, 2, 2] = frame.width / 2, frame.height / 2, 1
    options: dict[str, Any] = {
        "near_plane": frame.near,
        "far_plane": FAR,
        "eps2d": BLUR,
        "sh_degree": frame.sh_degree,
        "render_mode": "RGB+ED",
        "rasterize_mode": "classic",
    }
    picture, alpha, _ = rasterization(
        scene.positions,
        scene.rotations,
        scene.scales,
        scene.opacities.reshape(-1),
        scene.sh,
        scene.viewmats,
        intrinsics,
        frame.width,
        frame.height,
        **options,
    )
    return picture[..., :3], alpha[..., 0], picture[..., 3]
