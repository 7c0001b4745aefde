"""`dcr-ds plan`: memory, time and what fits, before a run."""

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dcr_ds.errors import UserError
from dcr_ds.files import write_atomically
from dcr_ds.models.locate import prepare_source
from dcr_ds.plan.measure import Calibration, learn, take_steps
from dcr_ds.plan.options import gpus_of, machine_of, mean_tokens, nodes_of, split_options
from dcr_ds.plan.shapes import find_shape
from dcr_ds.recipe import Recipe, load_recipe
from dcr_ds.recipe.arguments import parse_train

TRAINING = ("refine", "align")
DESCRIPTION = """\
Usage: dcr-ds plan [RECIPE] [options] [--field value …]

Memory on each GPU by part, time, and the ZeRO stage and micro-batch that fit, for each training stage of a recipe; for
stage 1 also what it would cost without the cut. No weight is loaded, nothing downloaded, no GPU needed: the model is
built without memory and the steps are rehearsed on it. Memory is that of rows as long as max_length allows.

  dcr-ds plan recipes/llama-3-8b.yaml --gpus 8
  dcr-ds plan recipes/qwen2.5-7b-qlora.yaml --gpus 1 --gpu rtx4090
  dcr-ds plan recipes/llama-3-8b.yaml --model.source llama-3.1-70b --nodes 1,8,128
  dcr-ds plan recipes/smollm2-135m.yaml --measure

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
  --measure            load the model, take two steps of each stage here, on one rank, on random tokens; plan for
                       this device with the rate that they reach and the memory that they take; --gpu names the links
  --json FILE          the figures, too
"""


def run(arguments: list[str]) -> int:
    """Plan a recipe.

    Raises:
        UserError: an option, the recipe or the model cannot be.
    """
    if "--help" in arguments or "-h" in arguments:
        print(DESCRIPTION)
        return 0
    options, rest = split_options(arguments)
    path, overrides, *_ = parse_train(rest)
    recipe = load_recipe(path, overrides)
    if not set(recipe.stages) & set(TRAINING):
        raise UserError("plan: the recipe has neither refine nor align among its stages; there is nothing to plan")
    nodes = nodes_of(options)
    steps = {}
    if options.get("measure"):
        folder, origin = prepare_source(recipe.model), "its weights"
        steps = take_steps(recipe, folder, mean_tokens(recipe, options), gpus_of(options))
    else:
        folder, origin = find_shape(recipe.model)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # nothing runs on a GPU here, and DeepSpeed would tell of its search
    measured = {stage: learn(stage, *taken) for stage, taken in steps.items()}
    for one in measured.values():
        print(f"{one.told}\n")
    if len(nodes) > 1:
        from dcr_ds.plan.scaling import scaling

        text, figures = scaling(recipe, folder, origin, nodes, options, measured)
    else:
        text, figures = _plan(recipe, folder, origin, options, measured)
    print(text)
    if "json" in options:
        write_atomically(Path(options["json"]), json.dumps(figures, indent=1) + "\n")
    return 0


def _plan(
    recipe: Recipe, folder: Path, origin: str, options: dict[str, Any], measured: dict[str, Calibration]
) -> tuple[str, dict[str, Any]]:
    from dcr_ds.plan.choose import Lengths, Stage, planned
    from dcr_ds.plan.tables import describe, prose, rates_in_words

    gpus = gpus_of(options)
    names = [name for name in TRAINING if name in recipe.stages]
    machines = {name: machine_of(gpus, name, options, measured) for name in names}
    machine = machines[names[0]]
    lengths = Lengths(**mean_tokens(recipe, options))
    recipe = planned(recipe, folder, machine.on_gpu)
    sections, figures = [], {}
    for name in names:
        stage = Stage(recipe, folder, name, machines[name], lengths)
        steps = recipe.refine.max_steps if name == "refine" else _align_steps(recipe, options)
        text, chosen = describe(stage, steps)
        sections.append(f"{prose(_heading(stage))}\n\n{text}")
        figures[name] = _figures(chosen, steps) if chosen else None
    head = (
        f"{recipe.name}: {recipe.model.source} ({origin}), {recipe.model.dtype}, {gpus} × "
        f"{machine.unit} of {machine.memory_gib:.4g} GiB, "
        f"{machine.reserve:.0%} kept free. Assumed: {rates_in_words(machine.rates, bool(measured))}; "
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
