import threading

import pytest
import torch

from invert3d_core import rendering
from invert3d_core.rendering.workers import workers
from invert3d_core.splats import GaussianSplats
from tests.unit.rendering.scenes import cloud, rig

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items(threads):
    with workers(CPU) as run:
        assert list(run(lambda n: n * n, range(50))) == [n * n for n in range(50)]
        assert list(run(str, [])) == []


def test_pieces_are_worked_on_side_by_side_each_on_one_thread(threads):
    together = threading.Barrier(threads, timeout=20)

    def wait(_):
        together.wait()  # breaks unless as many pieces as threads are under way
        return torch.get_num_threads(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), workers(CPU) as run:
        states = list(run(wait, range(2 * threads)))
    assert set(states) == {(1, False, False)}
    assert torch.get_num_threads() == threads


def test_few_items_are_taken_before_their_turn(threads):
    taken = []

    def items():
        for n in range(1000):
            taken.append(n)
            yield n

    with workers(CPU) as run:
        results = iter(run(lambda n: n, items()))
        for expected in range(3):
            assert next(results) == expected
    assert len(taken) <= 3 + 2 * threads


def test_an_error_reaches_the_caller_and_the_threads_are_as_before(threads):
    def fail(n):
        if n == 2:
            raise ValueError("item 2")
        return n

    with pytest.raises(ValueError, match="item 2"), workers(CPU) as run:
        list(run(fail, range(10)))
    assert torch.get_num_threads() == threads


def test_inference_mode_is_that_of_the_caller(threads):
    for inference in (False, True):
        with torch.inference_mode(inference), workers(CPU) as run:
            assert set(run(lambda _: torch.zeros(1).is_inference(), range(8))) == {inference}


def test_drawing_leaves_the_threads_as_they_were(threads):
    g = cloud(10)
    leaf = g.positions.clone().requires_grad_()
    drawn = rendering.rasterize(GaussianSplats(leaf, g.scales, g.rotations, g.opacities, g.sh), rig())
    drawn.color.sum().backward()
    assert torch.get_num_threads() == threads
