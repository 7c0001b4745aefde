"""Compare numbers of nodes with equal rows per GPU: traffic by collective, time of a step, size of a checkpoint.

Under ZeRO-3, as configured by the recipe or else by ds_configs/zero3.json.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dcr_ds.engine.config import read_config
from dcr_ds.engine.zero3 import resolve_partition
from dcr_ds.plan.choose import Cluster, Lengths, Option, Stage, planned, zero_of
from dcr_ds.plan.clock import Rates
from dcr_ds.plan.measure import Calibration
from dcr_ds.plan.options import PlanOptions
from dcr_ds.plan.passes import Kind
from dcr_ds.plan.states import Zero, saved_bytes
from dcr_ds.plan.tables import duration, gib, prose, rates_in_words, table, which_applies
from dcr_ds.recipe import Recipe

TITLES: dict[Kind, str] = {
    "refine": "stage 1, cut trunk",
    "whole": "stage 1, whole model (without the cut)",
    "align": "stage 2, whole model",
}
SECTION = {"refine": "refine", "whole": "refine", "align": "align"}
COLLECTIVES = ("all-gather, forward", "all-gather, backward", "reduce-scatter", "contrastive all-gather")


def scaling(
    recipe: Recipe, folder: Path, origin: str, options: PlanOptions, measured: Mapping[str, Calibration]
) -> tuple[str, dict[str, Any]]:
    """The tables of one recipe on several numbers of nodes, and their figures."""
    nodes, rows = options.nodes, options.rows_per_gpu
    kinds = [kind for kind in TITLES if SECTION[kind] in recipe.stages]
    clusters = {
        (kind, count): options.cluster(count * options.gpus_per_node, SECTION[kind], measured)
        for kind in kinds
        for count in nodes
    }
    first = clusters[kinds[0], nodes[0]]
    section = read_config(recipe).get("zero_optimization") or {}
    recipe = planned(recipe, folder, first)
    lengths = Lengths(**options.mean_tokens(recipe))
    texts = [_assumptions(recipe, origin, rows, lengths, first.rates, bool(measured))]
    figures: dict[str, Any] = {}
    for kind in kinds:
        lines = []
        for count in nodes:
            cluster = clusters[kind, count]
            stage = Stage(_with_rows(recipe, rows, cluster.gpus), folder, kind, cluster, lengths)
            option = stage.at(_zero_on(section, cluster), rows)
            lines.append(_line(stage, option, count, _has_partition(section)))
            figures.setdefault(kind, {})[cluster.gpus] = _figures(stage, option, count)
        names = [name for name in COLLECTIVES if kind != "align" or not name.startswith("contrastive")]
        crossing = ["between nodes"] if _has_partition(section) else []
        head = ["GPUs", "peak GiB", *(SHORT[name] for name in names), *crossing, "step s", "saved GiB", "save"]
        texts.append(f"{TITLES[kind]} ({stage.trained / 1e9:.1f}e9 of {stage.loaded / 1e9:.1f}e9 parameters train)")
        texts[-1] += "\n" + table(head, lines)
    texts.append("gather, reduce, contrastive: GiB that a GPU sends per step, by collective. * does not fit.")
    texts.append(f"Of the two step times, {which_applies(_zero_on(section, first))}.")
    return "\n\n".join(texts), figures


def _assumptions(recipe: Recipe, origin: str, rows: int, lengths: Lengths, rates: Rates, measured: bool) -> str:
    parts = [
        f"{recipe.name}: {recipe.model.source} ({origin}), {recipe.model.dtype}, layer {recipe.refine.layer}, ZeRO-3,",
        f"{rows} rows per GPU in one micro-batch.",
        f"Assumed: {rates_in_words(rates, measured)};",
        f"{rates.latency * 1e6:.0f} µs per collective and doubling of ranks;",
        f"{rates.storage / 1e9:g} GB/s per node to storage;",
        f"prompts of {lengths.refine} tokens, conversations of {lengths.align}.",
        "Step times: with traffic fully overlapped with computation, and without overlap.",
    ]
    return prose(" ".join(parts))


SHORT = {
    "all-gather, forward": "gather fwd",
    "all-gather, backward": "gather bwd",
    "reduce-scatter": "reduce",
    "contrastive all-gather": "contrastive",
}


def _zero_on(section: dict[str, Any], cluster: Cluster) -> Zero:
    """ZeRO-3 as configured, with the secondary partition of this number of nodes."""
    if section.get("stage") != 3:
        return zero_of(3)
    machine = cluster.machine
    resolved, _ = resolve_partition(section, machine.ranks, machine.nodes, machine.on_gpu)
    return Zero.of({"zero_optimization": resolved})


def _has_partition(section: dict[str, Any]) -> bool:
    return section.get("zero_hpz_partition_size", 1) != 1


def _saved(stage: Stage) -> int:
    """Bytes of a checkpoint under ZeRO-3."""
    width = next(tensor.width for tensor in stage.tensors if tensor.trains)
    return saved_bytes(stage.trained, int(width), 3, stage.section.optimizer)


def _with_rows(recipe: Recipe, rows: int, gpus: int) -> Recipe:
    values = recipe.model_dump()
    values["refine"] |= {"global_batch": max(4, rows * gpus + rows * gpus % 2), "micro_batch": rows}  # an even number
    values["refine"]["retain_batch"] = max(1, rows * gpus // 4)
    values["align"] |= {"global_batch": rows * gpus, "micro_batch": rows}
    return Recipe.model_validate(values)


def _line(stage: Stage, option: Option, nodes: int, has_partition: bool) -> list[str]:
    sent: Counter[str] = Counter()
    for collective in option.traffic:
        sent[collective.name] += collective.bytes
    names = [name for name in COLLECTIVES if stage.name != "align" or not name.startswith("contrastive")]
    size = _saved(stage)
    return [
        str(stage.cluster.gpus),
        gib(option.memory.peak) + ("" if option.fits else "*"),
        *(gib(sent.get(name, 0)) for name in names),
        *([gib(option.sent - option.sent_within if nodes > 1 else 0)] if has_partition else []),
        f"{option.time.overlapped:.3g}–{option.time.serial:.3g}",
        gib(size),
        duration(size / (stage.cluster.rates.storage * nodes)),
    ]


def _figures(stage: Stage, option: Option, nodes: int) -> dict[str, Any]:
    size = _saved(stage)
    return {
        "peak_bytes": option.memory.peak,
        "fits": option.fits,
        "traffic": [asdict(collective) for collective in option.traffic],
        "step_seconds": [option.time.overlapped, option.time.serial],
        "checkpoint_bytes": size,
        "save_seconds": size / (stage.cluster.rates.storage * nodes),
    }
