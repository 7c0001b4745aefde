"""Stage 1: contrastive refinement of the trunk (DCR, arXiv 2603.03323).

A contrastive loss at the output of block ℓ pushes the hidden states of seemingly toxic prompts away from those of toxic
prompts; a retain term keeps the activations of general conversations in place.
"""

import time
from pathlib import Path
from typing import Any

from dcr_ds.data.load import RunData
from dcr_ds.engine.build import trained_weights
from dcr_ds.engine.distributed import Ranks, barrier, print_on_main
from dcr_ds.engine.session import Session
from dcr_ds.models.adapters import write_trained
from dcr_ds.models.chat import load_tokenizer
from dcr_ds.recipe import Recipe, RefineSection
from dcr_ds.recipe.layout import StageFolder
from dcr_ds.refine.measure import measure
from dcr_ds.refine.prompts import encode_refine_prompts
from dcr_ds.refine.state import RefineState, build_refine
from dcr_ds.refine.step import train_step


def refine(recipe: Recipe, source: Path, data: RunData, folder: StageFolder, ranks: Ranks) -> None:
    """Run stage 1 from the checkpoint `source` and write everything into `folder`. All ranks.

    Args:
        recipe: resolved, without any `auto`.

    Raises:
        Stopped: a stop signal arrived; the state is saved.
        Diverged: the loss is no longer finite; the last checkpoint is kept.
    """
    started = time.monotonic()
    stage = recipe.refine
    folder.folder.mkdir(parents=True, exist_ok=True)
    prompts = encode_refine_prompts(recipe, data, load_tokenizer(source, recipe.model.chat_template))
    for note in prompts.notes:
        print_on_main(ranks, note)
    state = build_refine(recipe, source, prompts, ranks)
    with Session("refine", recipe, state.engine, folder.folder, stage.max_steps, ranks, started) as session:
        progress = session.state
        if session.is_new:
            start = measure(state)
            progress |= {"best_gap": start["gap"], "best_step": 0, "start": start}
            print_on_main(
                ranks,
                f"refine: layer {stage.layer}, held-out gap {start['gap']:.3f}, AUC {start['auc']:.3f} "
                "before the first step",
            )
        while "stopped_because" not in progress:
            samples = state.sample_ids(session.step)
            row = train_step(state, session.step)
            session.take_step(row, samples)
            if session.step % stage.measure_every == 0 or session.step == stage.max_steps:
                row |= measure(state)
            session.log(row)
            note_progress(progress, row, stage)
            session.save_or_stop(is_last="stopped_because" in progress)
    print_on_main(ranks, f"refine: {progress['stopped_because']}")
    export(state, source, folder)
    session.finish({"layer": stage.layer, "final": progress["last"]})


def note_progress(progress: dict[str, Any], row: dict[str, Any], stage: RefineSection) -> None:
    """Keep the best gap, and set `stopped_because` at the target, at the end, or when the gap stopped growing."""
    step = row["step"]
    if "gap" in row:
        progress["last"] = {name: row[name] for name in ("gap", "auc", "within", "across", "drift")}
        if row["gap"] > progress["best_gap"]:
            progress["best_gap"], progress["best_step"] = row["gap"], step
        if row["gap"] >= stage.target_gap:
            progress["stopped_because"] = f"the held-out gap reached {row['gap']:.3f} (target {stage.target_gap})"
        elif step - progress["best_step"] >= stage.patience:
            progress["stopped_because"] = (
                f"the gap has not grown since step {progress['best_step']} ({progress['best_gap']:.3f})"
            )
    if step == stage.max_steps and "stopped_because" not in progress:
        progress["stopped_because"] = f"max_steps = {stage.max_steps} reached at gap {row['gap']:.3f}"


def export(state: RefineState, source: Path, folder: StageFolder) -> None:
    """Write the trained model, and with LoRA the adapter. All ranks."""
    weights = trained_weights(state.engine, state.ranks)
    if state.ranks.is_main:
        write_trained(state.engine.module, weights, source, folder, prefix="model.")
    barrier(state.ranks)
