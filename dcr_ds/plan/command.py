"""`dcr-ds plan`: memory, time and what fits, before a run."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dcr_ds.arguments import parse_train
from dcr_ds.errors import UserError
from dcr_ds.files import write_whole
from dcr_ds.plan.clock import GPUS, MEMORY_GIB, Rates
from dcr_ds.plan.shapes import find_shape
from dcr_ds.recipe import Recipe, load_recipe

DESCRIPTION = """\
Usage: dcr-ds plan [RECIPE] [options] [--field value …]

Memory on each GPU by part, time, and the ZeRO stage and micro-batch that fit, for each training stage of a recipe; for
stage 1 also what it would cost without the cut. No weight is loaded, nothing downloaded, no GPU needed: the model is
built without memory and the steps are rehearsed on it. Memory is that of rows as long as max_length allows.

  dcr-ds plan recipes/llama-3-8b.yaml --gpus 8
  dcr-ds plan recipes/qwen2.5-7b-qlora.yaml --gpus 1 --gpu rtx4090
  dcr-ds plan recipes/llama-3-8b.yaml --model.source llama-3.1-70b --nodes 1,8,128

Options:
  --gpus N             GPUs, one rank each (default 1)
  --gpu NAME           its rates and memory: h100, h200, a100, rtx4090 (default h100)
  --gpu-memory GIB     memory of a GPU, where it is another
  --nodes N[,N…]       nodes instead of --gpus; several: how a step scales, with --rows-per-gpu
  --gpus-per-node M    (default 8)
  --rows-per-gpu B     rows of a step on each GPU when several node counts are compared (default 8)
  --mfu SHARE          share of the GPU's bfloat16 rate that is reached, recomputation counted as work (default 0.4)
  --link-share SHARE   share of the links' rates that is reached (default 0.8)
  --node-link GB/S --network GB/S --storage GB/S
                       links inside a node and between nodes, a GPU and direction; a node's rate to storage
  --reserve SHARE      memory left to driver, allocator and NCCL (default 0.1)
  --refine-tokens T    mean tokens of a prompt, for the time (default 64)
  --align-tokens T     mean tokens of a conversation, for the time (default 256)
  --steps N            steps of stage 2, where they cannot be told from the recipe
  --measure            run a few steps of the first stage here, in one process; plan with the rate they reach
  --json FILE          the figures, too
"""

OWN = {
    "gpus": int,
    "gpu": str,
    "gpu-memory": float,
    "nodes": str,
    "gpus-per-node": int,
    "rows-per-gpu": int,
    "mfu": float,
    "link-share": float,
    "node-link": float,
    "network": float,
    "storage": float,
    "reserve": float,
    "refine-tokens": int,
    "align-tokens": int,
    "steps": int,
    "json": str,
}
DEFAULTS: dict[str, Any] = {
    "gpus": 1,
    "gpu": "h100",
    "gpus-per-node": 8,
    "rows-per-gpu": 8,
    "reserve": 0.1,
    "refine-tokens": 64,
    "align-tokens": 256,
}
SHARES = ("mfu", "link-share", "reserve")


def run(arguments: list[str]) -> int:
    """Plan a recipe.

    Raises:
        UserError: an option, the recipe or the model cannot be.
    """
    if "--help" in arguments or "-h" in arguments:
        print(DESCRIPTION)
        return 0
    options, rest = _split(arguments)
    path, overrides, *_ = parse_train(rest)
    recipe = load_recipe(path, overrides)
    folder, origin = find_shape(recipe.model)
    rates = _rates(options)
    if options.get("measure"):
        from dcr_ds.plan.measure import measured_rates
        from dcr_ds.plan.tables import prose

        rates, told = measured_rates(path, overrides, recipe, folder, rates)
        print(prose(told) + "\n")
    nodes = _nodes(options)
    if len(nodes) > 1:
        from dcr_ds.plan.scaling import scaling

        text, figures = scaling(recipe, folder, origin, nodes, options, rates)
    else:
        text, figures = _plan(recipe, folder, origin, nodes, options, rates)
    print(text)
    if "json" in options:
        write_whole(Path(options["json"]), json.dumps(figures, indent=1) + "\n")
    return 0


def _plan(
    recipe: Recipe, folder: Path, origin: str, nodes: list[int], options: dict, rates: Rates
) -> tuple[str, dict[str, Any]]:
    from dcr_ds.plan.choose import Lengths, Machine, Stage, planned
    from dcr_ds.plan.tables import describe, prose

    per_node = options["gpus-per-node"]
    gpus = nodes[0] * per_node if nodes else options["gpus"]
    machine = Machine(gpus, min(gpus, per_node), _memory(options), rates, options["reserve"])
    lengths = Lengths(options["refine-tokens"], options["align-tokens"])
    recipe = planned(recipe, folder)
    sections, figures = [], {}
    for name in ("refine", "align"):
        if name not in recipe.stages:
            continue
        stage = Stage(recipe, folder, name, machine, lengths)
        steps = recipe.refine.max_steps if name == "refine" else _align_steps(recipe, options)
        text, chosen = describe(stage, steps)
        sections.append(f"{prose(_heading(stage))}\n\n{text}")
        figures[name] = _figures(chosen, steps) if chosen else None
    head = (
        f"{recipe.name}: {recipe.model.source} ({origin}), {recipe.model.dtype}, {gpus} GPUs of "
        f"{machine.memory_gib:g} GiB, {machine.reserve:.0%} kept free. "
        f"Assumed: {rates.flops / 1e12:.0f} TFLOP/s a GPU at {rates.mfu:.0%}; links {rates.node_link / 1e9:.0f} GB/s "
        f"in a node, {rates.network / 1e9:.0f} beyond, at {rates.share:.0%}; "
        f"time for prompts of {lengths.refine} tokens and conversations of {lengths.align}, memory for rows of "
        f"max_length ({recipe.refine.max_length}, {recipe.align.max_length})"
    )
    return "\n\n".join([prose(head), *sections]), figures


def _heading(stage) -> str:
    section, recipe = stage.section, stage.recipe
    where = f"refine: blocks 1 to {section.layer}" if stage.name == "refine" else f"align ({section.method})"
    adapter = f", {section.adapter} r {section.lora.rank}" if section.adapter != "none" else ""
    extras = [name for name, on in (("nf4", recipe.model.quantize == "nf4"), ("packed", section.packing)) if on]
    extras += ["activations recomputed"] if recipe.model.activation_checkpointing else []
    return (
        f"{where}{adapter}{''.join(f', {extra}' for extra in extras)}; {section.optimizer}; {section.global_batch} "
        f"rows a step; {stage.trained / 1e9:.3f}e9 parameters trained of {stage.loaded / 1e9:.3f}e9 loaded"
    )


def _figures(chosen, steps: int | None) -> dict[str, Any]:
    return {
        "zero_stage": chosen.zero.stage,
        "micro_batch": chosen.micro_batch,
        "peak_bytes": chosen.memory.peak,
        "host_bytes": chosen.memory.host,
        "parts": chosen.memory.parts(),
        "step_seconds": [chosen.time.overlapped, chosen.time.serial],
        "steps": steps,
        "traffic": [asdict(one) for one in chosen.traffic],
    }


def _align_steps(recipe: Recipe, options: dict) -> int | None:
    """Steps of stage 2 by the rows that the recipe names."""
    if "steps" in options:
        return options["steps"]
    data = recipe.data
    sets = [data.preferences] if recipe.align.method == "dpo" else [data.general, data.refusals]
    if recipe.align.safe_ratio != "auto" or not all(one.rows for one in sets):
        return None
    rows = sum(one.rows for one in sets)
    return max(1, math.ceil(recipe.align.epochs * rows / recipe.align.global_batch))


def _split(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Options of this command, and the words of the recipe."""
    options, rest, words = dict(DEFAULTS), [], list(arguments)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if word == "--measure":
            options["measure"] = True
        elif not word.startswith("--") or name not in OWN:
            rest.append(word)
            if word.startswith("--") and not equals and words:
                rest.append(words.pop(0))
        else:
            if not equals:
                if not words:
                    raise UserError(f"plan: --{name}: needs a value")
                value = words.pop(0)
            options[name] = _read(name, value)
    return options, rest


def _read(name: str, text: str) -> Any:
    kind = OWN[name]
    try:
        value = kind(text)
    except ValueError:
        raise UserError(f"plan: --{name}: {text!r} is no {'whole ' if kind is int else ''}number") from None
    if kind is not str and not (0 <= value < 1 if name == "reserve" else value > 0):
        raise UserError(f"plan: --{name}: {text} is out of range; it must be above 0" + _below(name))
    if name in SHARES and value > 1:
        raise UserError(f"plan: --{name}: {text} is a share, so at most 1")
    if name == "gpu" and value not in GPUS:
        raise UserError(f"plan: --gpu: {text!r} is not known; there are {', '.join(GPUS)}; or set rates one by one")
    return value


def _below(name: str) -> str:
    return " or 0, and below 1" if name == "reserve" else ""


def _rates(options: dict) -> Rates:
    rates = GPUS[options["gpu"]]
    changes = {"mfu": options.get("mfu"), "share": options.get("link-share")}
    changes |= {
        field: 1e9 * options[name]
        for name, field in {"node-link": "node_link", "network": "network", "storage": "storage"}.items()
        if name in options
    }
    return replace(rates, **{name: value for name, value in changes.items() if value is not None})


def _memory(options: dict) -> float:
    return options.get("gpu-memory", MEMORY_GIB[options["gpu"]])


def _nodes(options: dict) -> list[int]:
    if "nodes" not in options:
        return []
    words = options["nodes"].split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise UserError(f"plan: --nodes: {options['nodes']!r}: whole numbers above 0, separated by commas")
    return [int(word) for word in words]
