"""The pictures of a fit: what belongs to the object, and what lies behind it."""

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from ..checkpoints import digest
from ..errors import TrainingError
from ..metrics.structure import WINDOW

logger = logging.getLogger("invert3d")

PLAIN_TOLERANCE = 0.06  # how far colours of a plain background may lie apart, in any channel
PLAIN_SHARE = 0.9  # of the pixels that must have the background's colour
ASPECT_TOLERANCE = 0.01  # relative, between the cameras' pictures and the given ones


@dataclass(frozen=True, eq=False)
class PosedViews:
    """Pictures of one object, taken apart.

    images: (C,H,W,3) as given, over background: (3,). objects: (C,H,W,3), the object's colour times its mask, so that a
    picture over any colour b is objects + (1 − masks) · b; None where masks were guessed, whose edges are hard.
    masks: (C,H,W), 1 on the object. certain: (C,H,W), 1 where the mask is to be believed. cameras: C of the pictures'
    size.
    """

    images: Tensor
    objects: Tensor | None
    masks: Tensor
    certain: Tensor
    background: Tensor
    cameras: Cameras

    def __len__(self) -> int:
        return len(self.images)

    @property
    def silhouettes(self) -> Tensor:
        """Where the object is, (C,H,W) bool."""
        return self.masks > 0.5

    def over(self, picks: Tensor, backgrounds: Tensor) -> Tensor:  # (V,), (V,3) -> (V,H,W,3)
        """The chosen pictures over colours; over their own background where nothing else can be told."""
        if self.objects is None:
            return self.images[picks]
        return self.objects[picks] + (1 - self.masks[picks])[..., None] * backgrounds[:, None, None]


def posed_views(images: Tensor, masks: Tensor | None, cams: Cameras) -> PosedViews:
    """Pictures with cameras, ready to be fitted.

    images: (C,H,W,3) in [0,1]. masks: (C,H,W), 1 on the object; None guesses silhouettes from a plain background, and
    takes whole pictures where there is none. cams: C in the frame that the splats shall have, of any size with the
    pictures' proportions.

    Over a plain background a mask's soft edge is taken for what shows through, as in renderings, else for a cut-out.

    Raises TrainingError when shapes do not fit, values are not finite, or masks are empty.
    """
    count, height, width = (*images.shape[:3], 0, 0, 0)[:3]
    if images.ndim != 4 or images.shape[3] != 3 or count < 1 or min(height, width) < WINDOW:
        raise TrainingError(
            f"The pictures are {tuple(images.shape)}; expected (C,H,W,3), at least one of at least {WINDOW}×{WINDOW}."
        )
    if len(cams) != count:
        raise TrainingError(
            f"There are {count} pictures but {len(cams)} cameras; each needs its own. Take both from the same source."
        )
    if abs(cams.width / cams.height / (width / height) - 1) > ASPECT_TOLERANCE:
        raise TrainingError(
            f"The pictures are {width}×{height} and the cameras' {cams.width}×{cams.height}: other proportions. Crop "
            "the pictures, or take cameras and pictures from the same source."
        )
    if masks is not None and masks.shape != images.shape[:3]:
        raise TrainingError(
            f"The masks are {tuple(masks.shape)} for pictures {tuple(images.shape)}; expected (C,H,W) of the same size."
        )
    for what, values in (("pictures", images), ("masks", masks)):
        if values is not None and not bool(torch.isfinite(values).all()):
            raise TrainingError(f"The {what} hold NaN or infinite values. Make them again.")
    images = images.detach().float().clamp(0, 1)
    # Copies: what a host made under inference mode cannot be differentiated with.
    cams = Cameras(cams.c2w.detach().cpu().clone(), cams.fov_y_deg.detach().cpu().clone(), width, height, cams.frame)
    everywhere = torch.ones(images.shape[:3], device=images.device)
    if masks is None:
        background, plain = _plain_color(_border(images))
        if not plain:
            logger.info("The pictures have neither masks nor a plain background: they are fitted whole, over black.")
            nowhere = torch.zeros_like(everywhere)
            return PosedViews(images, None, everywhere, nowhere, torch.zeros_like(background), cams)
        guessed = ((images - background).abs().amax(-1) > PLAIN_TOLERANCE).float()
        # Beside an edge a pixel may be part of both.
        largest, least = (F.max_pool2d(sign * guessed[:, None], 3, 1, 1)[:, 0] * sign for sign in (1, -1))
        return PosedViews(images, None, guessed, (largest == least).float(), background, cams)
    alphas = masks.detach().to(images).clamp(0, 1)
    if not bool((alphas > 0.5).any()):
        raise TrainingError(
            "The masks are empty: no pixel is above 0.5. A mask is 1 on the object; invert them if not."
        )
    background, plain = _plain_color(images[alphas < 0.01])
    if plain:
        objects = (images - (1 - alphas)[..., None] * background).clamp_min(0)
    else:
        objects = images * alphas[..., None]
    return PosedViews(images, objects, alphas, everywhere, background, cams)


def fingerprint(images: Tensor, masks: Tensor | None, cams: Cameras) -> dict[str, str]:
    """SHA-256 of each input that a fit sees, and the frame it stands in."""
    parts = {"images": [images], "masks": [] if masks is None else [masks], "cameras": [cams.c2w, cams.fov_y_deg]}
    return {name: digest(tensors) for name, tensors in parts.items()} | {"frame": cams.frame}


def _border(images: Tensor) -> Tensor:  # (C,H,W,3) -> (P,3)
    """The outermost pixels of all pictures."""
    inner = F.pad(torch.zeros(images.shape[1] - 2, images.shape[2] - 2, dtype=torch.bool), (1, 1, 1, 1), value=True)
    return images[:, inner.to(images.device)].reshape(-1, 3)


def _plain_color(pixels: Tensor) -> tuple[Tensor, bool]:  # (P,3) -> (3,)
    """The colour of most pixels, white where there are none, and whether nearly all have it."""
    if len(pixels) == 0:
        return torch.ones(3, device=pixels.device), False
    color = pixels.median(0).values
    near = (pixels - color).abs().amax(-1) <= PLAIN_TOLERANCE
    return color, float(near.float().mean()) >= PLAIN_SHARE
