import numpy as np
import pytest
import torch

from invert3d_core.progress import Cancelled
from invert3d_core.splats.formats.codebooks import nearest_scalars, scalar_codebook, vector_codebook


def test_few_values_are_kept_as_they_are():
    values = np.array([3, -1, 3, 0.25, -1, 7], np.float32)
    book = scalar_codebook(values, 4)
    assert book.tolist() == [-1, 0.25, 3, 7]
    assert book[nearest_scalars(values, book)].tolist() == values.tolist()
    assert scalar_codebook(np.full(9, 0.1, np.float32), 256).tolist() == [np.float32(0.1)]


def test_nearest_by_hand():
    book = np.array([0, 1, 3], np.float32)
    assert nearest_scalars(np.array([[-9, 0.4], [0.6, 1.9], [2.1, 99]], np.float32), book).tolist() == [
        [0, 0],
        [1, 1],
        [2, 2],
    ]


@pytest.mark.parametrize("outlier", [4.0, 60.0])
def test_rare_values_are_kept_nearly_as_well_as_common_ones(outlier):
    values = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    values[7] = outlier
    book = scalar_codebook(values, 256)
    assert len(book) <= 256 and (np.diff(book) > 0).all()
    error = np.abs(book[nearest_scalars(values, book)] - values)
    span = values.max() - values.min()
    # Half of the entries are spread evenly: no value is farther from one than 1/128 of the span, and half that again.
    assert error.max() <= 1.5 * span / 128
    even = np.linspace(values.min(), values.max(), 256, dtype=np.float32)
    assert (error**2).mean() < 0.6 * (np.abs(even[nearest_scalars(values, even)] - values) ** 2).mean()


def some_vectors(count=6000, width=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, width, generator=generator)
    chosen = torch.randint(40, (count,), generator=generator)
    return centres[chosen] + 0.3 * torch.randn(count, width, generator=generator)


def square_error(vectors, found):
    book, labels = found
    return float((book[labels] - vectors).square().sum(1).mean())


def test_few_vectors_are_kept_as_they_are():
    vectors = some_vectors(50)
    book, labels = vector_codebook(vectors, 50, 3, 0)
    assert torch.equal(book[labels], vectors)


def test_two_levels_come_near_to_one():
    """The plain algorithm over all entries at once, which a million vectors would take hours for."""
    vectors = some_vectors()
    found = vector_codebook(vectors, 256, 8, 0)
    assert len(found[0]) <= 256
    generator = torch.Generator().manual_seed(1)
    book = vectors[torch.randperm(len(vectors), generator=generator)[:256]]
    for _ in range(8):
        labels = torch.cdist(vectors, book).argmin(1)
        means = torch.zeros_like(book).index_add_(0, labels, vectors)
        counts = torch.bincount(labels, minlength=256)[:, None]
        book = torch.where(counts > 0, means / counts.clamp_min(1), book)
    labels = torch.cdist(vectors, book).argmin(1)
    assert square_error(vectors, found) < 1.06 * square_error(vectors, (book, labels))


def test_more_entries_are_better_and_the_same_seed_is_the_same():
    vectors = some_vectors()
    errors = [square_error(vectors, vector_codebook(vectors, size, 4, 0)) for size in (1, 16, 128, 1024)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(float((vectors - vectors.mean(0)).square().sum(1).mean()), rel=1e-4)
    first, second = (vector_codebook(vectors, 128, 4, 5) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], vector_codebook(vectors, 128, 4, 6)[0])


def test_vectors_that_are_all_alike():
    vectors = torch.ones(500, 9)
    book, labels = vector_codebook(vectors, 64, 3, 0)
    assert torch.equal(book[labels], vectors)


def test_progress_ends_and_may_stop():
    steps = []
    vector_codebook(some_vectors(), 128, 2, 0, lambda step, total, **_: steps.append((step, total)))
    assert steps == [(i + 1, steps[0][1]) for i in range(steps[0][1])]

    def stop(step, total, **_):
        raise Cancelled

    with pytest.raises(Cancelled):
        vector_codebook(some_vectors(), 128, 2, 0, stop)
