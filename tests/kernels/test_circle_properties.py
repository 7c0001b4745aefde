"""What must hold for circle_loss on any batch, and what it may cost in memory."""

import os
import subprocess
import sys

import pytest
import torch
from dcr_kernels import circle_loss
from kernel_testing import loss_and_gradient, make_batch, relative_error

pytestmark = pytest.mark.parametrize(
    "backend, form", [("reference", "anchor"), ("chunked", "anchor"), ("chunked", "global")]
)
TOLERANCE = 2e-5  # a change in the order of the rows changes the order of the float32 sums


@pytest.fixture
def batch():
    h, labels = make_batch(70, 40, 6)
    labels[5] = -1
    return h, labels


def test_permuting_the_rows_permutes_the_gradient(batch, backend, form):
    h, labels = batch
    loss, gradient = loss_and_gradient(h, labels, backend=backend, form=form)
    order = torch.randperm(len(h))
    permuted_loss, permuted_gradient = loss_and_gradient(h[order], labels[order], backend=backend, form=form)
    assert relative_error(permuted_loss, loss) <= 1e-6
    assert relative_error(permuted_gradient, gradient[order]) <= TOLERANCE


def test_the_length_of_a_row_does_not_matter(batch, backend, form):
    h, labels = batch
    loss, gradient = loss_and_gradient(h, labels, backend=backend, form=form)
    length = torch.logspace(-3, 3, len(h))[:, None]
    scaled_loss, scaled_gradient = loss_and_gradient(h * length, labels, backend=backend, form=form)
    assert relative_error(scaled_loss, loss) <= 1e-6
    assert relative_error(scaled_gradient * length, gradient) <= TOLERANCE


def test_the_gradient_is_at_right_angles_to_its_row(batch, backend, form):
    h, labels = batch
    _, gradient = loss_and_gradient(h, labels, backend=backend, form=form)
    radial = (h * gradient).sum(dim=1).abs()
    assert (radial <= 1e-5 * h.norm(dim=1) * gradient.norm(dim=1)).all()


def test_the_names_of_the_labels_do_not_matter(batch, backend, form):
    h, labels = batch
    loss, gradient = loss_and_gradient(h, labels, backend=backend, form=form)
    names = torch.tensor([7, 2**62, 0, 10**12, 3, 2**40])
    renamed = torch.where(labels >= 0, names[labels.clamp(min=0)], labels)
    renamed_loss, renamed_gradient = loss_and_gradient(h, renamed, backend=backend, form=form)
    assert relative_error(renamed_loss, loss) <= 1e-6
    assert relative_error(renamed_gradient, gradient) <= TOLERANCE


def test_a_second_run_is_equal_to_the_last_bit(batch, backend, form):
    first = loss_and_gradient(*batch, backend=backend, form=form)
    second = loss_and_gradient(*batch, backend=backend, form=form)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_descending_the_gradient_separates_the_labels(batch, backend, form):
    h, labels = batch
    for _ in range(30):
        _, gradient = loss_and_gradient(h, labels, backend=backend, form=form)
        h = h - 0.05 * h.norm() * gradient.float() / gradient.norm()
    assert circle_loss(h, labels, form=form) < 0.5 * circle_loss(batch[0], labels, form=form)


MEASURE = """
import torch
from dcr_kernels import circle_loss

def peak_kib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

torch.set_num_threads(1)
torch.manual_seed(0)
h, labels = torch.randn({rows}, 64), torch.arange({rows}) % 2
circle_loss(h[:64].clone().requires_grad_(), labels[:64], form="{form}", backend="{backend}").backward()
before = peak_kib()
circle_loss(h.requires_grad_(), labels, form="{form}", backend="{backend}").backward()
print(peak_kib() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
def test_peak_memory_is_linear_in_the_rows(backend, form):
    if backend == "reference":
        pytest.skip("the reference is quadratic")
    rows = 8192
    code = MEASURE.format(rows=rows, form=form, backend=backend)
    # A fixed threshold makes glibc return each freed tensor at once: what is measured is what is alive.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    growth = int(done.stdout) * 1024
    assert growth <= 64 * 2**20 + 12 * rows * 64  # one N×N float32 matrix is 256 MiB
