"""The gradient of "last" is added to that of other consumers of the hidden states without modifying theirs."""

import gc

import pytest
import torch
from dcr_kernels import pool
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint


@pytest.fixture(params=["reference", "triton"])
def backend(request):
    return request.param


OTHERS = {
    "none": lambda hidden, z: hidden.new_zeros(()),
    "a gradient of its own": lambda hidden, z: (hidden * z).square().sum(),
    "a gradient shared with z": lambda hidden, z: (hidden + z).square().sum(),
    "an expanded gradient": lambda hidden, z: hidden.sum(),
    "an expanded gradient shared with z": lambda hidden, z: (hidden + z).sum(),
    "two of them": lambda hidden, z: (hidden + z).square().sum() + (hidden @ z.mT).sum(),
    "another pool": lambda hidden, z: pool(hidden, "last")[0].square().sum() + pool(hidden, "mean")[0].sum(),
}
MASK = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 1]])
ROWS = (torch.arange(3), torch.tensor([1, 2, 3]))


def by_indexing(hidden):
    return hidden[ROWS]


def gradients(pooling, other, pool_first: bool, leaf: bool, dtype=torch.float32):
    """Gradients of a pooled loss plus another loss, and of z, which shares them; the gradient at z must not change."""
    generator = torch.Generator().manual_seed(1)
    root, z_root = (torch.randn(3, 4, 5, generator=generator).to(dtype).requires_grad_() for _ in range(2))
    hidden, z = root if leaf else root * 1, z_root * 1
    received = []
    z.register_hook(lambda gradient: received.append((gradient, gradient.clone())))
    losses = [lambda: pooling(hidden).square().sum(), lambda: OTHERS[other](hidden, z)]
    sum(loss() for loss in (losses if pool_first else losses[::-1])).backward()
    assert all(torch.equal(*pair) for pair in received)
    return root.grad, z_root.grad


@pytest.mark.parametrize("other", OTHERS)
def test_last_next_to_another_consumer(other, backend):
    def pooling(hidden):
        return pool(hidden, "last", MASK, backend=backend)[0]

    for pool_first in (True, False):
        for leaf in (True, False):
            result = gradients(pooling, other, pool_first, leaf)
            for gradient, expected in zip(result, gradients(by_indexing, other, pool_first, leaf), strict=True):
                torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_last_next_to_another_consumer_in_other_types(dtype, backend):
    def pooling(hidden):
        return pool(hidden, "last", MASK, backend=backend)[0]

    for other in ("none", "a gradient of its own"):
        result, expected = (gradients(way, other, True, False, dtype)[0] for way in (pooling, by_indexing))
        assert result.dtype == dtype
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("pool_first", [True, False])
def test_last_does_not_modify_a_gradient_of_the_caller(pool_first):
    hidden = torch.randn(3, 4, 5, requires_grad=True) * 1
    hidden.retain_grad()
    gradient = torch.ones(3, 4, 5)
    pairs = [(pool(hidden, mask=MASK)[0], torch.ones(3, 5)), (hidden, gradient)]
    torch.autograd.backward(*zip(*(pairs if pool_first else pairs[::-1]), strict=True))
    assert (gradient == 1).all()
    assert (hidden.grad[ROWS] == 2).all() and hidden.grad.sum() == 60 + 15


class NewMemory(TorchDispatchMode):
    """Records the operators that allocate at least `size` bytes for their results."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.names = size, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        old, new = (
            {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tree_leaves(tree)
             if isinstance(tensor, torch.Tensor)}
            for tree in ((args, kwargs), out)
        )  # fmt: skip
        self.names += [func.__name__ for pointer in new.keys() - old.keys() if new[pointer] >= self.size]
        return out


class Sum(torch.autograd.Function):
    """A sum that records where the gradient it returns is stored."""

    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return x.sum()

    @staticmethod
    def backward(ctx, upstream):
        gradient = upstream.expand(ctx.shape).clone()
        Sum.address = gradient.data_ptr()
        return gradient


# Under NewMemory autograd never adds in place; the next test covers that.
@pytest.mark.parametrize(
    "order, names",
    [
        (["pool"], ["new_zeros.default"]),
        (["other"], ["clone.default"]),
        (["pool", "other"], ["clone.default", "add.Tensor"]),
        (["other", "pool"], ["clone.default", "add.Tensor"]),
    ],
)
def test_the_backward_of_last_needs_no_memory_next_to_another_consumer(order, names):
    hidden = torch.randn(3, 4, 5, requires_grad=True)
    losses = dict(pool=lambda: pool(hidden, mask=MASK)[0].sum(), other=lambda: Sum.apply(hidden))
    loss = sum(losses[name]() for name in order)
    with NewMemory(hidden.nbytes) as memory:
        loss.backward()
    assert memory.names == names


def test_rows_are_added_in_place_to_an_existing_gradient():
    """As with `pool` in a hook of a layer, since autograd starts with what was computed last."""
    hidden = torch.randn(3, 4, 5, requires_grad=True) * 1
    h, _ = pool(hidden)
    addresses = []
    hidden.register_hook(lambda gradient: addresses.append(gradient.data_ptr()))
    (h.sum() + Sum.apply(hidden)).backward()
    assert addresses == [Sum.address]


@pytest.mark.parametrize("leaf", [True, False])
def test_last_in_all_kinds_of_backward_passes(leaf, backend):
    root = torch.randn(3, 4, 5, requires_grad=True)
    hidden = root if leaf else root * 1
    received = []
    hidden.register_hook(lambda gradient: received.append(gradient.clone()))  # registered before pool
    h, _ = pool(hidden, "last", MASK, backend=backend)
    loss = h.sum()
    expected = torch.zeros(3, 4, 5).index_put(ROWS, torch.tensor(1.0))
    for _ in range(2):
        loss.backward(retain_graph=True)
    assert torch.equal(root.grad, 2 * expected)
    for inputs in (hidden, root):
        assert torch.equal(torch.autograd.grad(loss, inputs, retain_graph=True)[0], expected)
    assert torch.equal(torch.autograd.grad(loss, h, retain_graph=True)[0], torch.ones(3, 5))
    assert len(received) == 4 and all(torch.equal(gradient, expected) for gradient in received)
    hidden.sum().backward()  # which does not include h
    assert torch.equal(root.grad, 2 * expected + 1)


def test_last_without_gradient(backend):
    hidden = torch.randn(3, 4, 5, requires_grad=True)
    with torch.no_grad():
        assert not pool(hidden, backend=backend)[0].requires_grad
    assert not pool(hidden.detach(), backend=backend)[0].requires_grad
    assert not hidden._backward_hooks


def test_hooks_do_not_accumulate_on_a_leaf():
    hidden = torch.randn(3, 4, 5, requires_grad=True)
    for _ in range(3):
        pool(hidden)[0].sum().backward()
    gc.collect()
    assert not hidden._backward_hooks


class FailOnce(torch.autograd.Function):
    failed = False

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if not FailOnce.failed:
            FailOnce.failed = True
            raise RuntimeError("once")
        return gradient


def test_a_failed_backward_pass_does_not_affect_the_next():
    hidden = torch.randn(3, 4, 5, requires_grad=True)
    other = FailOnce.apply(hidden).sum()
    h, _ = pool(hidden)
    with pytest.raises(RuntimeError, match="once"):
        (h.sum() + other).backward(retain_graph=True)
    other.backward()
    assert (hidden.grad == 1).all()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("how", ["last", "mean"])
def test_under_activation_checkpointing(how, reentrant, backend):
    def block(x):
        hidden = x.sin()
        return pool(hidden, how, MASK, backend=backend)[0], hidden * 2

    def only_pool(x):
        return pool(x, how, MASK, backend=backend)[0], x * 2

    root = torch.randn(3, 4, 5, requires_grad=True)
    for function in (block, only_pool):
        results = []
        for outputs in (checkpoint(function, root * 3, use_reentrant=reentrant), function(root * 3)):
            loss = sum(output.square().sum() for output in outputs)
            loss.backward()
            results.append(root.grad)
            root.grad = None
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("how, backend", [("last", "reference"), ("last", "triton"), ("mean", "triton")])
@pytest.mark.parametrize("joint", [True, False])
def test_a_second_derivative_is_an_error(how, backend, joint):
    hidden = torch.randn(3, 4, 5, requires_grad=True)
    loss = pool(hidden, how, backend=backend)[0].square().sum() + (hidden**3).sum() * joint
    (gradient,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
