"""Codebooks: few values, or few vectors, that stand for many with little error (k-means).

Lloyd's algorithm (Lloyd 1982). Scalars start spread by the root of their density (Panter and Dite 1951).
Vectors are clustered in two levels, groups and then the vectors of each group, so that a million vectors and 65,536
entries take seconds on a CPU; Gersho and Gray (1992), tree-structured vector quantisation.
"""

import numpy as np
import torch
from torch import Tensor

from ...progress import Progress, no_progress
from .buffer import Floats

_SCALAR_ROUNDS = 4
_BINS = 1024
# Of the entries, spread evenly over all values. The others lie as dense as the cube root of the values' density, which
# alone has the least square error, but leaves so few to rare values that a handful of splats changes visibly.
_EVEN = 0.5
_GROUP_SAMPLES = 128  # of each group, to find the groups by
_NEIGHBOURS = 6  # groups whose entries a vector may take in the end
_CHUNK = 1 << 22  # distances at a time


def scalar_codebook(
    values: Floats,  # (n,)
    size: int,
) -> Floats:  # (≤ size,) ascending
    """The values themselves where they are no more than ``size`` different ones, else entries with little error."""
    ordered = np.sort(values.astype(np.float64))
    starts = np.flatnonzero(np.concatenate([[True], np.diff(ordered) > 0]))
    if len(starts) <= size:
        return ordered[starts].astype(np.float32)
    counts, edges = np.histogram(ordered, _BINS)
    density = np.cbrt(counts)
    share = np.concatenate([[0.0], np.cumsum((1 - _EVEN) * density / density.sum() + _EVEN / _BINS)])
    book = np.interp((np.arange(size) + 0.5) / size * share[-1], share, edges)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(_SCALAR_ROUNDS):
        ends = np.concatenate([[0], np.searchsorted(ordered, (book[1:] + book[:-1]) / 2), [len(ordered)]])
        sizes = np.diff(ends)
        book = np.where(sizes > 0, np.diff(sums[ends]) / np.maximum(sizes, 1), book)
    return np.unique(book.astype(np.float32))


def nearest_scalars(
    values: Floats,  # any shape
    codebook: Floats,  # (≤ 256,) ascending
) -> np.ndarray:  # same shape, uint8
    """Which entry of a codebook is nearest to each value."""
    middles = (codebook[1:].astype(np.float64) + codebook[:-1]) / 2
    return np.searchsorted(middles, values).astype(np.uint8)


def vector_codebook(
    vectors: Tensor,  # (N,D)
    size: int,
    iterations: int,
    seed: int,
    progress: Progress = no_progress,
) -> tuple[Tensor, Tensor]:  # (≤ size,D), (N,) int64
    """Entries with little square error, and which one stands for each vector; the vectors themselves where they fit.

    iterations: rounds of k-means on each level. progress: called once for each group of entries, twice over. Takes
    memory for a group and its distances at a time, beside what it returns. The same seed gives the same entries.
    """
    if len(vectors) <= size:
        return vectors.clone(), torch.arange(len(vectors))
    generator = torch.Generator().manual_seed(seed)
    groups = max(1, min(256, round(size**0.5)))
    sample = _draw(vectors, groups * _GROUP_SAMPLES, generator)
    centres = _lloyd(sample, _draw(sample, groups, generator), iterations)
    group_of, error = _assign(vectors, centres)
    members = [indices for indices in _members(group_of, len(centres)) if len(indices)]
    wanted = _shares(vectors.shape[1], [float(error[indices].sum()) for indices in members], members, size)
    books, middles = [], []
    total = 2 * len(members)
    for done, (indices, count) in enumerate(zip(members, wanted, strict=True)):
        own = vectors[indices]
        books.append(_lloyd(own, _draw(own, count, generator), iterations))
        middles.append(own.mean(0))
        progress(done + 1, total)
    # A vector at the rim of its group is often nearer to an entry of the next.
    starts = np.cumsum([0, *map(len, books)]).tolist()
    book, middle = torch.cat(books), torch.stack(middles)
    near = torch.cdist(middle, middle).topk(min(_NEIGHBOURS, len(middle)), largest=False).indices
    labels = torch.empty(len(vectors), dtype=torch.int64)
    for done, indices in enumerate(members):
        entries = torch.cat([torch.arange(starts[g], starts[g + 1]) for g in near[done].tolist()])
        labels[indices] = entries[_assign(vectors[indices], book[entries])[0]]
        progress(len(members) + done + 1, total)
    return _means(vectors, labels, book), labels


def _draw(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` different rows, all where there are no more."""
    if len(vectors) <= count:
        return vectors.clone()
    return vectors[torch.randperm(len(vectors), generator=generator)[:count]]


def _lloyd(vectors: Tensor, entries: Tensor, iterations: int) -> Tensor:
    """Entries moved to the means of what they stand for; those that stand for nothing to the worst represented."""
    if len(vectors) <= len(entries):
        return vectors.clone()
    for _ in range(iterations):
        labels, error = _assign(vectors, entries)
        entries = _means(vectors, labels, entries)
        empty = torch.bincount(labels, minlength=len(entries)) == 0
        if bool(empty.any()):
            worst = error.topk(int(empty.sum())).indices
            entries[empty] = vectors[worst]
    return entries


def _assign(
    vectors: Tensor,  # (n,D)
    entries: Tensor,  # (k,D)
) -> tuple[Tensor, Tensor]:  # (n,) int64, (n,)
    """The nearest entry of each vector, and its squared distance."""
    half = (entries * entries).sum(1) / 2
    step = max(1, _CHUNK // len(entries))
    labels = torch.empty(len(vectors), dtype=torch.int64)
    error = torch.empty(len(vectors))
    for start in range(0, len(vectors), step):
        rows = vectors[start : start + step]
        best = torch.addmm(half, rows, entries.T, alpha=-1).min(1)
        labels[start : start + step] = best.indices
        error[start : start + step] = ((rows * rows).sum(1) + 2 * best.values).clamp_min(0)
    return labels, error


def _means(vectors: Tensor, labels: Tensor, entries: Tensor) -> Tensor:
    """The mean of the vectors of each label; where there are none, the entry as it was."""
    counts = torch.bincount(labels, minlength=len(entries))
    sums = torch.zeros_like(entries).index_add_(0, labels, vectors)
    return torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], entries)


def _members(labels: Tensor, count: int) -> list[Tensor]:
    """The indices of the vectors of each label."""
    return list(labels.argsort(stable=True).split(torch.bincount(labels, minlength=count).tolist()))


def _shares(width: int, errors: list[float], members: list[Tensor], size: int) -> list[int]:
    """How many entries each group gets: in D dimensions the error is least with errorᴰ⸍⁽ᴰ⁺²⁾, and at least one."""
    weights = np.array(errors) ** (width / (width + 2))
    if not weights.sum():
        return [1] * len(members)
    exact = weights / weights.sum() * (size - len(members))
    shares = 1 + exact.astype(np.int64)
    left = size - int(shares.sum())
    shares[np.argsort(shares - 1 - exact, kind="stable")[:left]] += 1  # to those that rounding cut most
    return np.minimum(shares, [len(indices) for indices in members]).tolist()
