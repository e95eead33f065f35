"""Which splats reach which tiles of the pictures: lists per tile, nearest splat first, in parts of bounded size."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .projection import COLOR, FACTOR, MEAN, OPACITY, Frame, Limits, Visible

TILE = 8  # pixels per side
PIXELS = TILE * TILE
ENTRIES_AT_ONCE = {"cpu": 500_000, "other": 4_000_000}  # (splat, tile) entries sorted together: 75 bytes each


class Grid:
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


class Region(NamedTuple):
    """A rectangle of the grid, in tiles, and the rows whose bounds touch it."""

    top: int
    bottom: int
    left: int
    right: int
    rows: Tensor  # (R,) ascending: nearest first


class Lists(NamedTuple):
    """For T tiles, which rows reach them: tile i has the entries starts[i] … starts[i] + lengths[i], nearest first."""

    tiles: Tensor  # (T,) position in the grid
    centers: Tensor  # (T,2) pixels
    starts: Tensor  # (T,)
    lengths: Tensor  # (T,)
    entries: Tensor  # (E,) positions in the region's rows


def tile_bounds(
    visible: Visible, grid: Grid
) -> Tensor:  # (4,V) int: left, top, right, bottom, the latter two exclusive
    """The tiles of the grid that each row's bounds touch."""
    left, top, right, bottom = torch.div(visible.bounds.T, TILE, rounding_mode="floor")
    shift = (visible.view * grid.rows_per_view).int()
    return torch.stack([left, top + shift, right + 1, bottom + 1 + shift])


def regions(bounds: Tensor, grid: Grid) -> Iterator[Region]:
    """Rectangles that cover everything that is touched, each with a bounded number of (splat, tile) entries.

    A single tile is never divided: its list is as long as its splats are many.
    """
    limit = ENTRIES_AT_ONCE.get(bounds.device.type, ENTRIES_AT_ONCE["other"])

    def divide(region: Region) -> Iterator[Region]:
        top, bottom, left, right, rows = region
        x0, y0, x1, y1 = _clipped(bounds, region)
        held = int(((x1 - x0) * (y1 - y0)).sum())
        if held == 0:
            return
        if held <= limit or (bottom - top) * (right - left) == 1:
            yield region
        elif bottom - top >= right - left:
            middle = (top + bottom) // 2
            yield from divide(Region(top, middle, left, right, rows[y0 < middle]))
            yield from divide(Region(middle, bottom, left, right, rows[y1 > middle]))
        else:
            middle = (left + right) // 2
            yield from divide(Region(top, bottom, left, middle, rows[x0 < middle]))
            yield from divide(Region(top, bottom, middle, right, rows[x1 > middle]))

    everything = torch.arange(bounds.shape[1], dtype=torch.int32, device=bounds.device)
    yield from divide(Region(0, grid.rows, 0, grid.columns, everything))


def tile_lists(
    region: Region,
    bounds: Tensor,  # (4,V) of `tile_bounds`
    rows: Tensor,  # (R,11 or 14) those of the region
    limits: Limits,
    grid: Grid,
) -> Lists:
    """The lists of one region."""
    x0, y0, x1, y1 = _clipped(bounds, region)
    wide = x1 - x0
    counts = wide * (y1 - y0)
    row = torch.repeat_interleave(counts)  # position in the region's rows of each entry: nearest first
    within = torch.arange(len(row), dtype=torch.int32, device=row.device)
    within = within - (counts.cumsum(0, dtype=torch.int32) - counts).index_select(0, row)
    across = wide.index_select(0, row)
    down = torch.div(within, across, rounding_mode="floor")
    column, line = x0.index_select(0, row) + within - down * across, y0.index_select(0, row) + down
    middle_x = column.to(rows.dtype) * TILE + TILE / 2
    middle_y = (line % grid.rows_per_view).to(rows.dtype) * TILE + TILE / 2
    reaches = _reaches(rows[:, : COLOR.start], row, middle_x, middle_y, limits)
    row = row[reaches]
    columns = region.right - region.left
    tile = ((line - region.top) * columns + column - region.left)[reaches]
    lengths = torch.bincount(tile, minlength=(region.bottom - region.top) * columns)
    order = torch.sort(tile, stable=True).indices
    tiles = lengths.nonzero()[:, 0]
    lengths = lengths[tiles]
    down = torch.div(tiles, columns, rounding_mode="floor") + region.top
    column = tiles % columns + region.left
    centers = torch.stack([column, down % grid.rows_per_view], -1) * TILE + TILE / 2
    starts = lengths.cumsum(0) - lengths
    return Lists(down * grid.columns + column, centers.to(rows.dtype), starts, lengths, row[order])


def _clipped(bounds: Tensor, region: Region) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x0, y0, x1, y1 = bounds.index_select(1, region.rows)
    return (
        x0.clamp_min(region.left),
        y0.clamp_min(region.top),
        x1.clamp_max(region.right),
        y1.clamp_max(region.bottom),
    )


def _reaches(rows: Tensor, row: Tensor, middle_x: Tensor, middle_y: Tensor, limits: Limits) -> Tensor:
    """Whether a row's alpha gets to the least alpha anywhere between the outer pixel centres of a tile: (E,) bool.

    The least u² + v² over the rectangle lies on the side that faces the mean: on its row, or on its column.
    """
    if limits.alpha_min <= 0:
        return torch.ones(len(row), dtype=torch.bool, device=row.device)
    half = (TILE - 1) / 2
    mean_x, mean_y = (column.index_select(0, row) for column in rows[:, MEAN].T.contiguous())
    f0, f1, f2 = rows[:, FACTOR].T.contiguous()
    reach = (rows[:, OPACITY] / limits.alpha_min).log() * 1.001 + 1e-3  # rounding must not cut
    along_row, along_column = -f1 / f0, -f0 * f1 / (f1.square() + f2.square())  # where u² + v² is least
    f0, f1, f2, reach, along_row, along_column = (
        column.index_select(0, row) for column in (f0, f1, f2, reach, along_row, along_column)
    )
    x, y = middle_x - mean_x, middle_y - mean_y
    xa, xb, ya, yb = x - half, x + half, y - half, y + half
    dy = torch.minimum(yb, ya.clamp_min(0))
    dx = torch.minimum(xb, torch.maximum(xa, along_row * dy))
    on_row = (f0 * dx + f1 * dy).square_() + (f2 * dy).square_()
    dx = torch.minimum(xb, xa.clamp_min(0))
    dy = torch.minimum(yb, torch.maximum(ya, along_column * dx))
    on_column = (f0 * dx + f1 * dy).square_() + (f2 * dy).square_()
    return torch.minimum(on_row, on_column) <= reach
