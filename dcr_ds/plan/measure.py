"""--measure: a few steps of a recipe as train.py runs them, the rate that they reach and the memory that they take."""

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcr_ds.engine.metrics import read_rows
from dcr_ds.errors import UserError
from dcr_ds.plan.clock import Rates
from dcr_ds.recipe import PROJECT_ROOT, Recipe, load_recipe

TIMEOUT_SECONDS = 3600
# the first step warms up; the second is timed; stage 1 measures its held-out prompts after the last, the third
REFINE = {
    "refine.max_steps": "3",
    "refine.measure_every": "3",
    "refine.patience": "9",
    "refine.target_gap": "2",
}


def measured_rates(
    path: str, overrides: list[tuple[str, str]], recipe: Recipe, folder: Path, rates: Rates
) -> tuple[Rates, str]:
    """Rates whose utilisation is that of the second step of the first stage here, in one process; and what was seen.

    Raises:
        UserError: the steps failed; says how.
    """
    stage = recipe.stages[0]
    with tempfile.TemporaryDirectory(prefix="dcr-ds-plan") as output:
        more = {"name": "measured", "output": output, "stages": f"[{stage}]"}
        more |= REFINE if stage == "refine" else _two_steps_of_align(recipe)
        kept = [(name, text) for name, text in overrides if name not in more]
        words = [word for name, text in [*kept, *more.items()] for word in (f"--{name}", text)]
        try:
            done = subprocess.run(
                [sys.executable, str(PROJECT_ROOT / "train.py"), path, *words],
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise UserError(
                f"plan: --measure: the steps took more than {TIMEOUT_SECONDS} s; plan a smaller {stage}.global_batch"
            ) from None
        run = Path(output) / "measured"
        rows = read_rows(run / stage / "metrics.jsonl")
        if done.returncode or len(rows) < 2:
            said = done.stderr.strip()[-400:] or f"{len(rows)} steps of {stage} were made"
            raise UserError(f"plan: --measure: two steps could not be run: {said}")
        resolved = load_recipe(str(run / "recipe.yaml"))
    return _calibrated(resolved, folder, stage, rows[1], rates)


def _two_steps_of_align(recipe: Recipe) -> dict[str, str]:
    """As many rows as two steps take."""
    batch = recipe.align.global_batch
    if recipe.align.method == "dpo":
        return {"align.epochs": "1", "data.preferences.rows": str(2 * batch)}
    rows = {f"data.{name}.rows": str(batch) for name in ("general", "refusals")}
    return {"align.epochs": "1", "align.safe_ratio": "auto"} | rows


def _calibrated(recipe: Recipe, folder: Path, stage: str, row: dict[str, Any], rates: Rates) -> tuple[Rates, str]:
    import torch

    from dcr_ds.plan.choose import planned
    from dcr_ds.plan.memory import memory, share_of, tensors_of
    from dcr_ds.plan.rehearsal import Work, rehearse
    from dcr_ds.plan.states import Zero

    on_gpu = torch.cuda.is_available()
    recipe = planned(recipe, folder, on_gpu)
    kind = "dpo" if stage == "align" and recipe.align.method == "dpo" else stage
    share = share_of(recipe, stage, ranks=1)
    tokens = round(row["tokens_per_second"] * row["seconds"])

    one = rehearse(recipe, folder, Work(kind, 1, 64), device="cuda" if on_gpu else "cpu")
    embeds_first = stage == "refine" and share.micro_batches > 1
    reached = (one.flops + embeds_first * one.forward_flops) * tokens / 64 / row["seconds"]
    mfu = min(1.0, reached / rates.flops)

    mean = replace(share, tokens=-(-tokens // (share.rows + share.retain_rows)))
    zero = Zero.of(recipe.deepspeed)
    held = memory(recipe, folder, kind, zero, 1, mean, tensors_of(recipe, folder, kind), on_gpu)
    told = (
        f"Measured, {stage}, the second step: {tokens} tokens in {row['seconds']:.2f} s, {reached / 1e12:.3g} TFLOP/s, "
        f"{mfu:.2g} of the planned GPU's rate. Peak memory {row['memory_bytes'] / 2**30:.2f} GiB"
        f"{'' if on_gpu else ' (resident, Python and its libraries included)'}, of tensors as planned for these rows "
        f"{held.peak / 2**30:.2f} GiB."
    )
    return replace(rates, mfu=mfu), told
