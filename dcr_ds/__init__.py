"""Train language models that refuse harmful prompts without refusing harmless ones (DCR on DeepSpeed).

import dcr_ds

recipe = dcr_ds.load_recipe("smollm2-135m", {"refine.max_steps": 20, "name": "short"})
run = dcr_ds.train(recipe)
run.table()
"""

from typing import TYPE_CHECKING, Any

from dcr_ds.errors import Diverged, RefinementFailed, ServerFailed, Stopped, UserError

if TYPE_CHECKING:
    from dcr_ds.api import Run, change_recipe, load_recipe, train

__version__ = "0.1.0"
__all__ = [
    "Diverged",
    "RefinementFailed",
    "Run",
    "ServerFailed",
    "Stopped",
    "UserError",
    "__version__",
    "change_recipe",
    "load_recipe",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import the API at its first use: `import dcr_ds` alone stays fast, as every command needs it."""
    if name in ("Run", "change_recipe", "load_recipe", "train"):
        from dcr_ds import api

        return getattr(api, name)
    raise AttributeError(f"module 'dcr_ds' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
