"""Toy assets as solids: boxes, ellipsoids, tapered tubes and rings, and the Gaussian splats that cover them.

An asset is a table of rows, one primitive each (see `COLUMNS`), in a right-handed y-up frame whose front is +z.
Rows are plain numbers, so that a batch of assets becomes splats in one pass on any device.
"""

import math

import torch
from torch import Tensor

from ..cameras.orbits import RADIUS_SHARE

BOX, BALL, TUBE, RING = range(4)
MAIN, SECOND, THIRD, FIXED = range(4)

# kind | centre 3 | half size 3 | taper | rotation 9, row-major, local to asset | part | colour 3
COLUMNS = 21
KIND, CENTER, HALF, TAPER, ROTATION, PART, COLOR = (
    0,
    slice(1, 4),
    slice(4, 7),
    7,
    slice(8, 17),
    17,
    slice(18, 21),
)

SPLATS_PER_ASSET = 4096
LIGHT = (0.42, 0.76, 0.50)  # towards the light, unit length
AMBIENT, DIFFUSE = 0.58, 0.42
SPREAD = 0.62  # standard deviation of a splat over the distance to its neighbour
THICKNESS = 0.25  # standard deviation along the normal over that along the surface
OPACITY = 0.97
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def surface_areas(rows: Tensor) -> Tensor:  # (..., P, 21) -> (..., P)
    """Approximate surface area of each primitive; 0 for empty rows (kind < 0)."""
    x, y, z = rows[..., HALF].unbind(-1)
    kind, taper = rows[..., KIND], rows[..., TAPER]
    box = 8 * (x * y + y * z + x * z)
    # Knud Thomsen's formula, within 1.1 % for any ellipsoid.
    p = 1.6075
    ball = 4 * math.pi * (((x * y) ** p + (y * z) ** p + (x * z) ** p) / 3) ** (1 / p)
    radius = (x + z) / 2
    slant = torch.sqrt((2 * y) ** 2 + (radius * (1 - taper)) ** 2)
    tube = math.pi * radius * (1 + taper) * slant + math.pi * radius**2 * (1 + taper**2)
    ring = 4 * math.pi**2 * radius * y
    area = torch.where(kind == BOX, box, torch.where(kind == BALL, ball, torch.where(kind == TUBE, tube, ring)))
    return torch.where(kind >= 0, area, torch.zeros_like(area))


def _box_points(half: Tensor, u: Tensor, v: Tensor, inset: Tensor) -> tuple[Tensor, Tensor]:
    """Points on the six faces by area; ``inset`` keeps splats from bulging over the edges."""
    x, y, z = half.unbind(-1)
    pair = torch.stack([y * z, x * z, x * y], -1)  # a face of each axis, up to a factor
    ends = (pair / pair.sum(-1, keepdim=True)).cumsum(-1)
    starts = torch.cat([torch.zeros_like(ends[..., :1]), ends[..., :2]], -1)
    axis = (u[..., None] >= ends[..., :2]).sum(-1)  # 0, 1 or 2
    start, end = starts.gather(-1, axis[..., None])[..., 0], ends.gather(-1, axis[..., None])[..., 0]
    local = ((u - start) / (end - start).clamp_min(1e-9)).clamp(0, 1 - 1e-6) * 2
    side = torch.where(local < 1, 1.0, -1.0)
    first, second = (local % 1) * 2 - 1, v * 2 - 1
    room = (half - inset[..., None]).clamp_min(0)
    normal = torch.nn.functional.one_hot(axis, 3).to(half) * side[..., None]
    one = torch.nn.functional.one_hot((axis + 1) % 3, 3).to(half)
    two = torch.nn.functional.one_hot((axis + 2) % 3, 3).to(half)
    return normal * half + (one * first[..., None] + two * second[..., None]) * room, normal


def _ball_points(half: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    height, angle = 1 - 2 * u, 2 * math.pi * v
    flat = torch.sqrt((1 - height**2).clamp_min(0))
    unit = torch.stack([flat * torch.cos(angle), height, flat * torch.sin(angle)], -1)
    return unit * half, unit / half


def _tube_points(half: Tensor, taper: Tensor, u: Tensor, v: Tensor, inset: Tensor) -> tuple[Tensor, Tensor]:
    """Side and both caps by area; the radius goes from ``half`` at the bottom to ``taper * half`` at the top."""
    x, y, z = half.unbind(-1)
    radius = (x + z) / 2
    slant = torch.sqrt((2 * y) ** 2 + (radius * (1 - taper)) ** 2)
    side, bottom, top = (1 + taper) * slant, radius, radius * taper**2
    total = side + bottom + top
    on_side, on_bottom = u < side / total, u >= (side + top) / total
    angle = 2 * math.pi * v
    # A share s of the side's area lies below height t, with s = (t + (taper - 1) t^2 / 2) / ((1 + taper) / 2).
    s = (u * total / side).clamp(0, 1)
    slope = taper - 1
    t_tapered = (torch.sqrt((1 + slope * (1 + taper) * s).clamp_min(0)) - 1) / torch.where(slope == 0, 1.0, slope)
    t = torch.where(slope.abs() < 1e-4, s, t_tapered)
    cap = torch.where(
        on_bottom, (u * total - side - top) / bottom.clamp_min(1e-9), (u * total - side) / top.clamp_min(1e-9)
    )
    cap_radius = torch.sqrt(cap.clamp(0, 1)) * torch.where(on_bottom, torch.ones_like(taper), taper)
    shrink = (1 - inset / radius.clamp_min(1e-9)).clamp(0.3, 1)
    reach = torch.where(on_side, 1 + slope * t, cap_radius * shrink)
    height = torch.where(on_side, (2 * t - 1) * (y - inset).clamp_min(0), torch.where(on_bottom, -y, y))
    points = torch.stack([x * reach * torch.cos(angle), height, z * reach * torch.sin(angle)], -1)
    lean = radius * (1 - taper) / (2 * y).clamp_min(1e-9)
    outward = torch.stack([torch.cos(angle) / x, lean / radius.clamp_min(1e-9), torch.sin(angle) / z], -1)
    up = torch.stack([torch.zeros_like(t), torch.where(on_bottom, -1.0, 1.0), torch.zeros_like(t)], -1)
    return points, torch.where(on_side[..., None], outward, up)


def _ring_points(half: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A torus around y: half x and z are the radii of its centre line, half y that of its tube."""
    x, tube, z = half.unbind(-1)
    around, across = 2 * math.pi * u, 2 * math.pi * v
    normal = torch.stack(
        [torch.cos(around) * torch.cos(across), torch.sin(across), torch.sin(around) * torch.cos(across)], -1
    )
    line = torch.stack([x * torch.cos(around), torch.zeros_like(x), z * torch.sin(around)], -1)
    return line + normal * tube[..., None], normal


def cover(
    rows: Tensor,  # (B, P, 21)
    stretch: Tensor,  # (B, 3)
    count: int = SPLATS_PER_ASSET,
) -> dict[str, Tensor]:
    """Cover each asset with ``count`` flat Gaussians, spread evenly over the surfaces and shaded by a fixed light.

    rows: (B,P,21) primitive tables, rows of kind < 0 are padding. stretch: (B,3) factors along x, y, z applied last.
    Returns positions (B,N,3), normals (B,N,3), scales (B,N,3) with the normal's last, part (B,N) int64,
    owner (B,N) int64 row of each splat, shade (B,N) in [0.58,1] and albedo (B,N,3).
    """
    areas = surface_areas(rows)
    weights = torch.where(areas > 0, areas + 0.01 * areas.sum(-1, keepdim=True), areas)  # (B,P), details get splats too
    ends = (weights / weights.sum(-1, keepdim=True)).cumsum(-1).contiguous()
    order = torch.arange(count, device=rows.device, dtype=rows.dtype)
    place = ((order + 0.5) / count).expand(len(rows), count).contiguous()
    owner = torch.searchsorted(ends, place, right=True).clamp_max(rows.shape[1] - 1)  # (B,N)
    row = rows.gather(1, owner[..., None].expand(-1, -1, COLUMNS))
    start = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], -1).gather(1, owner)
    share = (ends.gather(1, owner) - start).clamp_min(1e-9)
    u = ((place - start) / share).clamp(0, 1 - 1e-6)
    v = ((order * GOLDEN_RATIO) % 1).expand_as(u)
    spacing = torch.sqrt(areas.gather(1, owner) / (share * count))
    sigma = SPREAD * spacing

    half, taper, kind = row[..., HALF].clamp_min(1e-4), row[..., TAPER], row[..., KIND, None]
    options = [
        _box_points(half, u, v, 0.8 * sigma),
        _ball_points(half, u, v),
        _tube_points(half, taper, u, v, 0.8 * sigma),
        _ring_points(half, u, v),
    ]
    local, normal = options[0]
    for index in (BALL, TUBE, RING):
        local = torch.where(kind == index, options[index][0], local)
        normal = torch.where(kind == index, options[index][1], normal)
    rotation = row[..., ROTATION].unflatten(-1, (3, 3))
    points = (rotation @ local[..., None])[..., 0] + row[..., CENTER]
    normal = torch.nn.functional.normalize((rotation @ normal[..., None])[..., 0] / stretch[:, None], dim=-1)
    light = torch.tensor(LIGHT, device=rows.device, dtype=rows.dtype)
    shade = AMBIENT + DIFFUSE * (0.5 + 0.5 * (normal @ torch.nn.functional.normalize(light, dim=0)))
    # A thin part needs thinner splats, or its silhouette swells.
    sigma = torch.minimum(sigma, 0.8 * half.amin(-1)) * stretch.mean(-1, keepdim=True)
    return {
        "positions": points * stretch[:, None],
        "normals": normal,
        "scales": torch.stack([sigma, sigma, sigma * THICKNESS], -1),
        "part": row[..., PART].long(),
        "owner": owner,
        "shade": shade,
        "albedo": row[..., COLOR],
    }


def quaternions_facing(normals: Tensor) -> Tensor:  # (..., 3) -> (..., 4)
    """Unit quaternions (wxyz) that turn +z to each unit normal by the shortest way."""
    x, y, z = normals.unbind(-1)
    behind = z < -0.9999
    quats = torch.stack([1 + z, -y, x, torch.zeros_like(z)], -1)
    half_turn = torch.tensor([0.0, 1.0, 0.0, 0.0], device=normals.device, dtype=normals.dtype)
    return torch.nn.functional.normalize(torch.where(behind[..., None], half_turn, quats), dim=-1)


def bounding_sphere(positions: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:  # (B,N,3), (B,N) -> (B,3), (B,)
    """Centre and radius by which assets are framed: what `cameras.fit_sphere` finds, for a batch of opaque assets."""
    center = (positions.amin(1) + positions.amax(1)) / 2
    assets = torch.arange(len(positions), device=positions.device)
    for i in range(1, 65):
        farthest = (positions - center[:, None]).square().sum(-1).argmax(1)
        center = center + (positions[assets, farthest] - center) / (i + 1)
    distances = (positions - center[:, None]).norm(dim=-1) + reach
    return center, distances.kthvalue(math.ceil(RADIUS_SHARE * distances.shape[1]), dim=1).values
