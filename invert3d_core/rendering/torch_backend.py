"""The rasteriser in plain torch: exact, differentiable, tiled and bounded in memory, for CPU and GPU.

The picture is cut into tiles. Each splat is listed in the tiles that its falloff reaches with at least the least alpha,
lists are sorted by depth, and many tiles are composited at once in rounds of a few dozen splats, nearest first; a tile
leaves when its light is used up. Nothing is cut that the thresholds of `Limits` would let through.

The backward pass goes through the same rounds again instead of keeping them, so that memory does not grow with the
number of splats that a pixel sees. It is the reference for every other backend.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .projection import (
    CAMERA_TENSORS,
    COLOR,
    DEPTH,
    FACTOR,
    MEAN,
    NORMAL,
    ONE,
    OPACITY,
    VALUES,
    Frame,
    Limits,
    Scene,
    Visible,
    chunks_of,
    project_visible,
    select_visible,
)
from .tiles import PIXELS, TILE, Grid, Lists, Region, regions, tile_bounds, tile_lists
from .workers import Run, workers

ROUND = 64  # splats of a tile's list per round
GROUP = 8  # splats whose light is multiplied together: divides ROUND
ROWS_AT_ONCE = {"cpu": 500_000, "other": 2_000_000}  # (view, splat) drawn together: about 100 bytes each
TILES_AT_ONCE = {"cpu": 128, "other": 2048}  # composited together: on a CPU what stays in its cache
HANDFUL = 8  # a side of a matrix product that is not worth a library's call
NOTHING = -80.0  # an exponent that gives no alpha to speak of, and no denormal number, which would be slow
ROUNDING = 2**-22  # of what has been compared with a threshold before and after exp
EMPTY = (NOTHING, 0, 0, 0, 0, 0)  # coefficients of what fills up a round


class Composited(NamedTuple):
    """Sums over the splats of each pixel, front to back, without a background."""

    color: Tensor  # (C,H,W,3)
    depth: Tensor  # (C,H,W) weighted sum
    alpha: Tensor  # (C,H,W)
    normal: Tensor  # (C,H,W,3) weighted sum; (C,H,W,0) when the frame asks for none
    depth_median: Tensor  # (C,H,W) where the transmittance falls to a half; 0 where it does not; no gradient


def composite(scene: Scene, frame: Frame) -> Composited:
    """Draw a scene. Peak memory grows with pictures and splats, not with their product."""
    rows = ROWS_AT_ONCE.get(scene.positions.device.type, ROWS_AT_ONCE["other"])
    views = max(1, rows // max(1, len(scene.positions)))
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in scene)
    sums, medians = [], []
    for start in range(0, max(1, len(scene.viewmats)), views):
        part = scene._replace(**{name: getattr(scene, name)[start : start + views] for name in CAMERA_TENSORS})
        if needs_gradient:
            total, median = _Composite.apply(frame, *part)
        else:
            total, median, _, _ = _forward(part, frame)
        sums.append(total)
        medians.append(median)
    total, median = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in (sums, medians))
    color, depth, alpha, normal = (
        total[..., column] for column in (_value(COLOR), _value(DEPTH), _value(ONE), _value(NORMAL))
    )
    return Composited(color, depth, alpha, normal, median)


def _value(column: Any) -> Any:
    """Where a column of a row lies among the values that are blended."""
    if isinstance(column, slice):
        return slice(column.start - VALUES.start, column.stop - VALUES.start)
    return column - VALUES.start


class _Composite(torch.autograd.Function):
    """Projection and compositing as one step of autograd that keeps its inputs, outputs and rows only."""

    @staticmethod
    def forward(ctx: Any, frame: Frame, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        total, median, visible, rows = _forward(Scene(*tensors), frame)
        ctx.frame = frame
        ctx.save_for_backward(*tensors, *visible, rows, total)
        ctx.mark_non_differentiable(median)
        return total, median

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _grad_median: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, view, splat, bounds, rows, total = ctx.saved_tensors
        scene, visible = Scene(*tensors), Visible(view, splat, bounds)
        needed = ctx.needs_input_grad[1:]
        grads = [torch.zeros_like(tensor) if n else None for tensor, n in zip(scene, needed, strict=True)]
        with workers(total.device) as run:
            grad_rows = _draw_backward(visible, rows, ctx.frame, total, grad_total, run)

            def pull(chunk: tuple[slice, Visible]) -> tuple[Tensor, list[Tensor | None]]:
                """The gradients of a chunk's own splats, and its share of those of the cameras."""
                place, part = chunk
                with torch.enable_grad():
                    of_splats = scene.of_splats(part.splat)
                    leaves = [t.detach().requires_grad_(n) for t, n in zip(of_splats, needed, strict=True)]
                    projected = project_visible(Scene(*leaves), ctx.frame, part.view)
                wanted = [leaf for leaf, n in zip(leaves, needed, strict=True) if n]
                found = iter(torch.autograd.grad(projected, wanted, grad_rows[place], allow_unused=True))
                return part.splat, [next(found) if n else None for n in needed]

            for splats, found in run(pull, chunks_of(scene, visible)):
                for name, grad, more in zip(Scene._fields, grads, found, strict=True):
                    if grad is None or more is None:
                        continue
                    if name in CAMERA_TENSORS:
                        grad.add_(more)
                    else:
                        grad.index_add_(0, splats, more)
        return None, *grads


def _forward(scene: Scene, frame: Frame) -> tuple[Tensor, Tensor, Visible, Tensor]:
    with workers(scene.positions.device) as run:
        visible, rows = select_visible(scene, frame, run)
        return *_draw(visible, rows, frame, len(scene.viewmats), run), visible, rows


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:  # (…,M,N), (…,N,P) -> (…,M,P)
    """a @ b in full precision: a host may have set a GPU's matrix products to the three digits of TF32."""
    return torch.matmul(a, b, out=out) if a.device.type == "cpu" else _product_by_elements(a, b, out)


def _product_by_elements(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b without a matrix product, where M, N or P is a handful. ``out`` is for a handful as N."""
    if a.shape[-1] <= HANDFUL:
        result = torch.mul(a[..., 0, None], b[..., 0, None, :], out=out)
        for i in range(1, a.shape[-1]):
            result.addcmul_(a[..., i, None], b[..., i, None, :])
        return result
    if a.shape[-2] <= HANDFUL:
        return torch.stack([(row[..., None] * b).sum(-2) for row in a.unbind(-2)], -2)
    return torch.stack([(a * column[..., None, :]).sum(-1) for column in b.unbind(-1)], -1)


def _draw(visible: Visible, rows: Tensor, frame: Frame, views: int, run: Run) -> tuple[Tensor, Tensor]:
    """Weighted sums (views,H,W,values) and median depths (views,H,W) of rows that are sorted by depth."""
    grid = Grid(frame, views)
    values = rows.shape[-1] - VALUES.start
    total = rows.new_zeros(grid.tiles, values, PIXELS)
    median = rows.new_zeros(grid.tiles, PIXELS)
    bounds = tile_bounds(visible, grid)

    def draw(region: Region) -> None:
        own = rows.index_select(0, region.rows)
        lists = tile_lists(region, bounds, own, frame.limits, grid)
        sums = rows.new_zeros(len(lists.tiles), values, PIXELS)
        halves = rows.new_zeros(len(lists.tiles) * PIXELS)
        for step in _rounds(lists, own, frame.limits):
            seen = _product(step.rows[:, :, VALUES].permute(1, 2, 0), step.weights.transpose(0, 1))  # (B,values,P)
            sums.index_add_(0, step.tiles, seen)
            # The first splat behind which at most half of the light is left.
            light = step.light.flatten(1)  # (K+1,B*P)
            pixels = ((light[0] > 0.5) & (light[-1] <= 0.5)).nonzero()[:, 0]
            crossing = (light[1:].index_select(1, pixels) > 0.5).sum(0)
            tile = torch.div(pixels, PIXELS, rounding_mode="floor")
            depths = step.rows[crossing, tile, DEPTH]
            halves.index_copy_(0, step.tiles[tile] * PIXELS + pixels % PIXELS, depths)
        total[lists.tiles], median[lists.tiles] = sums, halves.view(-1, PIXELS)

    for _ in run(draw, regions(bounds, grid)):
        pass  # every region writes its own tiles
    return grid.to_images(total), grid.to_images(median[:, None])[..., 0]


def _draw_backward(visible: Visible, rows: Tensor, frame: Frame, total: Tensor, grad_total: Tensor, run: Run) -> Tensor:
    """Gradient of the rows, given the gradient (views,H,W,values) of the sums.

    With s_k = ⟨gradient, value of splat k⟩, weight w_k = α_k T_k and what lies behind it S_k = Σ_{j>k} w_j s_j,
    dL/dα_k = T_k s_k − S_k / (1 − α_k). S_k is the total minus what has passed, so one pass front to back is enough.
    """
    grid = Grid(frame, len(total))
    total, grad_total = grid.to_tiles(total), grid.to_tiles(grad_total)
    bounds = tile_bounds(visible, grid)
    basis = _basis(rows)
    most = frame.limits.alpha_max * (1 - ROUNDING)

    def draw(region: Region) -> tuple[Tensor, Tensor]:
        own = rows.index_select(0, region.rows)
        lists = tile_lists(region, bounds, own, frame.limits, grid)
        grad_own = torch.zeros_like(own)
        behind = (total[lists.tiles] * grad_total[lists.tiles]).sum(1)  # (tiles,P)
        for step in _rounds(lists, own, frame.limits, spare=3):
            gradient = grad_total[lists.tiles[step.tiles]]  # (B,values,P)
            score, passed, remaining = step.spare
            by_tile = score.view(len(step.tiles), -1, PIXELS)  # (B,K,P), as a product gives it
            _product(step.rows[:, :, VALUES].transpose(0, 1), gradient, out=by_tile)
            torch.mul(step.weights, by_tile.transpose(0, 1), out=passed)
            left = behind[step.tiles]
            for k in range(len(passed)):
                left = torch.sub(left, passed[k], out=remaining[k])
            behind[step.tiles] = left
            # A pixel that stopped does not see the splat, a capped alpha does not move; skipped ones have alpha 0.
            through = torch.sub(1, step.alpha, out=score)
            pull = passed.sub_(remaining.mul_(step.alpha).div_(through)).mul_(step.lets)  # dL/d exponent
            pull.mul_(torch.lt(step.alpha, most, out=step.lets))
            grad_coefficients = _product(pull.flatten(0, 1), basis.T).view(*pull.shape[:2], -1)  # (K,B,6)
            out = torch.empty_like(step.rows)
            _pull_exponents(grad_coefficients, step.rows, step.centers, out)
            out[:, :, VALUES] = _product(step.weights.transpose(0, 1), gradient.mT).transpose(0, 1)
            grad_own.index_add_(0, step.entries.flatten(), out.flatten(0, 1))
        return region.rows, grad_own

    grad_rows = torch.zeros_like(rows)
    for places, more in run(draw, regions(bounds, grid)):
        grad_rows.index_add_(0, places, more)
    return grad_rows


class _Step(NamedTuple):
    """One round of B tiles: K splats of each over P pixels. Its large tensors are overwritten by the next round."""

    tiles: Tensor  # (B,) position in the lists
    entries: Tensor  # (K,B) position in the region's rows
    rows: Tensor  # (K,B,11 or 14), opacity 0 in padding
    centers: Tensor  # (B,2)
    alpha: Tensor  # (K,B,P), 0 where skipped
    light: Tensor  # (K+1,B,P) transmittance before each splat and after the last
    weights: Tensor  # (K,B,P)
    lets: Tensor  # (K,B,P) 1 where the pixel sees the splat, 0 where it stopped before
    spare: list[Tensor]  # as many of (K,B,P) as were asked for, to compute in


def _rounds(lists: Lists, rows: Tensor, limits: Limits, spare: int = 0) -> Iterator[_Step]:
    """Composite the lists: every round takes the next splats of every tile that still lets light through."""
    at_once = TILES_AT_ONCE.get(rows.device.type, TILES_AT_ONCE["other"])
    light = rows.new_ones(len(lists.tiles), PIXELS)
    room = _Room(min(at_once, len(lists.tiles)), rows, spare)
    active = torch.argsort(lists.lengths, descending=True)  # tiles of like length together: less padding
    done = 0
    while len(active):
        longest = -(-(int(lists.lengths[active].max()) - done) // GROUP) * GROUP
        for tiles in active.split(at_once):
            step = _round(lists, rows, limits, room, tiles, done, min(ROUND, longest), light[tiles])
            light[tiles] = step.light[-1]
            yield step
        done += ROUND
        active = active[lists.lengths[active] > done]
        active = active[light[active].amax(-1) >= limits.transmittance_min]


class _Room:
    """Memory for the large tensors of a round: asked for anew each time, the system's work with it would be most."""

    def __init__(self, tiles: int, rows: Tensor, spare: int) -> None:
        self.basis, self.empty = _basis(rows), rows.new_tensor(EMPTY)
        self.light, self.alpha, self.weights, self.lets, *self.spare = (
            rows.new_empty((ROUND + more) * tiles * PIXELS) for more in (1, 0, 0, 0, *[0] * spare)
        )

    @staticmethod
    def take(room: Tensor, *shape: int) -> Tensor:
        return room[: math.prod(shape)].view(shape)


def _round(
    lists: Lists, rows: Tensor, limits: Limits, room: _Room, tiles: Tensor, done: int, size: int, before: Tensor
) -> _Step:
    index = done + torch.arange(size, device=rows.device)[:, None]
    lengths = lists.lengths[tiles]
    valid = index < lengths
    places = torch.minimum(index, lengths - 1) + lists.starts[tiles]
    entries = lists.entries.index_select(0, places.flatten())
    chosen = rows.index_select(0, entries).view(size, len(tiles), -1)
    centers = lists.centers[tiles]
    exponents = torch.where(valid[..., None], _exponents(chosen, centers), room.empty)
    chosen[:, :, OPACITY] *= valid

    shape = (size, len(tiles), PIXELS)
    alpha = room.take(room.alpha, *shape)
    _product(exponents.flatten(0, 1), room.basis, out=alpha.view(-1, PIXELS))
    alpha.clamp_(NOTHING, math.log(limits.alpha_max)).exp_()
    if limits.alpha_min > 0:
        torch.threshold_(alpha, limits.alpha_min * (1 - ROUNDING), 0)

    light, weights = room.take(room.light, size + 1, *shape[1:]), room.take(room.weights, *shape)
    light[0] = before
    groups = torch.sub(1, alpha, out=light[1:]).view(-1, GROUP, *shape[1:])
    for k in range(1, GROUP):  # products within all groups, then from group to group: few operations, all of them large
        torch.mul(groups[:, k], groups[:, k - 1], out=groups[:, k])
    for i, group in enumerate(groups):
        torch.mul(group, light[i * GROUP], out=group)
    torch.mul(light[:-1], alpha, out=weights)
    # Light only falls, so the condition on the unconditional product is the stop: once false, false for good.
    lets = torch.ge(light[1:], limits.transmittance_min, out=room.take(room.lets, *shape))
    weights.mul_(lets)
    spare = [room.take(memory, *shape) for memory in room.spare]
    return _Step(tiles, entries.view(shape[:2]), chosen, centers, alpha, light, weights, lets, spare)


def _basis(rows: Tensor) -> Tensor:  # (6,P): 1, x, y, x², xy, y² at a tile's pixel centres, seen from its middle
    side = torch.arange(TILE, dtype=rows.dtype, device=rows.device) + 0.5 - TILE / 2
    x, y = side.repeat(TILE), side.repeat_interleave(TILE)
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y])


def _exponents(rows: Tensor, centers: Tensor) -> Tensor:  # (K,B,…), (B,2) -> (K,B,6)
    """log α = log o − u² − v² as coefficients of the basis.

    Where a splat matters, u and v at a tile's middle are small, as they change by at most 1.3 a pixel: written out
    around that point, the squares do not cancel.
    """
    offset = centers - rows[:, :, MEAN]
    f0, f1, f2 = rows[:, :, FACTOR].unbind(-1)
    u, v = f0 * offset[:, :, 0] + f1 * offset[:, :, 1], f2 * offset[:, :, 1]
    constant = rows[:, :, OPACITY].log() - u * u - v * v
    linear = (-2 * u * f0, -2 * (u * f1 + v * f2))
    return torch.stack([constant, *linear, -f0 * f0, -2 * f0 * f1, -f1 * f1 - f2 * f2], -1)


def _pull_exponents(grad: Tensor, rows: Tensor, centers: Tensor, out: Tensor) -> None:
    """From the gradient (K,B,6) of `_exponents` to that of the rows' mean, factor and opacity, written into ``out``."""
    offset_x, offset_y = (centers - rows[:, :, MEAN]).unbind(-1)
    f0, f1, f2 = rows[:, :, FACTOR].unbind(-1)
    u, v = f0 * offset_x + f1 * offset_y, f2 * offset_y
    one, x, y, xx, xy, yy = grad.unbind(-1)
    du = -2 * (u * one + f0 * x + f1 * y)
    dv = -2 * (v * one + f2 * y)
    out[:, :, 0] = -du * f0
    out[:, :, 1] = -du * f1 - dv * f2
    out[:, :, 2] = -2 * (u * x + f0 * xx + f1 * xy) + du * offset_x
    out[:, :, 3] = -2 * (u * y + f0 * xy + f1 * yy) + du * offset_y
    out[:, :, 4] = -2 * (v * y + f2 * yy) + dv * offset_y
    out[:, :, OPACITY] = torch.where(rows[:, :, OPACITY] > 0, one / rows[:, :, OPACITY], 0)
