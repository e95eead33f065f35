"""Settings of all tests."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# A time limit per example measures the machine, not the code: two cores are often shared.
settings.register_profile("invert3d", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("invert3d")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks and scenes this small are slower with more threads, and far slower while other work wants the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
