import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by deterministic algorithms on a GPU

import pytest
import torch

pytest.register_assert_rewrite("kernel_testing")


def pytest_addoption(parser):
    parser.addoption("--full-kernels", action="store_true", help="the full product of the kernel tests' parameters")


@pytest.fixture(autouse=True)
def strict_torch():
    """One thread, a fixed seed, and NaN in uninitialised memory, so that unwritten outputs are detected."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # also fills the results of torch.empty
    yield
    torch.use_deterministic_algorithms(False)
