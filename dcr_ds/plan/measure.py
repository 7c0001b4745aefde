"""--measure: two steps of a recipe as train.py runs them, and the rate that they reach."""

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from dcr_ds.engine.metrics import read_rows
from dcr_ds.errors import UserError
from dcr_ds.plan.clock import Rates
from dcr_ds.recipe import PROJECT_ROOT, Recipe, load_recipe

TIMEOUT_SECONDS = 3600


def measured_rates(
    path: str, overrides: list[tuple[str, str]], recipe: Recipe, folder: Path, rates: Rates
) -> tuple[Rates, str]:
    """Rates whose utilisation is that of the second step of stage 1 on this machine, one process, and what was seen.

    Raises:
        UserError: the recipe has no stage 1, or its steps failed; says how.
    """
    if "refine" not in recipe.stages:
        raise UserError("plan: --measure runs two steps of stage 1, which this recipe leaves out")
    with tempfile.TemporaryDirectory(prefix="dcr-ds-plan") as output:
        more = {
            "name": "measured",
            "output": output,
            "stages": "[refine]",
            "refine.max_steps": "2",
            "refine.patience": "9",
            "refine.target_gap": "2",
            "refine.measure_every": "2",  # the step that is timed, the first, is none that measures
        }
        words = [word for name, text in [*overrides, *more.items()] for word in (f"--{name}", text)]
        done = subprocess.run(
            [sys.executable, str(PROJECT_ROOT / "train.py"), path, *words],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
        run = Path(output) / "measured"
        rows = read_rows(run / "refine" / "metrics.jsonl")
        if done.returncode or len(rows) < 2:
            raise UserError(f"plan: --measure: the two steps failed: {done.stderr.strip()[-400:]}")
        resolved = load_recipe(str(run / "recipe.yaml"))
    return _calibrated(resolved, folder, rows[0], rates)


def _calibrated(recipe: Recipe, folder: Path, row: dict, rates: Rates) -> tuple[Rates, str]:
    from dcr_ds.plan.rehearsal import Work, rehearse

    tokens = row["tokens_per_second"] * row["seconds"]
    one = rehearse(recipe, folder, Work("refine", 1, 64), device="cpu")
    flops = one.flops * tokens / 64
    reached = flops / row["seconds"]
    share = min(1.0, reached / rates.flops)
    told = (
        f"Measured: a step, {tokens:.0f} tokens in {row['seconds']:.2f} s, {reached / 1e12:.3g} TFLOP/s, "
        f"{share:.2g} of the planned GPU's rate; memory {row['memory_bytes'] / 2**30:.2f} GiB.\n"
    )
    return replace(rates, mfu=share), told
