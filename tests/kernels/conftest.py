import pytest
import torch


@pytest.fixture(autouse=True)
def strict_torch():
    """One thread, a fixed seed, and NaN in all uninitialised memory, so that an unwritten output is seen."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # also fills what torch.empty returns
    yield
    torch.use_deterministic_algorithms(False)
