"""How the evaluation of a run is laid out: copies of the model, GPUs per copy, and memory per GPU."""

from pathlib import Path
from typing import Any

from dcr_ds.engine.copies import footprint, resolve_copies
from dcr_ds.errors import UserError
from dcr_ds.evaluate.serving.command import describe_engine
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.models.load import DTYPES
from dcr_ds.models.tensor_parallel import as_config
from dcr_ds.plan.choose import GIB, Cluster
from dcr_ds.recipe import Recipe


def plan_evaluation(recipe: Recipe, folder: Path, cluster: Cluster) -> tuple[str, dict[str, Any] | None]:
    """The layout as a sentence, and its figures; None if the model does not fit.

    Args:
        recipe: with a resolved precision.
        folder: the model's configuration.
    """
    config, itemsize = model_config(folder), DTYPES[recipe.model.dtype].itemsize
    try:
        size, reason = resolve_copies(recipe.evaluate, config, cluster.machine, itemsize)
    except UserError as error:
        return f"evaluate: {error}", None
    held = footprint(as_config(config), itemsize, recipe.evaluate).per_rank(size)
    copies, unit = cluster.gpus // size, cluster.unit
    layout = f"one per {unit}" if size == 1 else f"{size} {unit}s of a node each"
    if "GiB" not in reason:
        reason = f"{held / GIB:.1f} GiB of weights and cache on each rank; {reason}"
    text = (
        f"evaluate: {copies} {'copy' if copies == 1 else 'copies'} of the model, {layout}: {reason}. The prompts are "
        "divided among the copies; the time of generation is not planned."
    )
    gpus = min(cluster.gpus, cluster.per_node) if cluster.on_gpu else 0
    text = "\n".join([text, *describe_engine(recipe.evaluate.engine, gpus, config)])
    return text, {"ranks_per_copy": size, "copies": copies, "bytes_per_rank": held}
