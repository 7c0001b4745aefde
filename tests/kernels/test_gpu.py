"""Tests that need a GPU: no synchronisation with the host, few compilations, and the same results."""

from collections import Counter

import pytest
import torch
from kernel_testing import LOSSES, TRITON_DEVICE, assert_close, call, draw_positives, every_loss, make_batch, truth

pytestmark = pytest.mark.skipif(
    TRITON_DEVICE != "cuda" or not torch.cuda.is_available(), reason="needs a GPU, and Triton not interpreted"
)


def to_gpu(num_rows, width, dtype=torch.bfloat16):
    h, labels = make_batch(num_rows, width, 7, dtype)
    return h.cuda().requires_grad_(), labels.cuda(), draw_positives(labels).cuda()


@pytest.mark.parametrize("num_rows", [130, 1030])  # a gradient by one kernel, and by matrix products
@every_loss
def test_calls_do_not_synchronise_with_the_device(name, num_rows):
    batch = to_gpu(num_rows, 64)
    call(name, *batch, backend="triton").backward()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(name, *batch, backend="triton").backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_loss
def test_five_numbers_of_rows_compile_a_kernel_at_most_twice(name):
    from triton import knobs

    compiled = Counter()
    width = 208 + 16 * list(LOSSES).index(name)  # a width that no other test compiles
    before = knobs.runtime.jit_post_compile_hook
    knobs.runtime.jit_post_compile_hook = lambda *args, fn, **kwargs: compiled.update([fn.name])
    try:
        for num_rows in (600, 601, 1024, 1040, 1999):
            call(name, *to_gpu(num_rows, width), backend="triton").backward()
    finally:
        knobs.runtime.jit_post_compile_hook = before
    assert compiled and max(compiled.values()) <= (4 if name == "ntxent" else 2)  # which has two kinds of statistics


@pytest.mark.parametrize("backend", ["chunked", "triton"])
@pytest.mark.parametrize("num_rows", [600, 2100])  # more rows than the interpreter can take, and larger tiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_loss
def test_many_rows_agree_with_float64(name, dtype, num_rows, backend):
    h, labels, positives = to_gpu(num_rows, 96, dtype)
    loss = call(name, h, labels, positives, backend=backend)
    (gradient,) = torch.autograd.grad(loss, h)
    expected = truth(name, h.detach().cpu(), labels.cpu(), positives=positives.cpu())
    tolerances = (1e-6, 5e-5) if dtype == torch.float32 else (1e-5, 4e-3)
    assert_close((loss.detach().cpu(), gradient.cpu()), expected, *tolerances)


@every_loss
def test_a_call_can_be_captured_in_a_cuda_graph(name):
    h, labels, positives = to_gpu(70, 64)
    sample = (torch.randn_like(h).requires_grad_(), labels.flip(0), positives.flip(0))
    graphed = torch.cuda.make_graphed_callables(lambda *batch: call(name, *batch, backend="triton"), sample)
    results = []
    for function in (graphed, lambda *batch: call(name, *batch, backend="triton")):
        loss = function(h, labels, positives)
        results.append((loss.detach().clone(), torch.autograd.grad(loss, h)[0]))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_auto_chooses_triton(caplog):
    from dcr_kernels import pairwise

    pairwise._logged.clear()
    with caplog.at_level("INFO", logger="dcr_kernels"):
        call("supcon", *to_gpu(12, 16)[:2])
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == ["backend triton"]
