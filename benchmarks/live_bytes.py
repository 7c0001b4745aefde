"""The bytes of all tensors alive at the worst moment, on a CPU, where PyTorch keeps no such count."""

import gc
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveBytes(TorchDispatchMode):
    """While open, follows every storage that is alive on entry or that an operator returns, until it dies.

    A storage counts once, however many tensors look at it, and also where only the autograd graph still holds it.
    What an operator takes and gives back inside itself is not seen.
    """

    def __init__(self):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.alive = self.peak = 0
        gc.collect()
        for thing in gc.get_objects():
            if issubclass(type(thing), torch.Tensor):
                self._follow(thing)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._follow, result)
        return result

    def _follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.alive -= self.sizes.pop(key)
