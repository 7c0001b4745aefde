"""Stage 1: contrastive refinement of the trunk (DCR, arXiv 2603.03323).

A contrastive loss at the output of block ℓ pushes the hidden states of seemingly toxic prompts away from those of toxic
prompts; a retain term keeps the activations of general conversations in place.
"""

import math
import time
from pathlib import Path
from typing import Any

from dcr_ds.engine.distributed import Ranks, print_on_main
from dcr_ds.engine.memory import release
from dcr_ds.engine.overlap import settle_overlap
from dcr_ds.engine.session import Session
from dcr_ds.engine.snapshot import Snapshot
from dcr_ds.engine.weights import TrainedWeights, needs_masters
from dcr_ds.models.adapters import write_trained
from dcr_ds.recipe import Recipe, RefineSection
from dcr_ds.recipe.layout import StageFolder
from dcr_ds.refine.measure import measure
from dcr_ds.refine.outcome import outcome
from dcr_ds.refine.prompts import RefinePrompts
from dcr_ds.refine.selection import better, out_of_patience
from dcr_ds.refine.state import RefineState, build_refine
from dcr_ds.refine.step import train_step


def refine(recipe: Recipe, source: Path, prompts: RefinePrompts, folder: StageFolder, ranks: Ranks) -> None:
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
    for note in prompts.notes:
        print_on_main(ranks, note)
    state = build_refine(recipe, source, prompts, ranks)
    masters = needs_masters(stage, source)
    snapshot = Snapshot(state.engine, ranks, masters)  # of the best weights, where they are not the current ones
    with Session("refine", state, folder, started) as session:
        progress = session.state
        if session.is_new:
            with session.measuring():
                start = measure(state)
            start_progress(progress, start, state)
        else:
            restore_best(progress, session.step, snapshot, session.checkpoints.path(session.step))
        if "stopped_because" not in progress:
            settle_overlap(state.engine, recipe, lambda: train_step(state, session.step), ranks)
        while "stopped_because" not in progress:
            samples = state.sample_ids(session.step)
            row = train_step(state, session.step)
            session.take_step(row, samples)
            if session.step % stage.measure_every == 0 or session.step == stage.max_steps:
                with session.measuring():
                    row |= measure(state)
            session.log(row)
            note_progress(progress, row, stage)
            is_last = "stopped_because" in progress
            if progress["best_step"] == session.step and not is_last:
                snapshot.take()
            is_behind = 0 < progress["best_step"] < session.step
            session.save_or_stop(is_last, snapshot if is_behind else None)
    print_on_main(ranks, f"refine: {progress['stopped_because']}")
    result = outcome(progress, session.step, stage.max_drift)
    for warning in result["warnings"]:
        print_on_main(ranks, f"WARNING: {warning}")
    is_current = result["exported_step"] == session.step
    weights = TrainedWeights(state.engine, ranks, masters) if is_current else snapshot.weights()
    write_trained(state.engine.module, weights, source, folder, "model.", recipe.model.template)
    session.finish({"layer": stage.layer} | result)
    release(state.engine)


def start_progress(progress: dict[str, Any], start: dict[str, float], state: RefineState) -> None:
    """Note the figures before the first step."""
    progress |= {"start": start, "best": start, "best_step": 0}
    print_on_main(
        state.ranks,
        f"refine: layer {state.recipe.refine.layer}, held-out gap {start['gap']:.3f}, AUC {start['auc']:.3f} "
        "before the first step",
    )


def restore_best(progress: dict[str, Any], step: int, snapshot: Snapshot, checkpoint: Path) -> None:
    """Bring the best weights back after a checkpoint was loaded. All ranks."""
    for name in ("start", "best", "last"):  # figures, in which NaN is saved as null
        if name in progress:
            progress[name] = {key: math.nan if value is None else value for key, value in progress[name].items()}
    if progress["best_step"] == step:
        snapshot.take()
    elif progress["best_step"]:
        snapshot.read(checkpoint)


def note_progress(progress: dict[str, Any], row: dict[str, Any], stage: RefineSection) -> None:
    """Note the best step, and set `stopped_because` at the target, at the end, or when patience runs out."""
    step = row["step"]
    if "gap" in row:
        last = {name: row[name] for name in ("gap", "auc", "within", "across", "drift")}
        progress["last"] = last
        if better(last, progress["best"], progress["start"], stage.max_drift):
            progress |= {"best": last, "best_step": step}
        if row["gap"] >= stage.target_gap:
            progress["stopped_because"] = f"the held-out gap reached {row['gap']:.3f} (target {stage.target_gap})"
        elif out_of_patience(step, progress["best_step"], stage.patience, stage.min_steps):
            progress["stopped_because"] = (
                f"no step was better than step {progress['best_step']} (gap {progress['best']['gap']:.3f})"
            )
    if step == stage.max_steps and "stopped_because" not in progress:
        progress["stopped_because"] = f"max_steps = {stage.max_steps} reached at gap {row['gap']:.3f}"
