import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Many small operations: with more threads the tests would measure what else runs on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
