"""Launched by test_gradient_not_finite.py: steps whose gradient is not finite on one rank, per ZeRO stage and dtype.

Each rank writes what happened to OUT/<rank>.json.
"""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from dcr_ds.engine.launcher import set_environment

set_environment()

import torch
from small_engine import trained_weights

from dcr_ds.engine import distributed as process
from dcr_ds.engine.build import build_engine, stage_config
from dcr_ds.engine.session import Session
from dcr_ds.errors import Diverged
from dcr_ds.recipe import Recipe, StageSection
from dcr_ds.recipe.layout import StageFolder

STAGE = StageSection(learning_rate=0.05)
RECIPE = Recipe(checkpoint={"every_steps": 1}, align={"global_batch": 6})
GOOD_STEPS = 2


class Poisoned(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, value, factor):
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


def steps(zero: int, dtype: str, factor: float, folder: Path, ranks) -> dict:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    config = stage_config({"zero_optimization": {"stage": zero}}, STAGE, dtype, ranks)
    engine = build_engine(model.to(getattr(torch, dtype)), STAGE, config, "constant", 9, ranks)
    message, last = "", {}
    training = SimpleNamespace(engine=engine, recipe=RECIPE, ranks=ranks, total_steps=9)
    with Session("align", training, StageFolder(folder), time.monotonic()) as session:
        try:
            while session.step < 9:
                rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(session.step)).to(
                    getattr(torch, dtype)
                )
                output = engine(rows)
                if session.step == GOOD_STEPS and ranks.rank == ranks.world_size - 1:
                    output = Poisoned.apply(output, factor)
                loss = output.float().square().mean()
                last = trained_weights(engine, ranks)
                engine.backward(loss, scale_wrt_gas=False)
                row = {"loss": loss.item(), "step_tokens": 1}
                session.take_step(row, [f"sample {session.step}"])
                session.log(row)
                session.save_or_stop(is_last=False)
        except Diverged as error:
            message = str(error)
        session.checkpoints.wait_until_saved()
        after = trained_weights(engine, ranks)
        return {
            "message": message,
            "unchanged": all(torch.equal(last[name], after[name]) for name in after),
            "step": session.step,
            "checkpoints": sorted(path.name for path in (folder / "checkpoints").glob("step-*")),
        }


def main(out: Path) -> None:
    ranks = process.start()
    results = {}
    for zero in range(4):
        for dtype in ("float32", "bfloat16"):
            for factor in (float("nan"), float("inf"), float("-inf")):
                key = f"{zero} {dtype} {factor}"
                results[key] = steps(zero, dtype, factor, out / key.replace(" ", "-"), ranks)
    (out / f"{ranks.rank}.json").write_text(json.dumps(results))
    process.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
