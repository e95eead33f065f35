"""The training pool: random assets, families and shapes without a name, as arrays that a GPU can render at once."""

import math
import multiprocessing
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from invert3d_core.cameras import Cameras, fit_radius, orbit
from invert3d_core.cameras.conversions import to_intrinsics, to_mvdream, to_viewmats
from invert3d_core.rendering import rasterize
from invert3d_core.splats import GaussianSplats
from invert3d_core.splats.spherical_harmonics import C0
from invert3d_core.toy.assets import colored, draw_colors, draw_shade, draw_shape, held_out_color
from invert3d_core.toy.colors import NAMES
from invert3d_core.toy.families import KNOWN
from invert3d_core.toy.families.builder import rotation_about
from invert3d_core.toy.primitives import (
    BALL,
    BOX,
    CENTER,
    COLUMNS,
    FIXED,
    HALF,
    KIND,
    MAIN,
    OPACITY,
    PART,
    RING,
    ROTATION,
    TAPER,
    TUBE,
    bounding_sphere,
    cover,
    quaternions_facing,
    surface_areas,
)

PRIMITIVES = 24  # rows of the padded tables
NAMELESS = 0.4  # share of assets that belong to no family
IMAGE_SIZE = 128
FOV_Y_DEG = 40.0
FILL = 0.92
ELEVATIONS_DEG = (0.0, 30.0)
VIEWS = 4


@dataclass
class Pool:
    """Arrays of M assets, one set of four orthogonal views each.

    family: (M,) index into the known families, -1 for none. colors: (M,3) indices of colour names. shades: (M,3,3).
    rows: (M,24,21). stretch: (M,3). azimuth, elevation: (M,) degrees of the first view.
    """

    family: Tensor
    colors: Tensor
    shades: Tensor
    rows: Tensor
    stretch: Tensor
    azimuth: Tensor
    elevation: Tensor

    def __len__(self) -> int:
        return len(self.family)

    def map(self, function) -> "Pool":
        return Pool(**{field.name: function(getattr(self, field.name)) for field in fields(self)})


def _largest_part_first(rows: np.ndarray) -> np.ndarray:
    """Relabel the parts so that the one with the largest surface is the main one, as in the families."""
    part = rows[:, PART].astype(int)
    areas = surface_areas(torch.from_numpy(rows)).numpy()
    sums = [areas[part == index].sum() for index in range(3)]
    largest = int(np.argmax(sums))
    swapped = part.copy()
    swapped[part == largest], swapped[part == MAIN] = MAIN, largest
    rows[:, PART] = swapped
    return rows


def _jittered(rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
    """A family member bent out of shape: primitives moved, resized, exchanged and lost."""
    kept = rng.random(len(rows)) < 0.92
    rows = rows[kept] if len(rows) > 3 and kept.sum() > 1 else rows.copy()  # nothing at all has no size to divide by
    amount = rng.uniform(0.05, 0.35)
    rows[:, CENTER] += rng.normal(size=(len(rows), 3)) * amount * 0.5 * np.linalg.norm(rows[:, HALF], axis=1)[:, None]
    rows[:, HALF] *= np.exp(rng.normal(size=(len(rows), 3)) * amount)
    exchange = rng.random(len(rows)) < 0.12
    rows[exchange, KIND] = rng.choice([BOX, BALL, TUBE], exchange.sum())
    return rows


def _crossed(rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
    """Some primitives of this asset and some of another family's, in the same box."""
    other, _ = draw_shape(rng, KNOWN[rng.integers(len(KNOWN))])
    keep, take = rows[rng.random(len(rows)) < 0.75], other[rng.random(len(other)) < 0.55]
    if len(keep) and len(take):
        size = np.ptp(rows[:, CENTER], axis=0).max() + 0.5
        scale = size / (np.ptp(other[:, CENTER], axis=0).max() + 0.5) * rng.uniform(0.5, 1.1)
        take[:, CENTER] = (take[:, CENTER] - other[:, CENTER].mean(0)) * scale + rows[:, CENTER].mean(0)
        take[:, CENTER] += rng.normal(size=3) * 0.25 * size
        take[:, HALF] *= scale
        return np.concatenate([keep, take])[:PRIMITIVES]
    return rows


def _heap(rng: np.random.Generator) -> np.ndarray:
    """Three to nine random primitives, often in mirrored pairs, stacked upwards."""
    rows, height = [], 0.0
    for _ in range(rng.integers(2, 7)):
        row = np.zeros(COLUMNS, np.float32)
        row[KIND] = rng.choice([BOX, BALL, TUBE, RING], p=[0.3, 0.3, 0.3, 0.1])
        row[HALF] = np.exp(rng.normal(size=3) * 0.5) * rng.uniform(0.12, 0.5)
        if row[KIND] == RING:
            row[HALF] = (row[4], min(row[5], 0.35 * row[4]), row[4])
        row[TAPER] = rng.uniform(0.1, 1) if row[KIND] == TUBE else 1
        turn = np.eye(3) if rng.random() < 0.5 else rotation_about("xyz"[rng.integers(3)], rng.uniform(-90, 90))
        row[ROTATION] = turn.ravel()
        row[PART] = rng.choice([0, 1, 2, FIXED], p=[0.45, 0.25, 0.22, 0.08])
        if row[PART] == FIXED:
            row[18:21] = rng.choice([0.08, 0.88])
        row[CENTER] = (rng.normal() * 0.35, height + row[5] * 0.6, rng.normal() * 0.25)
        height += row[5] * rng.uniform(0.1, 1.4)
        rows.append(row)
        if rng.random() < 0.45:
            twin = row.copy()
            side = abs(row[1]) + rng.uniform(0.1, 0.6)
            row[1], twin[1] = side, -side
            mirror = np.diag([-1.0, 1.0, 1.0])
            twin[ROTATION] = (mirror @ row[ROTATION].reshape(3, 3) @ mirror).ravel()
            rows.append(twin)
    return np.stack(rows).astype(np.float32)


def _draw(rng: np.random.Generator) -> tuple:
    index = int(rng.integers(len(KNOWN)))
    rows, stretch = draw_shape(rng, KNOWN[index])
    never = held_out_color(KNOWN[index])  # also of shapes without a name that come from the family
    if rng.random() < NAMELESS:
        kind = rng.random()
        rows = _heap(rng) if kind < 0.25 else _crossed(rng, rows) if kind < 0.6 else _jittered(rng, rows)
        rows, index = _largest_part_first(rows), -1
    names = draw_colors(rng, never=never)
    shades = np.stack([draw_shade(rng, name) for name in names])
    table = np.zeros((PRIMITIVES, COLUMNS), np.float32)
    table[:, KIND] = -1
    table[: len(rows)] = colored(rows, shades)
    view = rng.uniform(0, 360), rng.uniform(*ELEVATIONS_DEG)
    return index, [NAMES.index(name) for name in names], shades, table, stretch, *view


def _draw_many(task: tuple[int, int]) -> list[np.ndarray]:
    seed, count = task
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    columns = zip(*(_draw(rng) for _ in range(count)), strict=True)
    kinds = (np.int64, np.int64, *[np.float32] * 5)
    return [np.asarray(column, kind) for column, kind in zip(columns, kinds, strict=True)]


def draw_pool(count: int, seed: int, processes: int = 1, chunk: int = 2000) -> Pool:
    """``count`` random assets; the same seed and count give the same pool whatever the number of processes."""
    tasks = [(seed * 1_000_003 + i, min(chunk, count - i * chunk)) for i in range(math.ceil(count / chunk))]
    if processes > 1:
        with multiprocessing.get_context("spawn").Pool(processes) as workers:
            parts = workers.map(_draw_many, tasks)
    else:
        parts = [_draw_many(task) for task in tasks]
    return Pool(*(torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)))


def cameras_of(azimuth: Tensor, elevation: Tensor) -> Cameras:
    """The four cameras of each set, view-fastest (4M)."""
    azimuths = (azimuth[:, None] + torch.arange(VIEWS, device=azimuth.device) * (360 / VIEWS)).flatten()
    elevations = elevation.repeat_interleave(VIEWS)
    distance = fit_radius(1.0, FOV_Y_DEG, IMAGE_SIZE, IMAGE_SIZE, FILL)
    return orbit(azimuths, elevations, distance, FOV_Y_DEG, IMAGE_SIZE, IMAGE_SIZE)


def camera_vectors(azimuth: Tensor, elevation: Tensor) -> Tensor:  # (M,), (M,) -> (M, 4, 16)
    """MVDream's camera vectors of each set; the toy's front is at azimuth 0."""
    return to_mvdream(cameras_of(azimuth, elevation)).unflatten(0, (-1, VIEWS)).to(azimuth.device)


def covered_splats(pool: Pool) -> dict[str, Tensor]:
    """The Gaussians of a batch of assets in the unit sphere: means, quats, scales, opacities, colors, (M,N,…)."""
    parts = cover(pool.rows, pool.stretch)
    center, radius = bounding_sphere(parts["positions"], parts["scales"].amax(-1))
    return {
        "means": (parts["positions"] - center[:, None]) / radius[:, None, None],
        "quats": quaternions_facing(parts["normals"]),
        "scales": parts["scales"] / radius[:, None, None],
        "opacities": torch.full_like(parts["shade"], OPACITY),
        "colors": parts["albedo"] * parts["shade"][..., None],
        "center": center,
        "radius": radius,
    }


def render_pool(pool: Pool, batch: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """All views on white: images (M,4,128,128,3) and alphas (M,4,16,16), uint8, and spheres (M,4) of the raw assets.

    Batches go to gsplat on a CUDA device, else one by one to the package's own rasteriser.
    """
    device = pool.rows.device
    images = torch.empty(len(pool), VIEWS, IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.uint8, device=device)
    alphas = torch.empty(len(pool), VIEWS, 16, 16, dtype=torch.uint8, device=device)
    spheres = torch.empty(len(pool), 4, device=device)
    render = _render_on_gpu if device.type == "cuda" else _render_on_cpu
    for start in range(0, len(pool), batch):
        part = pool.map(lambda tensor, at=start: tensor[at : at + batch])
        splats = covered_splats(part)
        color, alpha = render(splats, cameras_of(part.azimuth, part.elevation))
        stop = start + len(part)
        images[start:stop] = (color.clamp(0, 1) * 255).round().byte()
        pooled = torch.nn.functional.avg_pool2d(alpha.flatten(0, 1)[:, None], IMAGE_SIZE // 16)
        alphas[start:stop] = (pooled.unflatten(0, (-1, VIEWS))[:, :, 0] * 255).round().byte()
        spheres[start:stop] = torch.cat([splats["center"], splats["radius"][:, None]], -1)
    return images, alphas, spheres


def _render_on_gpu(splats: dict[str, Tensor], cams: Cameras) -> tuple[Tensor, Tensor]:
    from gsplat import rasterization

    means = splats["means"]
    color, alpha, _ = rasterization(
        *(splats[name] for name in ("means", "quats", "scales", "opacities", "colors")),
        to_viewmats(cams).to(means).unflatten(0, (-1, VIEWS)),
        to_intrinsics(cams).to(means).unflatten(0, (-1, VIEWS)),
        IMAGE_SIZE,
        IMAGE_SIZE,
        near_plane=0.2,
        packed=False,
        backgrounds=torch.ones(len(means), VIEWS, 3, device=means.device),
    )
    return color, alpha[..., 0]


def _render_on_cpu(splats: dict[str, Tensor], cams: Cameras) -> tuple[Tensor, Tensor]:
    pictures = []
    for index in range(len(splats["means"])):
        one = GaussianSplats(
            positions=splats["means"][index],
            scales=splats["scales"][index],
            rotations=splats["quats"][index],
            opacities=splats["opacities"][index, :, None],
            sh=((splats["colors"][index] - 0.5) / C0)[:, None],
        )
        drawn = rasterize(one, cams[index * VIEWS : (index + 1) * VIEWS])
        pictures.append((drawn.color, drawn.alpha))
    colors, alphas = zip(*pictures, strict=True)
    return torch.stack(colors), torch.stack(alphas)
