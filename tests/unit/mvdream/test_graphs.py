"""Graphs without a GPU: what runs as it is, and the order of things with recordings stood in for.

tests/gpu/test_graphs.py has the same on a GPU, with recordings that are real.
"""

import contextlib
import copy
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invert3d_core.mvdream import MVDream, graphs
from invert3d_core.mvdream.graphs import Graphs, graphs_of


@pytest.fixture(autouse=True)
def nothing_announced() -> Iterator[None]:
    graphs._announced.clear()
    yield
    graphs._announced.clear()


def double(x: Tensor) -> tuple[Tensor]:
    return (2 * x,)


class StandIn:
    """What a recording does, in Python."""

    made = 0
    error = 0.0
    failure: BaseException | None = None

    def __init__(self, work: Any, inputs: Any, networks: Any) -> None:
        type(self).made += 1
        if self.failure is not None:
            raise self.failure
        self.weights = graphs._Weights(networks)
        self.work = work

    def replay(self, inputs: Any) -> tuple[Tensor, ...]:
        return (self.work(*inputs)[0] + 1000,)  # so that a replay is seen


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    class Fresh(StandIn):
        pass

    monkeypatch.setattr(graphs, "_Recording", Fresh)
    monkeypatch.setattr(graphs, "_aside", lambda device, function: function())
    monkeypatch.setattr(Graphs, "_possible", lambda self, device, networks: graphs._allowed.get())
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    return Fresh


def run(kept: Graphs, *values: float, network: nn.Module | None = None, key: object = None) -> float:
    x = torch.tensor(values)
    return float(kept.run("Doubling", double, [x], [network or nn.Linear(1, 1)], key)[0][0])


def test_on_the_cpu_the_work_runs_as_it_is(model: MVDream, draw: Any) -> None:
    kept = Graphs()
    assert [run(kept, 3.0) for _ in range(4)] == [6.0] * 4
    assert len(kept) == 0
    names = list(model.unet.state_dict())
    with torch.no_grad():
        model.predict_noise(draw(4, 4, 8, 8), 3, draw(1, 12, 24))
    assert list(model.unet.state_dict()) == names and not hasattr(model.unet, "cuda_graphs")


def test_first_an_ordinary_run_then_a_recording_then_replays(recordings: type[StandIn]) -> None:
    kept, network = Graphs(), nn.Linear(1, 1)
    assert [run(kept, float(i), network=network) for i in range(4)] == [0.0, 1002.0, 1004.0, 1006.0]
    assert (recordings.made, len(kept)) == (1, 1)
    # Another shape, another key and another grad mode are other work.
    assert run(kept, 1.0, 2.0, network=network) == 2.0
    assert run(kept, 1.0, network=network, key="other") == 2.0
    with torch.no_grad():
        assert run(kept, 1.0, network=network) == 2.0
    with graphs.eager():
        assert run(kept, 1.0, network=network) == 2.0
    assert run(kept, 1.0, network=network) == 1002.0
    kept.release()
    assert len(kept) == 0 and run(kept, 1.0, network=network) == 2.0


def test_only_so_many_are_held(recordings: type[StandIn]) -> None:
    kept, network = Graphs(keep=2), nn.Linear(1, 1)
    for key in ("a", "b", "c"):
        for _ in range(2):
            run(kept, 1.0, network=network, key=key)
        assert len(kept) == min(2, recordings.made)
    made = recordings.made
    assert run(kept, 1.0, network=network, key="b") == 1002.0 and recordings.made == made
    assert run(kept, 1.0, network=network, key="a") == 1002.0 and recordings.made == made + 1  # was the oldest
    assert run(kept, 1.0, network=network, key="b") == 1002.0 and recordings.made == made + 1
    for i in range(50):
        run(kept, 1.0, network=network, key=i)
    assert len(kept._kinds) <= graphs._KEPT_KINDS


@pytest.mark.parametrize("change", ["replaced", "moved", "same"])
def test_weights_that_lie_elsewhere_are_recorded_anew(recordings: type[StandIn], change: str) -> None:
    kept, network = Graphs(), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    for _ in range(2):
        run(kept, 1.0, network=network)
    before = network[0].weight
    if change == "replaced":
        network[0].weight = nn.Parameter(before.detach().clone())
    elif change == "moved":
        network[0].weight.data = before.detach().clone()
    else:
        network[0].weight.data.mul_(2)
    assert run(kept, 1.0, network=network) == 1002.0
    assert recordings.made == (1 if change == "same" else 2)


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError("no room"), RuntimeError("waits\nfor something")])
def test_what_cannot_be_recorded_goes_on_and_is_said_once(
    recordings: type[StandIn], failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    recordings.failure = failure
    kept, network = Graphs(), nn.Linear(1, 1)
    with caplog.at_level(logging.WARNING, logger="invert3d"):
        assert [run(kept, 2.0, network=network) for _ in range(5)] == [4.0] * 5
        assert [run(Graphs(), 2.0, network=network) for _ in range(2)] == [4.0] * 2
    assert recordings.made == 1
    (record,) = caplog.records
    assert "Doubling is not replayed" in record.message and "same result" in record.message
    assert str(failure).splitlines()[0] in record.message and "for something" not in record.message


def test_the_first_cause_is_what_is_said() -> None:
    try:
        try:
            raise RuntimeError("the cause")
        finally:
            raise RuntimeError("torn apart")
    except RuntimeError as error:
        assert graphs._reason(error) == "the cause"


def test_a_replay_that_is_off_is_not_used(recordings: type[StandIn], caplog: pytest.LogCaptureFixture) -> None:
    recordings.error = 0.5
    kept, network = Graphs(), nn.Linear(1, 1)
    assert [run(kept, 2.0, network=network) for _ in range(3)] == [4.0] * 3
    assert "off by 0.5" in caplog.text


def test_a_cancel_in_a_recording_passes_through(recordings: type[StandIn]) -> None:
    kept, network = Graphs(), nn.Linear(1, 1)
    run(kept, 2.0, network=network)
    recordings.failure = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(kept, 2.0, network=network)
    recordings.failure = None
    assert run(kept, 2.0, network=network) == 1004.0


def test_graphs_go_when_their_network_is_moved_or_copied(recordings: type[StandIn]) -> None:
    network = nn.Sequential(nn.Linear(1, 1))
    kept = graphs_of(network)
    assert graphs_of(network) is kept
    for _ in range(2):
        run(kept, 1.0, network=network)
    assert len(kept) == 1
    other = copy.deepcopy(network)
    assert len(graphs_of(other)) == 0 and graphs_of(other) is not kept and len(kept) == 1
    nn.ModuleList([network]).to(torch.float64)
    assert len(kept) == 0
    assert list(network.state_dict()) == ["0.weight", "0.bias"]
    run(kept, 1.0, network=network)
    run(kept, 1.0, network=network)
    graphs.release_graphs(network)
    graphs.release_graphs(nn.Linear(1, 1))
    assert len(kept) == 0


def test_work_inside_work_is_not_recorded_by_itself(recordings: type[StandIn]) -> None:
    inner, network = Graphs(), nn.Linear(1, 1)

    def outer(x: Tensor) -> tuple[Tensor, ...]:
        return inner.run("Inside", double, [x], [network])

    for _ in range(4):
        Graphs().run("Outside", outer, [torch.ones(1)], [network])
    assert not inner._kinds


def test_distances() -> None:
    x = torch.tensor([3.0, 4.0])
    assert graphs._distance(x, x) == 0
    assert graphs._distance(x + torch.tensor([0.0, 0.5]), x) == pytest.approx(0.1)
    nan = torch.tensor([3.0, torch.nan])
    assert graphs._distance(nan, x) == float("inf") and graphs._distance(nan, nan) == 0
    assert graphs._distance(torch.tensor([1]), torch.tensor([2])) == float("inf")
