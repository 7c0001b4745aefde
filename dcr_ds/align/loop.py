"""Stage 2: safety alignment by supervised fine-tuning on general conversations and safe refusals, or by DPO on pairs.

It starts from the refined model, or from the base model without stage 1 (the STL baseline), and is the same for both.
"""

import time
from pathlib import Path

from dcr_ds.align.objective import encode_objective
from dcr_ds.align.state import AlignState, build_align
from dcr_ds.align.step import train_step
from dcr_ds.data.load import RunData
from dcr_ds.engine.build import trained_weights
from dcr_ds.engine.distributed import Ranks, barrier, print_on_main
from dcr_ds.engine.session import Session
from dcr_ds.models.adapters import write_trained
from dcr_ds.models.chat import load_tokenizer
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.layout import StageFolder


def align(recipe: Recipe, source: Path, data: RunData, folder: StageFolder, ranks: Ranks) -> None:
    """Run stage 2 from the checkpoint `source` and write everything into `folder`. All ranks.

    Args:
        recipe: resolved, without any `auto`.

    Raises:
        Stopped: a stop signal arrived; the state is saved.
        Diverged: the loss is no longer finite; the last checkpoint is kept.
    """
    started = time.monotonic()
    folder.folder.mkdir(parents=True, exist_ok=True)
    objective = encode_objective(recipe, data, load_tokenizer(source, recipe.model.chat_template))
    for note in objective.data.notes:
        print_on_main(ranks, note)
    state = build_align(recipe, source, objective, ranks)
    objective.prepare(state.engine, state.batching, source, folder.reference, ranks)
    with Session("align", recipe, state.engine, folder.folder, state.total_steps, ranks, started) as session:
        while session.step < state.total_steps:
            samples = state.sample_ids(session.step)
            row = train_step(state, session.step)
            session.take_step(row, samples)
            session.log(row)
            session.save_or_stop(is_last=session.step == state.total_steps)
    export(state, source, folder)
    session.finish(objective.data.counts | {"stopped_because": f"{recipe.align.epochs:g} epochs done"})


def export(state: AlignState, source: Path, folder: StageFolder) -> None:
    """Write the trained model, and with LoRA the adapter. All ranks."""
    weights = trained_weights(state.engine, state.ranks)
    weights = {name.removeprefix("model."): weight for name, weight in weights.items()}
    if state.ranks.is_main:
        write_trained(state.engine.module.model, weights, source, folder)
    barrier(state.ranks)
