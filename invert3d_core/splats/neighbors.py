"""Nearest neighbours of points, exactly and in bounded memory, by a balanced k-d tree that is asked in bulk."""

from math import ceil, log2

import torch
from torch import Tensor

from ..progress import Progress, no_progress

LEAF_SIZE = 32
LEAVES_AT_ONCE = 8  # looking one by one prunes best, but most time goes into keeping the nearest
CHUNK_VALUES = 1 << 21  # numbers in the largest tensor of a step


@torch.no_grad()
def nearest(
    points: Tensor,  # (N,3)
    count: int,
    progress: Progress = no_progress,
) -> tuple[Tensor, Tensor]:  # (N,count), (N,count)
    """Distances to the ``count`` nearest other points, rising, and their indices; int64.

    Points at the same place are neighbours at distance 0. Of equal distances any may win. All points of a leaf of the
    tree are asked about together: down the tree go only the leaves that lie nearer than the leaf's worst neighbour so
    far, the nearest first. So the work follows the density, wherever it is, and points at one place cost no more.
    progress: called with how many leaves are done, of how many.
    Raises ValueError unless 1 ≤ count < N.
    """
    if points.ndim != 2 or points.shape[1] != 3 or not 1 <= count < len(points):
        raise ValueError(
            f"nearest: {count} neighbours among points of shape {tuple(points.shape)}; expected (N,3) and 1 to N − 1"
        )
    order = leaves(points, max(LEAF_SIZE, 2 * count))  # (L,S)
    placed = _placed(points, order)  # (L,S,3)
    boxes = _boxes(placed)
    size = order.shape[1]
    distances = points.new_empty(len(points), count)
    indices = torch.empty(len(points), count, dtype=torch.int64, device=points.device)
    step = max(1, CHUNK_VALUES // (LEAVES_AT_ONCE * size * size))
    for start in range(0, len(order), step):
        asked = torch.arange(start, min(start + step, len(order)), device=points.device)
        found, who = _nearest_of(asked, count, placed, order, boxes)
        real = order[asked] >= 0
        distances[order[asked][real]] = found[real].sqrt()
        indices[order[asked][real]] = who[real]
        progress(start + len(asked), len(order))
    return distances, indices


def leaves(points: Tensor, size: int) -> Tensor:  # (N,3) -> (L,S)
    """The points' indices in groups of neighbours, (L,S) int64, S ≤ size and L a power of two; −1 where one is short.

    A k-d tree, halved at the median of its widest axis until a group holds no more than ``size``; the leaves of a node
    follow each other, so that the tree's levels are pairs of leaves, pairs of pairs, and so on.
    """
    levels = max(0, ceil(log2(len(points) / size))) if len(points) else 0
    width = ceil(len(points) / 2**levels)
    short = width * 2**levels - len(points)
    order = torch.cat([torch.arange(len(points), device=points.device), points.new_full((short,), -1).long()])[None]
    placed = torch.cat([points, points.new_full((short, 3), torch.inf)])[None]
    for _ in range(levels):
        low, high = _extent(placed)
        axis = (high - low).argmax(1)  # (nodes,)
        keys = placed.gather(2, axis[:, None, None].expand(-1, placed.shape[1], 1))[..., 0]
        ranks = keys.argsort(1)  # what is missing lies at infinity, so it goes to the end
        order = order.gather(1, ranks).view(2 * len(order), -1)
        placed = placed.gather(1, ranks[..., None].expand(-1, -1, 3)).view(len(order), -1, 3)
    return order


def _placed(points: Tensor, order: Tensor) -> Tensor:  # (L,S,3)
    return torch.where(order[..., None] >= 0, points[order.clamp_min(0)], torch.inf)


def _extent(placed: Tensor) -> tuple[Tensor, Tensor]:  # (nodes,S,3) -> (nodes,3), (nodes,3)
    return placed.amin(1), torch.where(placed == torch.inf, -torch.inf, placed).amax(1)


def _boxes(placed: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Lower and upper corners (nodes,3) of the tree's nodes, a pair a level, the root first."""
    low, high = _extent(placed)
    levels = [(low, high)]
    while len(low) > 1:
        low, high = low.view(-1, 2, 3).amin(1), high.view(-1, 2, 3).amax(1)
        levels.append((low, high))
    return levels[::-1]


def _nearest_of(
    asked: Tensor,  # (Q,) leaves
    count: int,
    placed: Tensor,  # (L,S,3)
    order: Tensor,  # (L,S)
    boxes: list[tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:  # (Q,S,count), (Q,S,count)
    """Squared distances and indices of the nearest points to all points of some leaves."""
    real = order[asked] >= 0  # (Q,S)
    queries = torch.where(real[..., None], placed[asked], 0)
    apart = _squared(queries, placed[asked])
    apart.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    best, place = apart.topk(count, dim=2, largest=False)
    who = order[asked][:, None].expand(-1, apart.shape[1], -1).gather(2, place)

    def worst(rows: Tensor | slice) -> Tensor:
        """The largest distance at which a point of these leaves has its last neighbour so far."""
        return torch.where(real[rows], best[rows][..., -1], -torch.inf).amax(1)

    bounds = worst(slice(None))
    pairs, distance = _leaves_within(asked, bounds, boxes)
    by_distance = distance.argsort()
    by_query = by_distance[pairs[by_distance, 0].argsort(stable=True)]
    (query, leaf), distance = pairs[by_query].unbind(1), distance[by_query]
    lengths = torch.bincount(query, minlength=len(asked))
    starts = lengths.cumsum(0) - lengths
    open_rows = lengths.nonzero()[:, 0]
    turn = 0
    while len(open_rows):
        ahead = turn + torch.arange(LEAVES_AT_ONCE, device=asked.device)
        at = (starts[open_rows, None] + ahead).clamp_max(len(leaf) - 1)  # (R,G)
        near = (ahead < lengths[open_rows, None]) & (distance[at] < bounds[open_rows, None])
        some = near[:, 0]  # a row that has no nearer leaf now has none after it either
        rows, others = open_rows[some], leaf[at[some]]
        there = torch.where(near[some][..., None, None], placed[others], torch.inf).flatten(1, 2)  # (R,G·S,3)
        apart = torch.cat([best[rows], _squared(queries[rows], there)], 2)
        named = torch.cat([who[rows], order[others].flatten(1)[:, None].expand(-1, apart.shape[1], -1)], 2)
        best[rows], place = apart.topk(count, dim=2, largest=False)
        who[rows] = named.gather(2, place)
        bounds[rows] = worst(rows)
        turn += LEAVES_AT_ONCE
        open_rows = rows[lengths[rows] > turn]
    return best, who


def _leaves_within(
    asked: Tensor, bounds: Tensor, boxes: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:  # (P,2), (P,)
    """Pairs of a row of ``asked`` and another leaf within the row's bound, and the squared distance of their boxes.

    A leaf at the very bound could only bring equal distances, of which those found already do.
    """
    low, high = boxes[-1][0][asked], boxes[-1][1][asked]
    query, node = torch.arange(len(asked), device=asked.device), torch.zeros_like(asked)
    distance = torch.zeros_like(bounds)
    for lows, highs in boxes[1:]:
        query, node = query.repeat_interleave(2), torch.stack([2 * node, 2 * node + 1], 1).flatten()
        gap = torch.maximum(lows[node] - high[query], low[query] - highs[node]).clamp_min(0)
        distance = gap.square().sum(1)
        near = distance < bounds[query]
        query, node, distance = query[near], node[near], distance[near]
    others = node != asked[query]
    return torch.stack([query[others], node[others]], 1), distance[others]


def _squared(queries: Tensor, others: Tensor) -> Tensor:  # (Q,S,3), (Q,T,3) -> (Q,S,T)
    """Squared distances by differences: exact where points lie close together and far from the origin."""
    total = torch.zeros((), device=queries.device)
    for own, other in zip(queries.unbind(2), others.unbind(2), strict=True):  # an axis at a time: a third of the memory
        apart = own[:, :, None] - other[:, None]
        total = torch.addcmul(total, apart, apart)
    return total
