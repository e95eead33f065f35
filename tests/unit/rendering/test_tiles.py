import math

import pytest
import torch

from invert3d_core.rendering import projection, tiles
from invert3d_core.rendering.projection import FACTOR, MEAN, OPACITY, Frame, Limits
from invert3d_core.rendering.rasterize import scene_of
from tests.unit.rendering.scenes import cloud, rig

WIDTH, HEIGHT, VIEWS = 45, 37, 3


def listed(g, limits=Limits(), views=VIEWS):  # noqa: B008
    """Rows, and for each part of the grid its region and lists."""
    frame = Frame(WIDTH, HEIGHT, 0, 0.2, limits)
    visible, rows = projection.select_visible(scene_of(g, rig(views, WIDTH, HEIGHT)), frame)
    grid = tiles.Grid(frame, views)
    bounds = tiles.tile_bounds(visible, grid)
    parts = [
        (region, tiles.tile_lists(region, bounds, rows[region.rows], limits, grid))
        for region in tiles.regions(bounds, grid)
    ]
    return visible, rows, grid, parts


def rows_by_tile(parts):
    return {
        int(tile): region.rows[part.entries[start : start + length]].tolist()
        for region, part in parts
        for tile, start, length in zip(part.tiles, part.starts, part.lengths, strict=True)
    }


def test_images_and_tiles_are_the_same_pixels():
    grid = tiles.Grid(Frame(WIDTH, HEIGHT, 0, 0.2, Limits()), VIEWS)
    images = torch.rand(VIEWS, HEIGHT, WIDTH, 4, generator=torch.Generator().manual_seed(0))
    cut = grid.to_tiles(images)
    assert cut.shape == (VIEWS * 5 * 6, 4, 64)
    assert torch.equal(grid.to_images(cut), images)
    row, column = 19, 26
    in_tile = (row % 8) * 8 + column % 8
    assert torch.equal(cut[grid.columns * (2 * 5 + row // 8) + column // 8, :, in_tile], images[2, row, column])


@pytest.mark.parametrize("size", [(0.05, 0.5), (0.0003, 1.5)])
def test_a_list_holds_what_reaches_the_tile_nearest_first(size):
    visible, rows, grid, parts = listed(cloud(150, size=size))
    found = rows_by_tile(parts)
    pixels = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="xy"), -1).reshape(-1, 2) + 0.5
    needless = total = 0
    for tile in range(grid.tiles):
        view, within = divmod(tile, grid.rows_per_view * grid.columns)
        corner = torch.tensor([within % grid.columns, within // grid.columns]) * 8
        dx, dy = (pixels[:, None] + corner - rows[:, MEAN]).double().unbind(-1)  # (P,V)
        f0, f1, f2 = rows[:, FACTOR].double().unbind(-1)
        alpha = rows[:, OPACITY].double() * torch.exp(-((f0 * dx + f1 * dy) ** 2) - (f2 * dy) ** 2)
        reaching = ((alpha >= 1 / 255).any(0) & (visible.view == view)).nonzero()[:, 0].tolist()
        entries = found.get(tile, [])
        assert entries == sorted(entries), "rows are sorted by depth"
        assert set(reaching) <= set(entries)
        needless, total = needless + len(entries) - len(reaching), total + len(entries)
    assert total > 100
    assert needless < 0.2 * total, "reached between pixel centres only"


def test_without_a_least_alpha_everything_is_everywhere():
    visible, _, grid, parts = listed(cloud(20), Limits(alpha_min=0), views=1)
    assert {len(rows) for rows in rows_by_tile(parts).values()} == {len(visible.view)}
    assert len(rows_by_tile(parts)) == grid.tiles


def test_the_parts_of_a_divided_grid_are_bounded_and_cover_it(monkeypatch):
    g, limit = cloud(300, size=(0.05, 0.5)), 200
    *_, whole = listed(g)
    assert len(whole) == 1
    monkeypatch.setattr(tiles, "ENTRIES_AT_ONCE", {"cpu": limit, "other": limit})
    *_, parts = listed(g)
    assert len(parts) > 10
    assert all(len(part.entries) <= limit or len(part.tiles) == 1 for _, part in parts)
    assert sum(len(part.tiles) for _, part in parts) == len(whole[0][1].tiles), "no tile twice"
    assert rows_by_tile(parts) == rows_by_tile(whole)


def test_nothing_to_list():
    *_, parts = listed(cloud(0))
    assert parts == []


def test_the_middle_of_a_tile_in_pixels():
    *_, grid, parts = listed(cloud(300, size=(0.05, 0.5)))
    ((_, part),) = parts
    for tile, (x, y) in zip(part.tiles.tolist(), part.centers.tolist(), strict=True):
        line, column = divmod(tile, grid.columns)
        assert math.isclose(x, column * 8 + 4) and math.isclose(y, line % grid.rows_per_view * 8 + 4)
