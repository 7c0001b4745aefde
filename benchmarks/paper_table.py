"""Redo the paper's Table 1 (arXiv 2603.03323): DCR, STL and STL-aug of Qwen2.5-1.5B, Qwen2.5-7B and LLaMA-3-8B.

    python benchmarks/paper_table.py --dry-run                       the commands, and the GPU-hours by dcr-ds plan
    python benchmarks/paper_table.py --gpus 8
    python benchmarks/paper_table.py --recipes recipes/qwen2.5-1.5b.yaml --evaluate.local_data public

Per recipe: a run with the control, which gives DCR and STL; the data of STL-aug, on the prompts and for the steps of
that run; its run; and the report of both. Benchmarks, answers of at most 512 tokens and greedy decoding are the
paper's. XSTest trains stage 1, as in the paper, so it is no unseen test set here; the report lists the overlap. Other
options than those below are fields of all runs, except for --name and --output, which follow from the recipe and --out.
A run that was interrupted continues with the same command.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RECIPES = [f"recipes/{name}.yaml" for name in ("qwen2.5-1.5b", "qwen2.5-7b", "llama-3-8b")]
FIELDS = [
    *("--evaluate.benchmarks", "[paper]"),
    *("--evaluate.max_new_tokens", "512"),
    *("--control", "stl"),
    *("--allow_leakage", "true"),
]
ANSWER_TOKENS = "256"  # of the answers that STL-aug trains on; the longest sample of the recipes is 512 tokens


class Commands(NamedTuple):
    """The commands of one recipe, in order."""

    dcr: list[str]
    data: list[str]
    stl_aug: list[str]
    report: list[str]


def main() -> int:
    parser = _parser()
    options, fields = parser.parse_known_args()
    try:
        launcher = shlex.split(options.launcher or f"deepspeed --num_gpus {options.gpus}")
    except ValueError as error:
        parser.error(f"--launcher {options.launcher}: {error}")
    if own := [field for field in ("--name", "--output") if any(word.partition("=")[0] == field for word in fields)]:
        parser.error(f"{own[0]}: the runs are named after their recipes, in the folder --out")
    total = [0.0, 0.0]
    for recipe in options.recipes:
        commands = commands_of(recipe, options.out, launcher, fields)
        if options.dry_run:
            print("\n".join(shlex.join(command) for command in commands), end="\n\n", flush=True)
            hours = plan(recipe, options.gpus, fields)
            total = [sum(pair) for pair in zip(total, hours, strict=True)]
        elif code := run(commands):
            return code
    if options.dry_run:
        print(f"In all: {total[0]:.3g} to {total[1]:.3g} GPU-hours of training")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--recipes", nargs="+", default=RECIPES, metavar="RECIPE", help="recipes with refine, align and evaluate")
    add("--gpus", type=int, default=8, metavar="N", help="GPUs of this node (default: 8)")
    add("--launcher", help="start of the training commands (default: deepspeed --num_gpus N)")
    add("--out", default="runs/paper-table", metavar="DIR", help="folder of the runs (default: runs/paper-table)")
    add("--dry-run", action="store_true", help="print commands and planned GPU-hours; needs no GPU, data or hub")
    return parser


def commands_of(recipe: str, out: str, launcher: list[str], fields: list[str]) -> Commands:
    """The commands of a recipe; `fields` come last, so that they count most."""
    name = Path(recipe).stem
    augmented, data = f"{name}-stl-aug", f"{out}/{name}-stl-aug-data"
    of_run = [*FIELDS, "--output", out, "--name", name, *fields]
    return Commands(
        [*launcher, "train.py", recipe, *of_run],
        ["dcr-ds", "baseline", "stl-aug", recipe, *of_run, "--max-new-tokens", ANSWER_TOKENS, "--out", data],
        [*launcher, "train.py", f"{data}/recipe.yaml", "--name", augmented, "--evaluate.models", "[aligned]"],
        ["dcr-ds", "report", f"{out}/{name}", f"{out}/{augmented}", "--out", f"{out}/{name}.md"],
    )


def plan(recipe: str, gpus: int, fields: list[str]) -> tuple[float, float]:
    """Print the GPU-hours of the arms by dcr-ds plan, with its assumptions; returns their sum.

    The two values are those of the plan: all traffic overlaps with computation, or none does.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        words = ["plan", recipe, "--gpus", str(gpus), *FIELDS, *fields, "--json", str(file)]
        done = subprocess.run([sys.executable, "-m", "dcr_ds", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(done.returncode)
        figures = json.loads(file.read_text(encoding="utf-8"))
    print(done.stdout.partition("\n\n")[0], end="\n\n")
    if missing := [stage for stage in ("refine", "align") if figures[stage] is None]:
        sys.exit(f"{recipe}: {missing[0]} does not fit on {gpus} GPUs; see dcr-ds plan {recipe} --gpus {gpus}")
    refine, align = figures["refine"], figures["align"]
    if align["steps"] is None:
        sys.exit(f"{recipe}: the steps of align are not known without the data; set data.general.rows and the others")
    steps = {
        "DCR, refine": (refine, refine["steps"]),
        "DCR, align": (align, align["steps"]),
        "STL (control)": (align, align["steps"]),
        "STL-aug": (align, align["steps"] + refine["steps"]),
    }
    hours = {
        arm: [gpus * count * time / 3600 for time in stage["step_seconds"]] for arm, (stage, count) in steps.items()
    }
    for arm, (low, high) in hours.items():
        print(f"  {arm:<14} {steps[arm][1]:>5} steps  {low:.3g} to {high:.3g} GPU-hours")
    print("  Answers and their judges are not planned.\n", flush=True)
    low, high = (sum(values) for values in zip(*hours.values(), strict=True))
    return low, high


def run(commands: Commands) -> int:
    """Run the commands up to the first that fails; returns its exit code."""
    for command in commands:
        if command is commands.data and Path(command[-1], "recipe.yaml").is_file():
            continue
        print(f"$ {shlex.join(command)}", flush=True)
        words = [sys.executable, "-m", "dcr_ds", *command[1:]] if command[0] == "dcr-ds" else command
        if code := subprocess.run(words, cwd=ROOT, check=False).returncode:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
