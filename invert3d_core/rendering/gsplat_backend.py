"""The field's CUDA rasteriser, gsplat, as an optional accelerator: used when a real call to it works, never required.

Its results differ from the torch backend's in two points. Release 1.5.3 caps alpha at 0.999 instead of 0.99, which
moves colours by up to 0.016. And it bounds a splat at 3.33 standard deviations, where its alpha has fallen to 1/255,
with an approximate logarithm: on the rim of a splat, where alpha is 1/255 to rounding, one backend may skip what the
other draws, which moves a colour by up to 1/255 a splat. With equal caps and away from such rims both agree to float32
rounding, and so do the gradients.
"""

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .projection import BLUR, Frame, Limits, Scene, normals_of

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
        torch.tensor([[[16.0, 0.0, 8.0], [0.0, 16.0, 8.0], [0.0, 0.0, 1.0]]], device=device),
        torch.zeros(1, 3, device=device),
    )
    color, alpha, depth, _ = draw(scene, Frame(16, 16, 0, 0.2, Limits()))
    (color.sum() + depth[0, 8, 8]).backward()
    color, alpha = color.detach(), alpha.detach()
    variance = (16.0 * 0.2 / 2) ** 2 + BLUR
    expected = 0.5 * torch.exp(torch.tensor(-0.25 / variance)).item()  # half a pixel off in x and in y
    found = float(alpha[0, 8, 8])
    if abs(found - expected) > 1e-3 or abs(float(color[0, 8, 8, 0]) - expected / 2) > 1e-3:
        return f"a test call gave alpha {found:.4f} where {expected:.4f} is right"
    if position.grad is None or not position.grad.isfinite().all():
        return "a test call gave no gradient"
    return None


def draw(scene: Scene, frame: Frame) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colour (C,H,W,3) without a background, alpha (C,H,W), expected depth (C,H,W; 0 where alpha is 0), normals.

    The normals are their weighted sum (C,H,W,3), drawn by a second call, or (C,H,W,0) when the frame asks for none.
    """
    from gsplat import rasterization

    options: dict[str, Any] = {
        "near_plane": frame.near,
        "far_plane": FAR,
        "eps2d": BLUR,
        "rasterize_mode": "antialiased" if frame.antialiased else "classic",
    }

    def picture_of(colors: Tensor, sh_degree: int | None, render_mode: str) -> tuple[Tensor, Tensor]:
        picture, alpha, _ = rasterization(
            scene.positions,
            scene.rotations,
            scene.scales,
            scene.opacities.reshape(-1),
            colors,
            scene.viewmats,
            scene.intrinsics,
            frame.width,
            frame.height,
            sh_degree=sh_degree,
            render_mode=render_mode,
            **options,
        )
        return picture, alpha[..., 0]

    picture, alpha = picture_of(scene.sh, frame.sh_degree, "RGB+ED")
    normals = picture_of(normals_of(scene), None, "RGB")[0] if frame.normals else picture[..., :0]
    return picture[..., :3], alpha, picture[..., 3], normals
