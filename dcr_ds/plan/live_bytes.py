"""Count the bytes of live tensors after every operator, for CPU and fake tensors, which PyTorch does not count."""

import gc
import weakref
from collections.abc import Iterable, Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveBytes(TorchDispatchMode):
    """Context manager that tracks every storage that exists on entry or is returned by an operator, until it is freed.

    A storage counts once, whatever the number of views, and also if only the autograd graph refers to it. Memory that
    an operator allocates and frees internally is not seen. Tensors on the meta device have no bytes.

    Args:
        known: the live tensors on entry; None: all of the process.

    Attributes:
        alive: live bytes now.
        peak: the maximum since entry; set it to `alive` to reset it.
    """

    def __init__(self, known: Iterable[torch.Tensor] | None = None):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.alive = self.peak = 0
        for tensor in _all_tensors() if known is None else known:
            self._follow(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._follow, result)
        return result

    def _follow(self, tensor: torch.Tensor) -> None:
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.alive -= self.sizes.pop(key)


def _all_tensors() -> Iterator[torch.Tensor]:
    gc.collect()
    for item in gc.get_objects():
        if issubclass(type(item), torch.Tensor):
            yield item
            if item.is_leaf and item.grad is not None:  # has no Python object until it is accessed
                yield item.grad
