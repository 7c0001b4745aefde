"""Memory of the losses: linear in the rows, and nothing stays alive after the backward pass."""

import gc
import json
import os
import subprocess
import sys
import weakref

import pytest
from kernel_testing import call, device_of, every_backend, every_loss, make_batch

ROWS, WIDTH = 8192, 64

# Growth of the peak of resident memory of each loss, forward and backward, in bytes. Writing 5 resets the peak.
MEASURE = f"""
import json, sys
import torch
sys.path.insert(0, {os.path.dirname(__file__)!r})
from kernel_testing import LOSSES, call

def memory(field):
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1])

torch.set_num_threads(1)
torch.manual_seed(0)
h, labels = torch.randn({ROWS}, {WIDTH}), torch.arange({ROWS}) % 2
positives = (torch.arange({ROWS}) + 2) % {ROWS}
growth = {{}}
for name in LOSSES:
    call(name, h[:64].clone().requires_grad_(), labels[:64], (torch.arange(64) + 2) % 64, backend="chunked").backward()
    leaf = h.clone().requires_grad_()
    open("/proc/self/clear_refs", "w").write("5")
    before = memory("VmRSS")
    call(name, leaf, labels, positives, backend="chunked").backward()
    growth[name] = memory("VmHWM") - before
print(json.dumps(growth))
"""


@pytest.fixture(scope="module")
def growth():
    if not os.path.exists("/proc/self/clear_refs"):
        pytest.skip("peak memory is read from /proc")
    # With a fixed threshold glibc returns freed tensors at once, so that resident memory is memory in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=200, check=True, env=environment
    )
    return json.loads(done.stdout)


@every_loss
def test_peak_memory_is_linear_in_the_rows(name, growth):
    assert 0 < growth[name] <= 64 * 2**20 + 12 * ROWS * WIDTH  # one N×N float32 matrix is 256 MiB


@every_backend
@every_loss
def test_nothing_stays_alive_after_the_backward_pass(name, backend):
    h, labels = (value.to(device_of(backend)) for value in make_batch(12, 8, 2))
    h.requires_grad_()
    loss = call(name, h, labels, backend=backend)
    loss.backward()
    alive = weakref.ref(h)
    gc.disable()
    try:
        del h
        loss = loss.detach()
        assert alive() is None
    finally:
        gc.enable()
