"""On resume, `auto` means the value it was resolved to before; other resolved fields may differ."""

from collections.abc import Iterator
from typing import Any

from dcr_ds.engine.machine import Machine
from dcr_ds.engine.resolve import resolve
from dcr_ds.recipe import Recipe, dump_recipe
from dcr_ds.recipe.layout import RunFolder
from dcr_ds.run.folder import FREE, FREE_IN_STAGES, KEPT, RESOLVED_PER_MACHINE, check_folder, settings_of

MODEL = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 48}


def autos(values: Any, prefix: str = "") -> Iterator[str]:
    """Names of the fields that are `auto`."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from autos(value, f"{prefix}{name}.")
        elif value == "auto":
            yield prefix + name


def test_every_resolved_field_is_kept_or_may_differ():
    recipe = Recipe()
    resolved, _ = resolve(recipe, MODEL, Machine(on_gpu=False, memory_bytes=1 << 34))
    filled_in = set(autos(recipe.model_dump())) - set(autos(resolved.model_dump()))
    may_differ = {
        name
        for name in filled_in
        if name.endswith((*FREE_IN_STAGES, *RESOLVED_PER_MACHINE)) or name.partition(".")[0] in FREE
    }
    assert filled_in - may_differ == {".".join(field) for field in KEPT}
    assert {"refine.micro_batch", "align.packed_length", "align.loss_backend"} <= may_differ


def test_leakage_may_be_allowed_after_training(tmp_path):
    """A trained run whose evaluation asks for --allow_leakage was another recipe's run with it."""
    recipe = Recipe(output=str(tmp_path), stages=["align"])
    run = RunFolder(recipe.folder)
    run.stage("align").model.mkdir(parents=True)
    run.recipe.write_text(dump_recipe(recipe))
    allowed = recipe.model_copy(update={"allow_leakage": True})
    assert check_folder(allowed, None) == allowed
    assert settings_of(allowed, "align") == settings_of(recipe, "align")
