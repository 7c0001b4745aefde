"""The bytes of all tensors alive, followed operator by operator: on a CPU, where PyTorch keeps no such count, and of
fake tensors, which have sizes and no memory."""

import gc
import weakref
from collections.abc import Iterable, Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveBytes(TorchDispatchMode):
    """While open, follows every storage that is alive on entry or that an operator returns, until it dies.

    A storage counts once, however many tensors look at it, and also where only the autograd graph still holds it.
    What an operator takes and gives back inside itself is not seen. Tensors on the meta device have no bytes.

    Args:
        known: the tensors alive on entry; None: all of the process.

    Attributes:
        alive: bytes alive now.
        peak: the most bytes alive since entry; may be set to `alive` to begin anew.
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
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            yield thing
            if thing.is_leaf and thing.grad is not None:  # no Python object until it is asked for
                yield thing.grad
