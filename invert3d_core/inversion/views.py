"""What a token is learned from: a splat to render, pictures with cameras, or a bank of latents already encoded."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras, Orientation, conversions, fit_radius, fit_sphere, orbit
from ..checkpoints import digest
from ..errors import TrainingError
from ..mvdream import ModelInfo, MVDream
from ..rendering import rasterize
from ..rendering.rasterize import Backend
from ..splats import GaussianSplats
from .losses import masks_at_latent_size
from .presets import InversionConfig

SET_SIZE = 4
"""Views of one set, a quarter turn apart: what MVDream was trained for."""

ANGLE_TOLERANCE_DEG = 3.0
"""How far azimuths and elevations of a set may be from a quarter turn and from each other."""

_DRAWN_TOGETHER = 2_000_000, 32  # splats of all views, and views, that a GPU is given at once


@dataclass(frozen=True, eq=False)
class SplatViews:
    """A splat to take views of, and how it stands in its frame.

    orientation: None takes what the file's comment says, else the default of `Orientation`.
    backend: of `rendering.rasterize`.
    """

    splat: GaussianSplats
    orientation: Orientation | None = None
    backend: Backend = "auto"

    @property
    def stands(self) -> Orientation:
        """The orientation, whoever said it."""
        return self.orientation or Orientation.stated_or_usual(self.splat.comment)

    def render(self, cams: Cameras, center: Tensor, background: float) -> tuple[Tensor, Tensor]:
        """Pictures (C,H,W,3) and masks (C,H,W) from cameras around the asset's origin.

        center: (3,) the point of the splat's frame that is the origin. background: grey level.
        """
        placed = self.stands.into_splat_frame(cams, center)
        # The usual limit of 0.2 would cut into assets of a few centimetres.
        near = min(0.2, 0.1 * float(cams.centers.norm(dim=1).min()))
        rendering = rasterize(self.splat, placed, background=(background,) * 3, near=near, backend=self.backend)
        return rendering.color.clamp(0, 1), rendering.alpha.clamp(0, 1)


@dataclass(frozen=True, eq=False)
class ViewSet:
    """Prepared views of one object.

    images: (V,H,W,3) in [0,1], square. masks: (V,H,W), 1 on the object; None counts everything as object.
    cameras: V of them, in the asset's world (y up, front +z).

    Raises TrainingError if shapes disagree or values are not finite.
    """

    images: Tensor  # (V,H,W,3)
    cameras: Cameras
    masks: Tensor | None = None  # (V,H,W)

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[3] != 3 or self.images.shape[1] != self.images.shape[2]:
            raise TrainingError(
                f"The pictures are {tuple(self.images.shape)}; expected square ones, (V,H,H,3). Render or crop them so."
            )
        if len(self.cameras) != self.images.shape[0]:
            raise TrainingError(
                f"There are {self.images.shape[0]} pictures but {len(self.cameras)} cameras; each needs its own. Take "
                "both from the same rendering."
            )
        if self.masks is not None and self.masks.shape != self.images.shape[:3]:
            raise TrainingError(
                f"The masks are {tuple(self.masks.shape)} for pictures {tuple(self.images.shape)}; expected (V,H,H)."
            )
        for what, values in (("pictures", self.images), ("masks", self.masks)):
            if values is not None and not bool(torch.isfinite(values).all()):
                raise TrainingError(f"The {what} hold NaN or infinite values. Render them again.")


@dataclass(frozen=True, eq=False)
class LatentBank:
    """Encoded views, from which sets are drawn.

    mean, std: (V,C,h,w) of the VAE's posterior, on the scale that the U-Net works on. masks: (V,h,w) in [0,1].
    cameras: (V,16) camera vectors of the model. sets: (S,F) int64, the views of each set.
    """

    mean: Tensor  # (V,C,h,w)
    std: Tensor  # (V,C,h,w)
    masks: Tensor  # (V,h,w)
    cameras: Tensor  # (V,16)
    sets: Tensor  # (S,F)


Views = GaussianSplats | SplatViews | ViewSet | LatentBank


def fingerprint(views: Views) -> str:
    """SHA-256 of everything in the views that training sees."""
    if isinstance(views, GaussianSplats):
        views = SplatViews(views)
    if isinstance(views, SplatViews):
        splat = views.splat
        parts = [splat.positions, splat.scales, splat.rotations, splat.opacities, splat.sh]
        label = f"splat {views.stands.up} {views.stands.front}"
    elif isinstance(views, ViewSet):
        parts = [views.images, views.cameras.c2w] + ([] if views.masks is None else [views.masks])
        label = "views"
    else:
        parts = [views.mean, views.std, views.masks, views.cameras, views.sets]
        label = "bank"
    return digest(parts, label)


def model_orbit(info: ModelInfo, azimuths_deg: Tensor | list[float], elevations_deg: Tensor | float) -> Cameras:
    """Cameras as the model was trained for them, around an asset whose bounding sphere has radius 1."""
    radius = fit_radius(1.0, info.fov_y_deg, info.image_size, info.image_size, info.fill)
    return orbit(azimuths_deg, elevations_deg, radius, info.fov_y_deg, info.image_size, info.image_size)


class Framing(NamedTuple):
    """How a splat is looked at: from how far, how wide, and around which point (3,) of its frame."""

    radius: float
    fov_y_deg: float
    center: Tensor


def frame(views: SplatViews, info: ModelInfo, config: InversionConfig) -> Framing:
    """The config's radius and field of view around the splat's own origin, as published; where it has none, such that
    the splat's bounding sphere fills the model's view.
    """
    if config.radius is not None and config.fov_y_deg is not None:
        return Framing(config.radius, config.fov_y_deg, torch.zeros(3))
    sphere = fit_sphere(views.splat)
    radius = fit_radius(sphere.radius, info.fov_y_deg, info.image_size, info.image_size, info.fill)
    return Framing(radius, info.fov_y_deg, sphere.center)


def camera_vectors(model: MVDream, cams: Cameras, align_front: bool) -> Tensor:  # (C,16)
    """The model's camera vectors; align_front turns the asset's front to where the model has fronts."""
    return model.camera_vectors(cams) if align_front else conversions.to_mvdream(cams)


@torch.no_grad()
def render_bank(
    model: MVDream, views: SplatViews, config: InversionConfig, between: Callable[[], None] = lambda: None
) -> LatentBank:
    """A bank of rings around a splat, rendered and encoded once.

    Every quarter turn on a ring is a set: `azimuths_per_ring` / 4 sets per elevation. between: called after every few
    views; what it raises stops the work.
    """
    count = config.azimuths_per_ring
    ring = torch.arange(count) * (360.0 / count)
    elevations = torch.tensor(config.ring_elevations_deg)
    framing, size = frame(views, model.info, config), model.info.image_size
    cams = orbit(
        ring.repeat(len(elevations)),
        elevations.repeat_interleave(count),
        framing.radius,
        framing.fov_y_deg,
        size,
        size,
    )
    at_once = SET_SIZE
    if views.splat.positions.is_cuda:  # it draws many small pictures in the time of a few
        splats, most = _DRAWN_TOGETHER
        at_once = max(SET_SIZE, min(most, splats // max(1, len(views.splat))))
    parts = []
    for some in torch.arange(len(cams)).split(at_once):
        parts.append(_encode(model, *views.render(cams[some], framing.center, config.background)))
        between()
    quarter = count // SET_SIZE
    first = torch.arange(len(elevations))[:, None] * count + torch.arange(quarter)  # (rings,quarter)
    sets = first.reshape(-1, 1) + torch.arange(SET_SIZE) * quarter
    return _bank(model, parts, camera_vectors(model, cams, config.align_front), sets)


@torch.no_grad()
def encode_views(
    model: MVDream, views: ViewSet, config: InversionConfig, between: Callable[[], None] = lambda: None
) -> LatentBank:
    """A bank of prepared views; sets are found by where the cameras stand. between: as in `render_bank`.

    Raises TrainingError if there is no set of four views a quarter turn apart, naming what is missing.
    """
    target = common_target(views.cameras)
    cams = replace(views.cameras, c2w=views.cameras.c2w.clone())
    cams.c2w[:, :3, 3] -= target.to(cams.c2w)
    sets = orthogonal_sets(views.cameras)
    size = model.info.image_size
    masks = torch.ones(views.images.shape[:3]) if views.masks is None else views.masks
    parts = []
    for pixels, mask in zip(views.images.split(SET_SIZE), masks.split(SET_SIZE), strict=True):
        if pixels.shape[1] != size:
            planes = pixels.float().movedim(-1, 1)
            planes = F.interpolate(planes, (size, size), mode="bilinear", antialias=True, align_corners=False)
            pixels = planes.movedim(1, -1)
        parts.append(_encode(model, pixels.float().clamp(0, 1), mask))
        between()
    return _bank(model, parts, camera_vectors(model, cams, config.align_front), sets)


def common_target(cams: Cameras) -> Tensor:  # (3,)
    """The point nearest to all optical axes, in least squares, float64.

    Raises TrainingError if the cameras all look in one direction.
    """
    positions, directions = cams.centers.double(), cams.view_directions.double()
    away = torch.eye(3, dtype=torch.float64, device=positions.device) - directions[:, :, None] * directions[:, None]
    normal = away.sum(dim=0)
    if float(torch.linalg.eigvalsh(normal)[0]) < 1e-6 * len(cams):
        raise TrainingError(
            "The cameras all look in the same direction, so they are around no object. Expected views from all sides, "
            "for example of an orbit."
        )
    return torch.linalg.solve(normal, (away @ positions[:, :, None]).sum(dim=0)[:, 0])


def orthogonal_sets(cams: Cameras, tolerance_deg: float = ANGLE_TOLERANCE_DEG) -> Tensor:  # (S,4)
    """Every set of four views a quarter turn apart at one elevation, as indices in order of azimuth, (S,4) int64.

    Azimuth and elevation are those of the cameras' positions around the point they look at (y up). Both may be off by
    the tolerance.

    Raises TrainingError if there is none, naming which views miss which partners.
    """
    offset = cams.centers.double() - common_target(cams)
    elevation = torch.rad2deg(torch.atan2(offset[:, 1], offset[:, [0, 2]].norm(dim=1)))
    azimuth = torch.rad2deg(torch.atan2(offset[:, 0], offset[:, 2])) % 360
    # How far each view is from each quarter turn after each view.
    wanted = azimuth[:, None] + 90.0 * torch.arange(SET_SIZE, dtype=torch.float64, device=azimuth.device)  # (V,4)
    apart = ((azimuth - wanted[:, :, None] + 180) % 360 - 180).abs()  # (V,4,V)
    apart = torch.maximum(apart, (elevation - elevation[:, None, None]).abs())
    distance, nearest = apart.min(dim=2)
    complete = (distance <= tolerance_deg).all(dim=1)
    sets = {tuple(sorted(row)): row for row in nearest[complete].tolist()}
    if sets:
        return torch.tensor([_from_smallest_azimuth(row, azimuth) for row in sets.values()])
    best = int((distance <= tolerance_deg).sum(dim=1).argmax())
    missing = [f"{float(wanted[best, i] % 360):.0f}°" for i in range(SET_SIZE) if distance[best, i] > tolerance_deg]
    raise TrainingError(
        f"No four of the {len(cams)} views are a quarter turn apart at one elevation, which training needs. The "
        f"nearest: view {best} at azimuth {float(azimuth[best]):.0f}°, elevation {float(elevation[best]):.0f}°, lacks "
        f"partners at azimuth {', '.join(missing)} (within {tolerance_deg:g}°). Render an orbit of 4, 8, 12 … azimuths."
    )


def _from_smallest_azimuth(row: list[int], azimuth: Tensor) -> list[int]:
    start = min(range(SET_SIZE), key=lambda i: round(float(azimuth[row[i]]), 3) % 360)
    return row[start:] + row[:start]


def _encode(model: MVDream, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and spread of latents, and masks of their size, on the model's device."""
    mean, std = model.encode_images(images)
    small = masks_at_latent_size(masks.float(), mean.shape[2], mean.shape[3])
    device = model.device
    return mean.to(device, torch.float32), std.to(device, torch.float32), small.to(device)


def _bank(model: MVDream, parts: list[tuple[Tensor, Tensor, Tensor]], vectors: Tensor, sets: Tensor) -> LatentBank:
    mean, std, masks = (torch.cat(column) for column in zip(*parts, strict=True))
    return LatentBank(mean, std, masks, vectors.to(model.device, torch.float32), sets)
