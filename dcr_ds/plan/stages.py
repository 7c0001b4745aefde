"""A plan of each training stage of a recipe on one machine: as text, and as figures."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dcr_ds.align.order import num_steps
from dcr_ds.plan.choose import Lengths, Option, Stage, planned
from dcr_ds.plan.evaluation import plan_evaluation
from dcr_ds.plan.measure import Calibration
from dcr_ds.plan.options import PlanOptions
from dcr_ds.plan.tables import describe, prose, rates_in_words
from dcr_ds.recipe import TRAINING_STAGES, Recipe


def plan_stages(
    recipe: Recipe, folder: Path, origin: str, options: PlanOptions, measured: Mapping[str, Calibration]
) -> tuple[str, dict[str, Any]]:
    """Memory, time and the choice of ZeRO stage and micro-batch for each training stage; the layout of the evaluation.

    Args:
        folder: the model's configuration.
        origin: where its shape comes from, for the text.
    """
    names = recipe.training_stages
    clusters = {name: options.cluster(options.total_gpus, name, measured) for name in names}
    cluster = clusters[names[0]]
    lengths = Lengths(**options.mean_tokens(recipe))
    recipe = planned(recipe, folder, cluster)
    sections: list[str] = []
    figures: dict[str, Any] = {}
    for name in names:
        stage = Stage(recipe, folder, name, clusters[name], lengths)
        steps = recipe.refine.max_steps if name == "refine" else _align_steps(recipe, options)
        text, chosen = describe(stage, steps)
        sections.append(f"{prose(_heading(stage))}\n\n{text}")
        figures[name] = _figures(chosen, steps) if chosen else None
    if recipe.control == "stl" and names == list(TRAINING_STAGES):
        sections.append("control: the steps of align again, from the base model, with the same memory and time.")
    if "evaluate" in recipe.stages:
        text, figures["evaluate"] = plan_evaluation(recipe, folder, cluster)
        sections.append(prose(text))
    head = (
        f"{recipe.name}: {recipe.model.source} ({origin}), {recipe.model.dtype}, {cluster.gpus} × "
        f"{cluster.unit} of {cluster.memory_gib:.4g} GiB, "
        f"{cluster.reserve:.0%} kept free. Assumed: {rates_in_words(cluster.rates, bool(measured))}; "
        f"time for prompts of {lengths.refine} tokens and conversations of {lengths.align}, memory for rows of "
        f"max_length ({recipe.refine.max_length}, {recipe.align.max_length})"
    )
    return "\n\n".join([prose(head), *sections]), figures


def _heading(stage: Stage) -> str:
    section, recipe = stage.section, stage.recipe
    title = f"refine: blocks 1 to {section.layer}" if stage.name == "refine" else f"align ({section.method})"
    adapter = f", {section.adapter} r {section.lora.rank}" if section.adapter != "none" else ""
    extras = [name for name, on in (("nf4", recipe.model.quantize == "nf4"), ("packed", section.packing)) if on]
    extras += ["activations recomputed"] if recipe.model.activation_checkpointing else []
    return (
        f"{title}{adapter}{''.join(f', {extra}' for extra in extras)}; {section.optimizer}; {section.global_batch} "
        f"rows per step; {stage.trained / 1e9:.3f}e9 parameters trained of {stage.loaded / 1e9:.3f}e9 loaded"
    )


def _figures(chosen: Option, steps: int | None) -> dict[str, Any]:
    return {
        "zero_stage": chosen.zero.stage,
        "partition": chosen.zero.partition,
        "micro_batch": chosen.micro_batch,
        "peak_bytes": chosen.memory.peak,
        "host_bytes": chosen.memory.host,
        "parts": chosen.memory.parts(),
        "step_seconds": [chosen.time.overlapped, chosen.time.serial],
        "steps": steps,
        "traffic": [asdict(collective) for collective in chosen.traffic],
    }


def _align_steps(recipe: Recipe, options: PlanOptions) -> int | None:
    """Steps of stage 2: as the options say, else from the rows that the recipe names; None where it names none."""
    if options.steps:
        return options.steps
    data = recipe.data
    if recipe.align.method == "kto":
        return None  # a row may be an answer or a pair, which is two
    sets = [data.general, data.refusals] if recipe.align.method == "sft" else [data.preferences]
    counts = [source.rows for source in sets if source.rows]
    if recipe.align.safe_ratio != "auto" or len(counts) < len(sets):
        return None
    return num_steps(recipe.align.epochs, sum(counts), recipe.align.global_batch)
