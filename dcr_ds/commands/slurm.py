"""The command `dcr-ds slurm`: checks a recipe, then submits it with the scripts in slurm/, or prints what it would."""

import os
import shlex
import subprocess
from pathlib import Path

from dcr_ds.errors import UserError
from dcr_ds.recipe import Recipe, load_recipe
from dcr_ds.recipe.arguments import parse_train

DESCRIPTION = """\
usage: dcr-ds slurm [--dry-run] [--kind KIND] [RECIPE] [--field value …]

Submit a run to SLURM, from the project's folder, as the settings of slurm/settings.sh say (source them first).

  --kind dcr        one job: all stages (default)
  --kind pipeline   a chain of jobs, one a stage, each of its own size
  --kind sweep      an array over combinations: RECIPE --seed 0,1,2 --refine.layer 12,16 [-- overrides for all]
  --dry-run         print the settings, the commands and the job script; submit nothing

For slurm/pipeline.sh and slurm/sweep.sh:
  --print-stages         print the stages of the recipe
  --check-points FILE    check the recipe with the overrides of each line (apart by tabs)
"""
SCRIPTS = {"dcr": "slurm/dcr.sh", "pipeline": "slurm/pipeline.sh", "sweep": "slurm/sweep.sh"}


def run(arguments: list[str]) -> int:
    """Submit or print; returns the exit code, which is sbatch's.

    Raises:
        UserError: the recipe is wrong, this is not the project's folder, or there is no sbatch.
    """
    rest = list(arguments)
    if "--help" in rest or "-h" in rest:
        print(DESCRIPTION)
        return 0
    if "--print-stages" in rest:
        rest.remove("--print-stages")
        print(*_checked(rest).stages)
        return 0
    if points := _take_value(rest, "--check-points"):
        for line in Path(points).read_text(encoding="utf-8").splitlines():
            _checked([*rest, *line.split("\t")])
        return 0
    return _submit(_take_value(rest, "--kind") or "dcr", rest)


def _submit(kind: str, rest: list[str]) -> int:
    if kind not in SCRIPTS:
        raise UserError(f"--kind: {kind!r} is none; use {', '.join(SCRIPTS)}")
    if not Path(SCRIPTS[kind]).is_file() or not Path("train.py").is_file():
        raise UserError(f"{Path.cwd()}: not the project's folder, where the jobs start; cd there first")
    dry_run = "--dry-run" in rest
    if dry_run:
        rest.remove("--dry-run")
        _print_settings()
    if kind != "dcr":  # these check the recipe themselves
        status = _call(["bash", SCRIPTS[kind], *(["--dry-run"] if dry_run else []), *rest])
    else:
        _checked(rest)
        command = ["sbatch", *shlex.split(os.environ.get("DCR_DS_SBATCH", "")), SCRIPTS[kind], *rest]
        status = print(shlex.join(command)) or 0 if dry_run else _call(command)
    if dry_run and not status:
        print(f"\n# --- {SCRIPTS['dcr']}, which each of these jobs runs\n{Path(SCRIPTS['dcr']).read_text()}", end="")
    return status


def _checked(arguments: list[str]) -> Recipe:
    path, overrides, _, _ = parse_train(arguments)
    return load_recipe(path, overrides)


def _print_settings() -> None:
    """The settings in force; names of sbatch and of this project only, for other variables may hold secrets."""
    for name in sorted(os.environ):
        if name.startswith(("SBATCH_", "DCR_DS_")):
            print(f"export {name}={shlex.quote(os.environ[name])}")


def _call(command: list[str]) -> int:
    try:
        return subprocess.run(command, check=False).returncode
    except FileNotFoundError:
        raise UserError(f"{command[0]}: not found; submit from a login node of the cluster (or --dry-run)") from None


def _take_value(rest: list[str], name: str) -> str | None:
    """Take `name VALUE` out of the arguments, if it is there."""
    if name not in rest:
        return None
    place = rest.index(name)
    if place + 1 == len(rest):
        raise UserError(f"{name}: needs a value")
    value = rest[place + 1]
    del rest[place : place + 2]
    return value
