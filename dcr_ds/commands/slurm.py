"""`dcr-ds slurm`: check a recipe, then submit it with the scripts in slurm/, or print what would be submitted."""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from dcr_ds.commands.parser import command_parser, refuse
from dcr_ds.errors import UserError
from dcr_ds.recipe.arguments import parse_train
from dcr_ds.recipe.shipped import shipped_root, source_checkout

DESCRIPTION = """\
Submit a run to SLURM. The jobs start in the working folder: the project's folder or, if dcr-ds was installed without
it, any folder that all nodes share. The settings of the cluster are in slurm/settings.sh: source it first.

  dcr-ds slurm --dry-run recipes/llama-3-8b.yaml
  dcr-ds slurm --kind pipeline recipes/llama-3-8b.yaml --seed 1
  dcr-ds slurm --kind sweep recipes/llama-3-8b.yaml --seed 0,1,2 -- --align.epochs 1

kinds:
  dcr        one job for all stages (default)
  pipeline   one job per stage, each of its own size; each job waits for the one before
  sweep      an array of jobs, one per combination of values; fields after -- are set in all
"""
KINDS = ("dcr", "pipeline", "sweep")
PYTHON_SETTINGS = ("DCR_DS_PYTHON", "DCR_DS_MODULES", "DCR_DS_CONDA", "DCR_DS_VENV", "DCR_DS_CONTAINER")


def run(arguments: list[str]) -> int:
    """Submit or print; returns the exit code of sbatch.

    Raises:
        UserError: wrong usage or recipe, not the project's folder, or no sbatch.
    """
    options, words = _parse(arguments)
    if options.print_settings:
        print((shipped_root() / "slurm" / "settings.sh").read_text(encoding="utf-8"), end="")
    elif options.print_stages:
        print(*parse_train(words).load().stages)
    elif options.check_points:
        for line in options.check_points.read_text(encoding="utf-8").splitlines():
            parse_train([*words, *line.split("\t")]).load()
    else:
        return _submit(options, words)
    return 0


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of this command, and the words for the scripts; everything after `--` is theirs."""
    parser = command_parser("slurm", DESCRIPTION, usage="[options] [RECIPE] [--FIELD VALUE …]")
    parser.add_argument("--kind", choices=KINDS, default="dcr", help="what to submit (default: dcr)")
    help_dry_run = "print the settings, the commands and the job script; submit nothing"
    parser.add_argument("--dry-run", action="store_true", help=help_dry_run)
    help_settings = "print slurm/settings.sh, to edit a copy of it"
    parser.add_argument("--print-settings", action="store_true", help=help_settings)
    scripts = parser.add_argument_group("used by slurm/pipeline.sh and slurm/sweep.sh")
    scripts.add_argument("--print-stages", action="store_true", help="print the stages of the recipe")
    help_points = "check the recipe with the fields of each line (separated by tabs)"
    scripts.add_argument("--check-points", type=Path, metavar="FILE", help=help_points)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options, words = parser.parse_known_args(arguments[:end])
    return options, words + arguments[end:]


def _submit(options: argparse.Namespace, words: list[str]) -> int:
    scripts = _scripts()
    script = f"{scripts}/{options.kind}.sh"
    if options.kind == "dcr":
        parse_train(words).load()
        command = ["sbatch", *_sbatch_options(), script, *words]
    else:  # these scripts check the recipe, and print their own sbatch commands on a dry run
        command = ["bash", script, *(["--dry-run"] if options.dry_run else []), *words]
    if not options.dry_run:
        return _call(command)
    _print_settings()
    if options.kind == "dcr":
        print(shlex.join(command))
    elif code := _call(command):
        return code
    job_script = Path(f"{scripts}/dcr.sh")
    print(f"\n# --- {job_script}, which each of these jobs runs\n{job_script.read_text(encoding='utf-8')}", end="")
    return 0


def _sbatch_options() -> list[str]:
    options = os.environ.get("DCR_DS_SBATCH", "")
    try:
        return shlex.split(options)
    except ValueError:
        raise UserError(f"DCR_DS_SBATCH={options}: a quote is not closed") from None


def _scripts() -> str:
    """The folder of the scripts: slurm/ of the project, or the one in the package, which jobs find by DCR_DS_SCRIPTS.

    Without the project, jobs use the interpreter that runs this command, unless the settings name another one.
    """
    if Path("slurm/dcr.sh").is_file() and Path("train.py").is_file():
        return "slurm"
    if source_checkout() is not None:
        refuse("slurm", f"{Path.cwd()} is not the project's folder, in which the jobs start; cd there first")
    os.environ["DCR_DS_SCRIPTS"] = str(shipped_root() / "slurm")
    if not any(os.environ.get(name) for name in PYTHON_SETTINGS):
        os.environ["DCR_DS_PYTHON"] = sys.executable
    return os.environ["DCR_DS_SCRIPTS"]


def _print_settings() -> None:
    """Print the settings in force. Only variables of sbatch and of this project: others may hold secrets."""
    for name in sorted(os.environ):
        if name.startswith(("SBATCH_", "DCR_DS_")):
            print(f"export {name}={shlex.quote(os.environ[name])}", flush=True)


def _call(command: list[str]) -> int:
    try:
        return subprocess.run(command, check=False).returncode
    except FileNotFoundError:
        raise UserError(f"{command[0]}: not found; submit from a login node of the cluster (or --dry-run)") from None
