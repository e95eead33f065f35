import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invert3d_core.splats import neighbors
from invert3d_core.splats.neighbors import leaves, nearest


def brute_force(points, count):
    apart = (points[:, None] - points).square().sum(2)
    apart.fill_diagonal_(torch.inf)
    return apart.topk(count, dim=1, largest=False).values.sqrt()


def check(points, count):
    distances, indices = nearest(points, count)
    torch.testing.assert_close(distances, brute_force(points, count), rtol=1e-6, atol=0)
    torch.testing.assert_close((points[:, None] - points[indices]).norm(dim=2), distances, rtol=1e-6, atol=0)
    assert (indices != torch.arange(len(points))[:, None]).all()
    assert all(len(set(row)) == count for row in indices.tolist())


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 700), st.integers(1, 20), st.integers(0, 10**6), st.sampled_from(["even", "clusters", "line"]))
def test_same_as_comparing_all(number, count, seed, kind):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(number, 3, generator=generator)
    if kind == "clusters":  # densities a thousand times apart, far from the origin
        points = points * 10.0 ** torch.randint(-3, 2, (number, 1), generator=generator) + 100
    if kind == "line":
        points = points * torch.tensor([1.0, 0, 0])
    check(points, min(count, number - 1))


def test_many_chunks_give_the_same_and_show_progress(monkeypatch):
    points = torch.randn(3000, 3, generator=torch.Generator().manual_seed(5))
    whole = nearest(points, 8)[0]
    monkeypatch.setattr(neighbors, "CHUNK_VALUES", 40_000)
    calls = []
    parts = nearest(points, 8, progress=lambda step, total, **_: calls.append((step, total)))[0]
    assert torch.equal(parts, whole)
    assert calls[-1] == (128, 128)
    assert len(calls) > 5


def test_points_at_one_place():
    points = torch.zeros(300, 3)
    distances, indices = nearest(points, 5)
    assert (distances == 0).all()
    assert (indices != torch.arange(300)[:, None]).all()


def test_points_at_one_place_are_not_compared_with_all(monkeypatch):
    """As files have them that are padded at the origin: no leaf can bring anything nearer than what a leaf has."""
    compared = []
    whole = neighbors._squared
    monkeypatch.setattr(neighbors, "_squared", lambda one, other: compared.append(other.shape[1]) or whole(one, other))
    nearest(torch.cat([torch.zeros(4000, 3), torch.ones(4000, 3)]), 5)
    assert max(compared) == 32  # each leaf with itself, and with no other


@pytest.mark.parametrize("number", [1, 16, 17, 33, 100, 1000])
def test_leaves_hold_each_point_once(number):
    order = leaves(torch.randn(number, 3, generator=torch.Generator().manual_seed(number)), 16)
    assert order.shape[1] <= 16
    assert sorted(order[order >= 0].tolist()) == list(range(number))


@pytest.mark.parametrize(("shape", "count"), [((5, 3), 0), ((5, 3), 5), ((5, 2), 1), ((0, 3), 1)])
def test_errors(shape, count):
    with pytest.raises(ValueError, match=f"nearest: {count} neighbours among points of shape"):
        nearest(torch.zeros(shape), count)
