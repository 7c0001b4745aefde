"""Every kernel compiles for an H100 or H200 and fits its limits, tested on any machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from dcr_kernels import triton_kernels, triton_pooling

SHARED_BYTES = 227 * 1024  # that a block may have
STATISTICS = {"circle", "supcon", "infonce", "ntxent", "ntxent_terms", "triplet"}
PULLS = STATISTICS - {"ntxent_terms", "triplet"}


@pytest.fixture(scope="module")
def compiled(request):
    script = Path(__file__).with_name("compile_kernels.py")
    full = ["--full"] if request.config.getoption("--full-kernels", default=False) else []
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script, *full], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_compiles(compiled):
    kinds: dict[str, set] = {}
    for result in compiled:
        kinds.setdefault(result["kernel"], set()).add(result["kind"])
    modules = (triton_kernels, triton_pooling)
    assert set(kinds) == {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    assert kinds["statistics_kernel"] == STATISTICS
    assert kinds["pull_kernel"] == kinds["toward_kernel"] == PULLS


def test_every_kernel_fits_the_shared_memory(compiled):
    assert max(result["shared"] for result in compiled) <= SHARED_BYTES


def test_products_of_half_precision_run_on_tensor_cores(compiled):
    products = [result for result in compiled if result["kind"] and result["dtype"] != "fp32"]
    assert products and all(result["tensor_cores"] for result in products)
