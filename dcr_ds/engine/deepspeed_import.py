"""DeepSpeed, imported without MLflow; the package's other files take `deepspeed` from here.

DeepSpeed's autotuner, which the package does not use, imports MLflow wherever it is installed. That doubles the time of
`import deepspeed`, on every rank and in every command. MLflow is hidden during the import only: the tracker of that
name imports it afterwards.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def hidden(module: str) -> Iterator[None]:
    """Within the context, importing a module that is not imported yet fails as if it were not installed."""
    modules: dict[str, Any] = sys.modules
    if module in modules:
        yield
        return
    modules[module] = None  # documented: import then raises ModuleNotFoundError
    try:
        yield
    finally:
        del modules[module]


with hidden("mlflow"):
    import deepspeed
    import deepspeed.accelerator
    import deepspeed.comm
    import deepspeed.ops
    import deepspeed.runtime.zero.linear
    import deepspeed.utils.zero_to_fp32

__all__ = ["deepspeed"]
