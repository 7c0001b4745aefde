"""The Triton backend: tiles, splits, its two ways to compute the gradient, and where it can run."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from kernel_testing import TRITON_DEVICE, assert_close, call, every_loss, loss_and_gradient, make_batch, truth

pytest.importorskip("triton")

from dcr_kernels import pairwise, triton_pairs
from dcr_kernels.triton_pairs import Blocks, TritonPairs

TILES = {
    "small": dict(blocks=Blocks(16, 16, 16, 4, 2)),
    "small, every split": dict(blocks=Blocks(16, 16, 16, 4, 2), splits=1000),
    "wide": dict(blocks=Blocks(32, 128, 32, 4, 2), splits=1),
    "tall, uneven splits": dict(blocks=Blocks(128, 32, 64, 4, 2), splits=2),
    "large": dict(blocks=Blocks(128, 128, 64, 8, 2), splits=3),
}


@pytest.mark.parametrize("tiles", TILES.values(), ids=TILES)
@every_loss
def test_tiles_and_splits_do_not_matter(name, tiles, monkeypatch):
    h, labels = make_batch(50, 24, 5)
    labels[33] = -1
    expected = loss_and_gradient(name, h, labels, "triton")
    results = []

    def make(*args):
        results.append(TritonPairs(*args, **tiles))
        return results[-1]

    monkeypatch.setattr(pairwise, "_pairs", lambda backend: make)
    result = loss_and_gradient(name, h, labels, "triton")
    assert [(pairs.blocks, pairs.splits) for pairs in results] == [(tiles["blocks"], tiles.get("splits"))]
    assert_close(result, expected, 1e-6, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["circle-anchor", "supcon", "infonce", "ntxent"])  # it has no pair weights
def test_gradient_by_matrix_products_in_chunks(name, dtype, monkeypatch):
    """As with many rows: chunks of 64, 64 and 2 rows, where the kernel without matrix products takes all at once."""
    h, labels = make_batch(130, 40, 3, dtype)
    labels[[5, 129]] = -1
    heights = []
    product = triton_pairs._product
    monkeypatch.setattr(triton_pairs, "_TOWARD_KERNEL_ROWS", 0)
    monkeypatch.setattr(triton_pairs, "_WEIGHT_BYTES", 1)
    monkeypatch.setattr(triton_pairs, "_product", lambda w, rows: heights.append(len(w)) or product(w, rows))
    result = loss_and_gradient(name, h, labels, "triton")
    assert heights == [64, 64, 2]
    exact = dtype == torch.float32
    assert_close(result, truth(name, h, labels), 1e-6 if exact else 1e-5, 5e-5 if exact else 4e-3)


WITHOUT_INTERPRETER = """
import sys
import torch
before = "triton" in sys.modules
from dcr_kernels import circle_loss, pool

h, labels = torch.randn(8, 4, requires_grad=True), torch.arange(8) % 2
def use():
    circle_loss(h, labels).backward()
    pool(torch.randn(2, 3, 4), "mean")
    try:
        circle_loss(h, labels, backend="triton")
    except ValueError as error:
        print(error)

use()
assert before or "triton" not in sys.modules
sys.modules["triton"] = None  # as if it were not installed
use()
"""


def test_a_cpu_without_triton_or_its_interpreter_uses_the_other_backends():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_INTERPRETER], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    on_a_cpu, without_triton = done.stdout.splitlines()
    assert on_a_cpu.startswith("backend triton needs a GPU; on a CPU it only runs in Triton's interpreter")
    assert without_triton.startswith("backend triton needs the package triton: pip install triton")


@every_loss
def test_float64_is_an_error(name):
    h, labels = (value.to(TRITON_DEVICE) for value in make_batch(8, 4, 2, torch.float64))
    with pytest.raises(ValueError, match="triton computes in float32; for a float64 h use chunked or reference"):
        call(name, h, labels, backend="triton")


def test_auto_logs_its_choice_once(monkeypatch, caplog):
    monkeypatch.setattr(pairwise, "_logged", set())
    for dtype in (torch.float32, torch.float32, torch.float64, torch.float32):
        with caplog.at_level(logging.INFO, logger="dcr_kernels"):
            call("supcon", *make_batch(8, 4, 2, dtype))
    call("supcon", *make_batch(8, 4, 2), backend="chunked")  # an explicit choice is not logged
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("dcr_kernels", f"contrastive losses on cpu in {dtype}: backend chunked")
        for dtype in (torch.float32, torch.float64)
    ]
