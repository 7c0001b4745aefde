"""Launched by test_export.py on two ranks: runs stopped in stage 1 (full-parameter) and stage 2 (LoRA), per ZeRO stage.

Next to each, in `expected`, is what the stage would write from weights in the memory of one rank, and in `streamed`
what both ranks write together. A run of stage 1 has `sharded`, `snapshot`, and the error of a rank that cannot write.
"""

import json
import resource
import signal
import sys
from pathlib import Path

from dcr_ds.engine.launcher import set_environment
from dcr_ds.recipe.layout import StageFolder

set_environment()

import torch

from dcr_ds.engine import distributed as process
from dcr_ds.engine.build import build_engine, sharded_loading, stage_config
from dcr_ds.engine.checkpoint.checkpoints import Checkpoints
from dcr_ds.engine.config import read_config
from dcr_ds.engine.snapshot import Snapshot
from dcr_ds.engine.weights import TrainedWeights
from dcr_ds.errors import UserError
from dcr_ds.models import shards
from dcr_ds.models.adapters import add_lora, write_trained
from dcr_ds.models.likelihood import Likelihood
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.splice import read_all, splice
from dcr_ds.models.trunk import load_trunk
from dcr_ds.plan.live_bytes import LiveBytes
from dcr_ds.recipe import Recipe, dump_recipe, load_recipe

IDS = torch.arange(3, 43).view(2, 20)


def loss_of(engine, stage: str) -> torch.Tensor:
    if stage == "refine":
        return engine(input_ids=IDS).last_hidden_state.square().mean()
    return engine(torch.arange(19), IDS[0, 1:], input_ids=IDS[:1])


def stop_early(stage: str, recipe: Recipe, source: Path, ranks) -> None:
    """Run two steps of a stage, each with a checkpoint, and save in `expected` what the stage would write."""
    section, folder = getattr(recipe, stage), recipe.folder
    config = stage_config(read_config(recipe), section, "float32", ranks)
    live = LiveBytes()
    before = live.alive
    with live, sharded_loading(config):
        if stage == "refine":
            model = load_trunk(source, recipe.refine.layer, torch.float32, "sdpa")
        else:
            model = load_causal_lm(source, torch.float32, "sdpa", None)
    (folder / stage).mkdir(parents=True, exist_ok=True)
    (folder / stage / f"load-{ranks.rank}.json").write_text(json.dumps(load_figures(model, live.peak - before)))
    if section.adapter == "lora":
        torch.manual_seed(0)
        model = add_lora(model, section.lora, f"{stage}.lora")
    model.train()
    held, kept = ("", "model.") if stage == "refine" else ("model.", "")
    engine = build_engine(
        model if stage == "refine" else Likelihood(model, "chunked"), section, config, "constant", 3, ranks
    )
    checkpoints = Checkpoints(engine, folder / stage / "checkpoints", 2, ranks)
    for step in (1, 2):
        engine.backward(loss_of(engine, stage), scale_wrt_gas=False)
        engine.step()
        checkpoints.save(step, {})
        checkpoints.wait_until_saved()
    checkpoints.close()
    weights = read_all(TrainedWeights(engine, ranks, prefix=held), ranks.is_main)
    if ranks.is_main:
        (folder / "recipe.yaml").write_text(dump_recipe(recipe))
        write_trained(model, weights, source, StageFolder(folder / "expected"), kept)
    streamed = TrainedWeights(engine, ranks, prefix=held)
    write_trained(model, streamed, source, StageFolder(folder / "streamed"), kept)
    if stage == "refine":
        write_in_shards(model, engine, source, folder, ranks)


def load_figures(model, peak: int) -> dict[str, int]:
    """Bytes of all parameters and of the largest one, and the peak of tensors that loading made on this rank."""
    sizes = [getattr(parameter, "ds_numel", parameter.numel()) * 4 for parameter in model.parameters()]
    return {"whole": sum(sizes), "largest": max(sizes), "peak": peak}


def write_in_shards(model, engine, source: Path, folder: Path, ranks) -> None:
    """Write several files from live weights and from a snapshot; then rank 1 cannot write its files."""
    shards.MAX_SHARD_BYTES = 40_000
    weights = TrainedWeights(engine, ranks)
    splice(model, weights, source, folder / "sharded", "model.")
    snapshot = Snapshot(engine, ranks, masters=True)
    snapshot.take()
    splice(model, snapshot.weights(), source, folder / "snapshot", "model.")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if ranks.rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        splice(model, weights, source, folder / "full", "model.")
    except UserError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        (folder / f"error-{ranks.rank}").write_text(str(error))
    shards.MAX_SHARD_BYTES = 5_000_000_000


def main(source: str, output: str) -> None:
    ranks = process.start()
    for zero in range(4):
        for stage, adapter in (("refine", "none"), ("align", "lora")):
            values = {
                "name": f"{stage}-zero{zero}", "output": output, "model.source": source, "refine.layer": 2,
                "deepspeed": f"ds_configs/zero{zero}.json", f"{stage}.adapter": adapter, "align.lora.rank": 4,
                "refine.learning_rate": 1e-2, "align.learning_rate": 1e-2, "refine.weight_decay": 0.1,
            }  # fmt: skip
            recipe = load_recipe(None, [(field, str(value)) for field, value in values.items()])
            stop_early(stage, recipe, Path(source), ranks)
    process.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
