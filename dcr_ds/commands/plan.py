"""`dcr-ds plan`: memory and time of a recipe on a machine, before the run."""

import argparse
import json
import os
from dataclasses import fields
from pathlib import Path

from dcr_ds.commands.parser import (
    comma_separated,
    command_parser,
    fraction,
    fraction_below_one,
    output_file,
    positive_int,
    positive_number,
    refuse,
    refuse_overwriting,
)
from dcr_ds.files import write_atomically
from dcr_ds.models.locate import prepare_source
from dcr_ds.plan.clock import GPUS
from dcr_ds.plan.measure import calibrate, measure_steps
from dcr_ds.plan.options import MEAN_TOKENS, PlanOptions
from dcr_ds.plan.shapes import find_shape
from dcr_ds.recipe import TRAINING_STAGES, Recipe
from dcr_ds.recipe.arguments import parse_train

MAX_GPUS, MAX_GIB = 1_000_000, 10_000  # far above any cluster and GPU
DESCRIPTION = """\
Plan the training stages of a recipe: memory per GPU by part, time, and the ZeRO stage and micro-batch size that fit;
for stage 1 also the cost without the cut; and how the evaluation is laid out. Needs no GPU, loads no weights and
downloads nothing: the model is built without memory and its steps are rehearsed. Memory is that of rows of max_length
tokens.

  dcr-ds plan recipes/llama-3-8b.yaml --gpus 8
  dcr-ds plan recipes/qwen2.5-7b-qlora.yaml --gpus 1 --gpu rtx4090
  dcr-ds plan recipes/llama-3-8b.yaml --model.source llama-3.1-70b --nodes 1,8,128
  dcr-ds plan recipes/smollm2-135m.yaml --measure
"""


def run(arguments: list[str]) -> int:
    """Print the plan of a recipe, or a comparison of node counts.

    Raises:
        UserError: wrong usage, a recipe without training, or a model of unknown shape.
    """
    namespace, recipe = _parse(arguments)
    options = PlanOptions(**{field.name: getattr(namespace, field.name) for field in fields(PlanOptions)})
    steps = {}
    if namespace.measure:
        folder, origin = prepare_source(recipe.model), "its weights"
        steps = measure_steps(recipe, folder, options.mean_tokens(recipe), options.total_gpus)
    else:
        folder, origin = find_shape(recipe.model)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # nothing runs on a GPU here; without it DeepSpeed logs a search
    measured = {stage: calibrate(stage, *pair) for stage, pair in steps.items()}
    for calibration in measured.values():
        print(f"{calibration.summary}\n")
    if len(options.nodes) > 1:
        from dcr_ds.plan.scaling import scaling

        text, figures = scaling(recipe, folder, origin, options, measured)
    else:
        from dcr_ds.plan.stages import plan_stages

        text, figures = plan_stages(recipe, folder, origin, options, measured)
    print(text)
    if namespace.json:
        write_atomically(namespace.json, json.dumps(figures, indent=1) + "\n")
    return 0


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, Recipe]:
    options, words = _parser().parse_known_args(arguments)
    parsed = parse_train(words)
    if parsed.dry_run or parsed.redo:
        refuse("plan", "--dry-run and --redo are options of train")
    if options.json:
        refuse_overwriting("plan", options.json, map(Path, words), "--json")
    if options.measure and options.mfu:
        refuse("plan", "--measure finds --mfu; leave one of them out")
    if max(options.nodes or (1,)) * options.gpus_per_node > MAX_GPUS or options.gpus > MAX_GPUS:
        refuse("plan", f"--gpus, --nodes: more than {MAX_GPUS:,} GPUs")
    if options.gpu_memory and options.gpu_memory > MAX_GIB:
        refuse("plan", f"--gpu-memory: {options.gpu_memory:g} is out of range; it is in GiB, at most {MAX_GIB:,}")
    if options.gpus > options.gpus_per_node and options.gpus % options.gpus_per_node:
        refuse("plan", f"--gpus: {options.gpus} do not fill nodes of {options.gpus_per_node}; set --gpus-per-node")
    if options.nodes and options.gpus != PlanOptions.gpus:
        refuse("plan", "--gpus and --nodes: give one of them; with --nodes, GPUs are counted by --gpus-per-node")
    recipe = parsed.load()
    if not set(recipe.stages) & set(TRAINING_STAGES):
        refuse("plan", "the recipe's stages have neither refine nor align, so there is nothing to plan")
    if len(options.nodes) > 1 and recipe.model.quantize != "none" and not recipe.model.quantize_zero3:
        refuse(
            "plan",
            "--nodes: node counts are compared under ZeRO-3, which does not support model.quantize: "
            f"{recipe.model.quantize}; plan one node count, or set --model.quantize none",
        )
    return options, recipe


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("plan", DESCRIPTION, usage="[RECIPE] [options] [--FIELD VALUE …]")
    defaults = PlanOptions()
    machine = parser.add_argument_group("the machine")
    rates = parser.add_argument_group("its rates")
    work = parser.add_argument_group("the work")

    def add(group, name: str, kind, metavar: str, text: str) -> None:
        default = getattr(defaults, name.strip("-").replace("-", "_"))
        group.add_argument(name, type=kind, metavar=metavar, default=default, help=text)

    add(machine, "--gpus", positive_int, "N", "GPUs, one rank each (default: 1)")
    machine.add_argument("--gpu", choices=tuple(GPUS), default="h100", help="kind of GPU (default: h100)")
    add(machine, "--gpu-memory", _gibibytes, "GIB", "memory per GPU (default: that of the kind)")
    add(machine, "--nodes", _node_counts, "N[,N…]", "nodes, instead of --gpus; several: compare them by time per step")
    add(machine, "--gpus-per-node", positive_int, "N", "GPUs per node (default: 8)")
    add(machine, "--reserve", fraction_below_one, "SHARE", "memory left to driver, allocator and NCCL (default: 0.1)")
    add(rates, "--mfu", fraction, "SHARE", "part of the GPU's bfloat16 rate that is reached (default: 0.4)")
    add(rates, "--link-share", fraction, "SHARE", "part of the links' rates that is reached (default: 0.8)")
    add(rates, "--node-link", positive_number, "GB/S", "links inside a node, per GPU and direction")
    add(rates, "--network", positive_number, "GB/S", "links between nodes, per GPU and direction")
    add(rates, "--storage", positive_number, "GB/S", "from a node to storage")
    add(work, "--rows-per-gpu", positive_int, "N", "rows per GPU and step when node counts are compared (default: 8)")
    for stage, row in (("refine", "prompt"), ("align", "conversation")):
        text = f"mean tokens of a {row}, for the time (default: {MEAN_TOKENS[stage]})"
        add(work, f"--{stage}-tokens", positive_int, "N", text)
    add(work, "--steps", positive_int, "N", "steps of stage 2, where the recipe does not determine them")
    help_measure = (
        "load the model and take two steps of each stage here, on one rank and random tokens; plan for this device "
        "with the rate and memory measured. --gpu then only gives the links"
    )
    parser.add_argument("--measure", action="store_true", help=help_measure)
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the figures as JSON")
    return parser


def _gibibytes(text: str) -> float:
    try:
        return positive_number(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; give the GiB as a number, such as 80") from None


def _node_counts(text: str) -> tuple[int, ...]:
    return tuple(positive_int(word) for word in comma_separated(text))
