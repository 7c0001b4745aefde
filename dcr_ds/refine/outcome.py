"""The outcome of stage 1: whether its weights are valid, its summary, and what a run does after a failure."""

from collections.abc import Mapping
from typing import Any

from dcr_ds.engine.distributed import Ranks, broadcast_from_main
from dcr_ds.errors import RefinementFailed
from dcr_ds.files import read_object
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.layout import StageFolder
from dcr_ds.refine.selection import failures


def outcome(progress: Mapping[str, Any], last_step: int, max_drift: float) -> dict[str, Any]:
    """The entries of summary.json about the exported weights.

    These are the weights of the best step, or of the last step if no measured step was valid.

    Returns:
        final: figures of the last step. best: figures of the exported weights. exported_step. failures: why they are
        not valid; empty if they are. warnings: sentences for log and report.
    """
    last, reasons = progress["last"], failures(progress["start"], progress["last"], max_drift)
    result = {"final": last, "best": progress["best"], "exported_step": progress["best_step"], "failures": []}
    warnings = []
    if not progress["best_step"]:
        result |= {"best": last, "exported_step": last_step, "failures": reasons}
        warnings.append(f"refine failed: {'; '.join(reasons)}. No measured step was better; the last one was exported")
    elif reasons:
        warnings.append(
            f"refine: the weights of step {progress['best_step']} were exported, not those of step {last_step}: "
            f"{'; '.join(reasons)}"
        )
    return result | {"warnings": warnings}


def check_outcome(recipe: Recipe, folder: StageFolder, ranks: Ranks) -> None:
    """Raise RefinementFailed if a finished stage 1 failed, unless `refine.on_failure` is continue. All ranks."""
    reasons = None
    if ranks.is_main and folder.is_done:
        reasons = read_object(folder.summary).get("failures")
    reasons = broadcast_from_main(reasons, ranks)
    if reasons and recipe.refine.on_failure == "stop":
        raise RefinementFailed(
            f"refine: failed: {'; '.join(reasons)}. Repeat it with other settings (--redo refine): for the gap and AUC "
            "another refine.layer, a lower refine.scale, a higher refine.learning_rate or more refine.max_steps; for "
            "drift a higher refine.retain_weight or a lower refine.learning_rate. Or continue with these weights: "
            "--refine.on_failure continue"
        )
