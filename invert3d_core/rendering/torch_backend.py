"""The rasteriser in plain torch: exact, differentiable, tiled and bounded in memory, for CPU and GPU.

The picture is cut into tiles. Each splat is listed in the tiles that its falloff reaches with at least the least alpha,
lists are sorted by depth, and all tiles are composited at once in rounds of a few dozen splats, nearest first; a tile
leaves when its light is used up. Nothing is cut that the thresholds of `Limits` would let through.

The backward pass goes through the same rounds again instead of keeping them, so that memory does not grow with the
number of splats that a pixel sees. It is the reference for every other backend.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .projection import (
    COLOR,
    COLUMNS,
    DEPTH,
    FACTOR,
    MEAN,
    OPACITY,
    Frame,
    Limits,
    Scene,
    Visible,
    project_visible,
    select_visible,
)

TILE = 8  # pixels per side
PIXELS = TILE * TILE
CHANNELS = 5  # red, green, blue, depth, alpha: sums of weight × value
ROUND = 32  # splats of a tile's list per round
ROWS_AT_ONCE = 500_000  # (view, splat) combinations projected together: about 200 MB with gradients
ENTRIES_AT_ONCE = 2_000_000  # (splat, tile) entries sorted together: about 150 MB
TILES_AT_ONCE = {"cpu": 128, "other": 4096}  # composited together: on a CPU what stays in its cache


class Composited(NamedTuple):
    """Sums over the splats of each pixel, front to back, without a background."""

    color: Tensor  # (C,H,W,3)
    depth: Tensor  # (C,H,W) weighted sum
    alpha: Tensor  # (C,H,W)
    depth_median: Tensor  # (C,H,W) where the transmittance falls to a half; 0 where it does not; no gradient


def composite(scene: Scene, frame: Frame) -> Composited:
    """Draw a scene. Peak memory grows with pictures and splats, not with their product."""
    views = max(1, ROWS_AT_ONCE // max(1, len(scene.positions)))
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in scene)
    sums, medians = [], []
    for start in range(0, max(1, len(scene.viewmats)), views):
        part = scene._replace(
            **{name: getattr(scene, name)[start : start + views] for name in ("viewmats", "focal", "centers")}
        )
        if needs_gradient:
            total, median = _Composite.apply(frame, *part)
        else:
            total, median, _ = _forward(part, frame)
        sums.append(total)
        medians.append(median)
    total = torch.cat(sums)
    return Composited(total[..., :3], total[..., 3], total[..., 4], torch.cat(medians))


class _Composite(torch.autograd.Function):
    """Projection and compositing as one step of autograd that keeps its inputs and outputs only."""

    @staticmethod
    def forward(ctx: Any, frame: Frame, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        total, median, visible = _forward(Scene(*tensors), frame)
        ctx.frame = frame
        ctx.save_for_backward(*tensors, *visible, total)
        ctx.mark_non_differentiable(median)
        return total, median

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _grad_median: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, view, splat, bounds, total = ctx.saved_tensors
        visible = Visible(view, splat, bounds)
        needed = ctx.needs_input_grad[1:]
        with _exact(total.device):
            with torch.enable_grad():
                leaves = [t.detach().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
                rows = project_visible(Scene(*leaves), ctx.frame, visible)
            grad_rows = _draw_backward(visible, rows.detach(), ctx.frame, len(total), total, grad_total)
            wanted = [leaf for leaf, n in zip(leaves, needed, strict=True) if n]
            grads = iter(torch.autograd.grad(rows, wanted, grad_rows, allow_unused=True))
        return None, *(next(grads) if n else None for n in needed)


def _forward(scene: Scene, frame: Frame) -> tuple[Tensor, Tensor, Visible]:
    with _exact(scene.positions.device):
        visible, rows = select_visible(scene, frame)
        return *_draw(visible, rows, frame, len(scene.viewmats)), visible


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Draw in the precision of the splats, and on a CPU without dividing single operations among threads.

    Drawing is thousands of operations of 0.1 ms, each of which would wait for its slowest thread: with another process
    on the same two cores 100,000 splats took 8 s with two threads and 0.3 s with one.
    """
    threads = torch.get_num_threads()
    alone = device.type == "cpu" and threads > 1
    if alone:
        torch.set_num_threads(1)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if alone:
            torch.set_num_threads(threads)


def _product(a: Tensor, b: Tensor) -> Tensor:  # (…,M,N), (…,N,P) -> (…,M,P)
    """a @ b in full precision: a host may have set a GPU's matrix products to the three digits of TF32."""
    return a @ b if a.device.type == "cpu" else _product_by_elements(a, b)


def _product_by_elements(a: Tensor, b: Tensor) -> Tensor:
    """a @ b without a matrix product, where M, N or P is a handful."""
    if a.shape[-1] <= CHANNELS:
        result = a[..., 0, None] * b[..., 0, None, :]
        for i in range(1, a.shape[-1]):
            result.addcmul_(a[..., i, None], b[..., i, None, :])
        return result
    if a.shape[-2] <= CHANNELS:
        return torch.stack([(row[..., None] * b).sum(-2) for row in a.unbind(-2)], -2)
    return torch.stack([(a * column[..., None, :]).sum(-1) for column in b.unbind(-1)], -1)


def _draw(visible: Visible, rows: Tensor, frame: Frame, views: int) -> tuple[Tensor, Tensor]:
    """Weighted sums (views,H,W,5) and median depths (views,H,W) of rows that are sorted by depth."""
    grid = _Grid(frame, views)
    total = rows.new_zeros(grid.tiles, CHANNELS, PIXELS)
    median = rows.new_zeros(grid.tiles, PIXELS)
    for lists in _tile_lists(visible, rows, frame, grid):
        sums = rows.new_zeros(len(lists.tiles), CHANNELS, PIXELS)
        halves = rows.new_zeros(len(lists.tiles), PIXELS)
        for step in _rounds(lists, rows, frame.limits):
            sums[step.tiles] += _product(_features(step.rows).mT, step.weights)
            # The first splat behind which at most half of the light is left; padding leaves it as it is.
            crossing = (step.light[:, 1:] > 0.5).sum(1)
            crosses = (step.light[:, 0] > 0.5) & (step.light[:, -1] <= 0.5)
            depth = step.rows[:, :, DEPTH].gather(1, crossing.clamp_max(step.rows.shape[1] - 1))
            halves[step.tiles] += torch.where(crosses, depth, 0)
        total[lists.tiles], median[lists.tiles] = sums, halves
    return grid.to_images(total), grid.to_images(median[:, None])[..., 0]


def _draw_backward(
    visible: Visible, rows: Tensor, frame: Frame, views: int, total: Tensor, grad_total: Tensor
) -> Tensor:
    """Gradient (V,10) of the rows, given the gradient (views,H,W,5) of the sums.

    With s_k = ⟨gradient, value of splat k⟩, weight w_k = α_k T_k and what lies behind it S_k = Σ_{j>k} w_j s_j,
    dL/dα_k = T_k s_k − S_k / (1 − α_k). S_k is the total minus what has passed, so one pass front to back is enough.
    """
    grid = _Grid(frame, views)
    total, grad_total = grid.to_tiles(total), grid.to_tiles(grad_total)
    grad_rows = torch.zeros_like(rows)
    basis = _basis(rows)
    for lists in _tile_lists(visible, rows, frame, grid):
        behind = (total[lists.tiles] * grad_total[lists.tiles]).sum(1)  # (tiles,P)
        reached, gradients = [], []
        for step in _rounds(lists, rows, frame.limits):
            gradient = grad_total[lists.tiles[step.tiles]]  # (B,5,P)
            score = _product(_features(step.rows), gradient)  # (B,K,P)
            passed = step.weights * score
            remaining = torch.empty_like(passed)
            left = behind[step.tiles]
            for k in range(passed.shape[1]):
                left = torch.sub(left, passed[:, k], out=remaining[:, k])
            behind[step.tiles] = left
            # A pixel that stopped does not see the splat, a capped alpha does not move; skipped ones have alpha 0.
            seen = (step.light[:, 1:] >= frame.limits.transmittance_min) & (step.alpha < frame.limits.alpha_max)
            pull = (step.light[:, :-1] * score - remaining / (1 - step.alpha)) * step.alpha * seen

            out = torch.empty_like(step.rows)
            offset = step.centers[:, None] - step.rows[:, :, MEAN]
            f0, f1, f2 = step.rows[:, :, FACTOR].unbind(-1)
            du = _product(-2 * pull * step.u, basis.mT)  # (B,K,3)
            row_pull = -2 * pull.unflatten(-1, (TILE, TILE)).sum(-1) * step.v  # (B,K,TILE)
            dv, dv_y = row_pull.sum(-1), (row_pull * basis[2, ::TILE]).sum(-1)
            out[:, :, 0] = -du[:, :, 0] * f0
            out[:, :, 1] = -du[:, :, 0] * f1 - dv * f2
            out[:, :, 2] = du[:, :, 1] + du[:, :, 0] * offset[:, :, 0]
            out[:, :, 3] = du[:, :, 2] + du[:, :, 0] * offset[:, :, 1]
            out[:, :, 4] = dv_y + dv * offset[:, :, 1]
            out[:, :, OPACITY] = pull.sum(-1) / step.rows[:, :, OPACITY]
            features = _product(step.weights, gradient[:, :4].mT)  # (B,K,4)
            out[:, :, COLOR], out[:, :, DEPTH] = features[:, :, :3], features[:, :, 3]
            reached.append(lists.rows[step.entries[step.valid]])
            gradients.append(out[step.valid])
        grad_rows.index_add_(0, torch.cat(reached), torch.cat(gradients))
    return grad_rows


class _Grid:
    """Tiles of all views, stacked downwards."""

    def __init__(self, frame: Frame, views: int) -> None:
        self.views, self.width, self.height = views, frame.width, frame.height
        self.columns, self.rows_per_view = -(-frame.width // TILE), -(-frame.height // TILE)
        self.rows = views * self.rows_per_view
        self.tiles = self.rows * self.columns

    def to_images(self, tiles: Tensor) -> Tensor:  # (tiles,C,P) -> (views,H,W,C)
        channels = tiles.shape[1]
        shape = (self.views, self.rows_per_view, self.columns, channels, TILE, TILE)
        images = tiles.view(shape).permute(0, 1, 4, 2, 5, 3)
        images = images.reshape(self.views, self.rows_per_view * TILE, self.columns * TILE, channels)
        return images[:, : self.height, : self.width].contiguous()

    def to_tiles(self, images: Tensor) -> Tensor:  # (views,H,W,C) -> (tiles,C,P)
        right, below = self.columns * TILE - self.width, self.rows_per_view * TILE - self.height
        padded = torch.nn.functional.pad(images, (0, 0, 0, right, 0, below))
        tiles = padded.view(self.views, self.rows_per_view, TILE, self.columns, TILE, -1)
        return tiles.permute(0, 1, 3, 5, 2, 4).reshape(self.tiles, -1, PIXELS)


class _Lists(NamedTuple):
    """For T tiles, which rows reach them: tile i has the entries starts[i] … starts[i] + lengths[i], nearest first."""

    tiles: Tensor  # (T,) position in the grid
    centers: Tensor  # (T,2) pixels
    starts: Tensor  # (T,)
    lengths: Tensor  # (T,)
    rows: Tensor  # (entries,)


def _tile_lists(visible: Visible, rows: Tensor, frame: Frame, grid: _Grid) -> Iterator[_Lists]:
    """Lists for one part of the grid after the other, each with a bounded number of entries."""
    if len(rows) == 0:
        return
    bounds = visible.bounds.long() // TILE
    x0, x1 = bounds[:, 0], bounds[:, 2] + 1
    y_shift = visible.view * grid.rows_per_view
    y0, y1 = bounds[:, 1] + y_shift, bounds[:, 3] + 1 + y_shift
    geometry = rows[:, : COLOR.start].contiguous()
    for top, bottom, left, right in _regions(x0, y0, x1, y1, grid):
        xa, xb = x0.clamp_min(left), x1.clamp_max(right)
        ya, yb = y0.clamp_min(top), y1.clamp_max(bottom)
        counts = (xb - xa).clamp_min(0) * (yb - ya).clamp_min(0)
        row = torch.repeat_interleave(counts)  # row of each entry, ascending: nearest first
        within = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        wide = (xb - xa)[row]
        down = torch.div(within, wide, rounding_mode="floor")
        column, line = xa[row] + within - down * wide, ya[row] + down
        centers = torch.stack([column, line - y_shift[row]], -1) * TILE + TILE / 2
        reaches = _reaches(geometry.index_select(0, row), centers.to(rows.dtype), frame.limits).nonzero()[:, 0]
        row = row.index_select(0, reaches)
        tile = (line * grid.columns + column).index_select(0, reaches).int()
        tile, order = torch.sort(tile, stable=True)
        tiles, lengths = torch.unique_consecutive(tile, return_counts=True)
        tiles = tiles.long()
        view_line = torch.div(tiles, grid.columns, rounding_mode="floor") % grid.rows_per_view
        centers = torch.stack([tiles % grid.columns, view_line], -1) * TILE + TILE / 2
        yield _Lists(
            tiles,
            centers.to(rows.dtype),
            lengths.cumsum(0) - lengths,
            lengths,
            row[order],
        )


def _regions(x0: Tensor, y0: Tensor, x1: Tensor, y1: Tensor, grid: _Grid) -> list[tuple[int, int, int, int]]:
    """Rectangles (top, bottom, left, right) of tiles that cover the grid, each with a bounded number of entries.

    A single tile is never divided: its list is as long as its splats are many.
    """
    corners = torch.zeros((grid.rows + 1) * (grid.columns + 1), dtype=torch.int64, device=x0.device)
    for x, y, sign in ((x0, y0, 1), (x1, y1, 1), (x1, y0, -1), (x0, y1, -1)):
        corners.index_add_(0, y * (grid.columns + 1) + x, torch.full_like(x, sign))
    entries = corners.view(grid.rows + 1, grid.columns + 1).cumsum(0).cumsum(1)  # per tile
    sums = torch.nn.functional.pad(entries.cumsum(0).cumsum(1), (1, 0, 1, 0)).cpu()

    def divide(top: int, bottom: int, left: int, right: int) -> Iterator[tuple[int, int, int, int]]:
        held = int(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left])
        if held == 0:
            return
        if held <= ENTRIES_AT_ONCE or (bottom - top) * (right - left) == 1:
            yield top, bottom, left, right
        elif bottom - top >= right - left:
            middle = (top + bottom) // 2
            yield from divide(top, middle, left, right)
            yield from divide(middle, bottom, left, right)
        else:
            middle = (left + right) // 2
            yield from divide(top, bottom, left, middle)
            yield from divide(top, bottom, middle, right)

    return list(divide(0, grid.rows, 0, grid.columns))


def _reaches(rows: Tensor, centers: Tensor, limits: Limits) -> Tensor:
    """Whether a row's alpha gets to the least alpha anywhere between the outer pixel centres of a tile: (E,) bool.

    The least u² + v² over the rectangle lies on the side that faces the mean: on its row, or on its column.
    """
    if limits.alpha_min <= 0:
        return torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    half = (TILE - 1) / 2
    offset = centers - rows[:, MEAN]
    (xa, ya), (xb, yb) = (offset - half).unbind(-1), (offset + half).unbind(-1)
    f0, f1, f2 = rows[:, FACTOR].unbind(-1)
    dy = torch.minimum(yb, ya.clamp_min(0))
    dx = torch.minimum(xb, torch.maximum(xa, -f1 * dy / f0))
    on_row = (f0 * dx + f1 * dy).square() + (f2 * dy).square()
    dx = torch.minimum(xb, xa.clamp_min(0))
    dy = torch.minimum(yb, torch.maximum(ya, -f0 * f1 * dx / (f1.square() + f2.square())))
    on_column = (f0 * dx + f1 * dy).square() + (f2 * dy).square()
    reach = (rows[:, OPACITY] / limits.alpha_min).log()
    return torch.minimum(on_row, on_column) <= reach * 1.001 + 1e-3  # rounding must not cut


class _Step(NamedTuple):
    """One round of B tiles: K splats of each over P pixels."""

    tiles: Tensor  # (B,) position in the lists
    entries: Tensor  # (B,K) position in the lists' rows
    valid: Tensor  # (B,K) bool: not padding
    rows: Tensor  # (B,K,10), opacity 0 in padding
    centers: Tensor  # (B,2)
    u: Tensor  # (B,K,P)
    v: Tensor  # (B,K,TILE)
    alpha: Tensor  # (B,K,P), 0 where skipped
    light: Tensor  # (B,K+1,P) transmittance before each splat and after the last
    weights: Tensor  # (B,K,P)


def _rounds(lists: _Lists, rows: Tensor, limits: Limits) -> Iterator[_Step]:
    """Composite the lists: every round takes the next splats of every tile that still lets light through."""
    at_once = TILES_AT_ONCE.get(rows.device.type, TILES_AT_ONCE["other"])
    light = rows.new_ones(len(lists.tiles), PIXELS)
    basis = _basis(rows)
    active = torch.argsort(lists.lengths, descending=True)  # tiles of like length together: less padding
    done = 0
    while len(active):
        longest = int(lists.lengths[active].max()) - done
        for tiles in active.split(at_once):
            step = _round(lists, rows, limits, basis, tiles, done, min(ROUND, longest), light[tiles])
            light[tiles] = step.light[:, -1]
            yield step
        done += ROUND
        active = active[lists.lengths[active] > done]
        active = active[light[active].amax(-1) >= limits.transmittance_min]


def _round(
    lists: _Lists, rows: Tensor, limits: Limits, basis: Tensor, tiles: Tensor, done: int, size: int, before: Tensor
) -> _Step:
    index = done + torch.arange(size, device=rows.device)
    valid = index < lists.lengths[tiles, None]
    entries = torch.minimum(index, lists.lengths[tiles, None] - 1) + lists.starts[tiles, None]
    chosen = rows.index_select(0, lists.rows[entries].flatten()).view(*entries.shape, COLUMNS)
    chosen[:, :, OPACITY] *= valid
    centers = lists.centers[tiles]

    offset = centers[:, None] - chosen[:, :, MEAN]
    f0, f1, f2 = chosen[:, :, FACTOR].unbind(-1)
    at_center = f0 * offset[:, :, 0] + f1 * offset[:, :, 1]
    u = _product(torch.stack([at_center, f0, f1], -1), basis)
    v = (f2 * offset[:, :, 1])[..., None] + f2[..., None] * basis[2, ::TILE]
    row_falloff = chosen[:, :, OPACITY, None] * torch.exp(-v.square())  # v is the same along a pixel row
    alpha = torch.exp_(u.square().neg_())
    alpha.unflatten(-1, (TILE, TILE)).mul_(row_falloff[..., None])
    if limits.alpha_min > 0:
        alpha = torch.where(alpha < limits.alpha_min, 0, alpha)
    alpha.clamp_max_(limits.alpha_max)

    light = alpha.new_empty(len(tiles), size + 1, PIXELS)
    light[:, 0] = before
    through = 1 - alpha
    if light.device.type == "cpu":
        for k in range(size):
            torch.mul(light[:, k], through[:, k], out=light[:, k + 1])
    else:
        torch.mul(torch.cumprod(through, 1), before[:, None], out=light[:, 1:])
    # Light only falls, so the condition on the unconditional product is the stop: once false, false for good.
    weights = alpha * light[:, :-1] * (light[:, 1:] >= limits.transmittance_min)
    return _Step(tiles, entries, valid, chosen, centers, u, v, alpha, light, weights)


def _basis(rows: Tensor) -> Tensor:  # (3,P): 1, x and y of a tile's pixel centres seen from its middle
    side = torch.arange(TILE, dtype=rows.dtype, device=rows.device) + 0.5 - TILE / 2
    return torch.stack([torch.ones(PIXELS).to(rows), side.repeat(TILE), side.repeat_interleave(TILE)])


def _features(rows: Tensor) -> Tensor:  # (B,K,10) -> (B,K,5)
    return torch.cat([rows[:, :, COLOR], rows[:, :, DEPTH, None], torch.ones_like(rows[:, :, :1])], -1)
