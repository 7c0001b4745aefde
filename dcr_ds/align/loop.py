"""Stage 2: safety alignment by supervised fine-tuning on general conversations and safe refusals, or on preferences.

It starts from the refined model, or from the base model without stage 1 (the STL baseline), and is the same for both.
"""

import time
from pathlib import Path
from typing import Any

from dcr_ds.align.objective import AnySamples, WithReference, objective_of
from dcr_ds.align.reference import reference_key, reference_log_probs
from dcr_ds.align.refusals import RefusalProbe, stops_alignment
from dcr_ds.align.state import AlignState, build_align
from dcr_ds.align.step import train_step
from dcr_ds.engine.distributed import Ranks, print_on_main
from dcr_ds.engine.memory import release
from dcr_ds.engine.overlap import settle_overlap
from dcr_ds.engine.session import Session
from dcr_ds.engine.weights import TrainedWeights, needs_masters
from dcr_ds.models.adapters import write_trained
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.layout import StageFolder


def align(
    recipe: Recipe,
    source: Path,
    samples: AnySamples,
    probe: RefusalProbe | None,
    folder: StageFolder,
    ranks: Ranks,
) -> None:
    """Run stage 2 from the checkpoint `source` and write everything into `folder`. All ranks.

    Args:
        recipe: resolved, without any `auto`.
        probe: measures the refusal log-odds during training; None: they are not measured.

    Raises:
        Stopped: a stop signal arrived; the state is saved.
        Diverged: the loss is no longer finite; the last checkpoint is kept.
    """
    started = time.monotonic()
    folder.folder.mkdir(parents=True, exist_ok=True)
    objective = objective_of(recipe, samples)
    for note in objective.data.notes:
        print_on_main(ranks, note)
    state = build_align(recipe, source, objective, ranks)
    read_reference(state, source, folder.reference)
    with Session("align", state, folder, started) as session:
        if probe and session.is_new:
            with session.measuring():
                session.state["start"] = probe.measure(state.model, ranks)
        if "stopped_because" not in session.state:
            settle_overlap(state.engine, recipe, lambda: train_step(state, session.step), ranks)
        while "stopped_because" not in session.state:
            sample_ids = state.sample_ids(session.step)
            row = train_step(state, session.step)
            session.take_step(row, sample_ids)
            if probe and state.is_measured(session.step):
                with session.measuring():
                    row |= probe.measure(state.model, ranks)
            session.log(row)
            note_progress(session.state, row, state)
            session.save_or_stop(is_last="stopped_because" in session.state)
    weights = TrainedWeights(state.engine, ranks, needs_masters(recipe.align, source), prefix="model.")
    write_trained(state.model, weights, source, folder, template=recipe.model.template)
    session.finish(objective.data.counts)
    release(state.engine)


def read_reference(state: AlignState, source: Path, file: Path) -> None:
    """Read the log-probabilities under the reference, if the method has one, or compute and write them. All ranks."""
    objective, ranks = state.objective, state.ranks
    if isinstance(objective, WithReference):
        samples = objective.read_by_reference()
        key = reference_key(samples, state.recipe.model, source) if ranks.is_main else ""
        objective.take_reference(reference_log_probs(state.engine, samples, state.batching, file, key, ranks))


def note_progress(progress: dict[str, Any], row: dict[str, Any], state: AlignState) -> None:
    """Keep the last refusal figures, and set `stopped_because` at the target refusal or at the last step."""
    stage = state.recipe.align
    if figures := {name: value for name, value in row.items() if name.startswith(("log_odds_", "refused_"))}:
        progress["final"] = figures
    if reason := stops_alignment(row, stage.target_refusal):
        progress["stopped_because"] = reason
    elif row["step"] == state.total_steps:
        progress["stopped_because"] = f"{stage.epochs:g} epochs done"
