"""The command line: `train.py` and `dcr-ds`. The one place where errors become messages and exit codes."""

import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dcr_ds.engine.ranks import is_main_process, set_environment
from dcr_ds.errors import EXIT_STOPPED, EXIT_USER_ERROR, Diverged, Stopped, UserError
from dcr_ds.recipe import STAGES, Recipe, field_rows, load_recipe

DEFAULT_RECIPE = "recipes/smollm2-135m.yaml"
CANNOT_WRITE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
# how torch and safetensors word a write that failed; neither raises OSError
CANNOT_WRITE_WORDS = ("inline_container", "PytorchStreamWriter", "I/O error", "iostream error", "os error")

USAGE = f"""\
Usage:
  deepspeed train.py [RECIPE] [--field value …]     also: torchrun train.py, python train.py, dcr-ds train
  dcr-ds report RUN… [--out FILE]                   one table of several runs
  dcr-ds schema                                     JSON schema of recipes, for editors

RECIPE is a YAML file (default {DEFAULT_RECIPE}); every field of it can be set on the command line by
its dotted name, e.g. --refine.layer 14 --data.toxic prompts.csv --align.adapter lora.

Options:
  --dry-run        print the resolved recipe, parameter counts, steps and tokens; load no weight
  --redo STAGE     do refine, align, evaluate or all again, with the stages after it
  --help           this text

Fields (type; default):
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 the loss diverged, 2 the user's input, 75 stopped and saved."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except UserError as error:
        return _fail(str(error), EXIT_USER_ERROR)
    except Stopped as stopped:
        return _fail(f"{stopped}; the same command goes on from there", EXIT_STOPPED)
    except Diverged as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from the last checkpoint", 128 + 2)
    except Exception as error:
        if message := _write_failure(error):
            return _fail(message, EXIT_USER_ERROR, every_rank=True)
        raise


def _dispatch(arguments: list[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command == "train":
        return _train(rest)
    if command == "report":
        return _report(rest)
    if command == "schema":
        print(json.dumps(Recipe.model_json_schema(), indent=1))
        return 0
    if command in ("--help", "-h", "help"):
        print(help_text())
        return 0
    raise UserError(f"unknown command {command!r}; there are train, report and schema")


def _train(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(help_text())
        return 0
    recipe_path, options, dry_run, redo = parse_train(arguments)
    recipe = load_recipe(recipe_path, options)
    set_environment()
    _quiet()
    from dcr_ds.pipeline import run

    run(recipe, redo=redo, dry_run=dry_run)
    return 0


def parse_train(arguments: Sequence[str]) -> tuple[str, list[tuple[str, str]], bool, str | None]:
    """The recipe's path, (field, text) pairs, whether it is a dry run, and the stage to do again."""
    recipe: str | None = None
    options: list[tuple[str, str]] = []
    dry_run, redo = False, None
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--dry-run":
            dry_run = True
            continue
        if not word.startswith("--"):
            if recipe is not None:
                raise UserError(f"two recipes: {recipe} and {word}; a field's value follows its --name")
            recipe = word
            continue
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
                raise UserError(f"--{name}: needs a value")
            value = rest.pop(0)
        if name in ("local_rank", "local-rank"):  # DeepSpeed's launcher adds it; the environment says the same
            continue
        if name == "redo":
            if value not in (*STAGES, "all"):
                raise UserError(f"--redo: {value!r} is no stage; use refine, align, evaluate or all")
            redo = value
            continue
        options.append((name, value))
    return recipe or DEFAULT_RECIPE, options, dry_run, redo


def _report(arguments: list[str]) -> int:
    from dcr_ds.report import terminal_table, write_report

    out = Path("runs/report.md")
    if "--out" in arguments:
        position = arguments.index("--out")
        if position + 1 == len(arguments):
            raise UserError("--out: needs a value")
        out = Path(arguments[position + 1])
        arguments = arguments[:position] + arguments[position + 2 :]
    if not arguments:
        raise UserError("report: name one or more run folders, e.g. dcr-ds report runs/smollm2-135m")
    folders = [Path(argument) for argument in arguments]
    write_report(folders, out)
    print(f"{terminal_table(folders)}\n\nReport: {out}")
    return 0


def help_text() -> str:
    """Usage and every field of the schema."""
    lines = []
    for name, kind, default, sentence in field_rows():
        lines.append(f"  --{name}  ({kind}; {default})\n        {sentence}")
    lines.append("\n  A data set is a source, or has fields of its own: --data.toxic.rows 500, --data.toxic.where.label unsafe,")
    lines.append("  --data.toxic.columns.prompt goal, .split, .revision, .skip, .seed, .first_human_turn")
    return USAGE + "\n".join(lines)


def _quiet() -> None:
    """Leave the console to the project's own lines; warnings of the libraries still show."""
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _write_failure(error: Exception) -> str | None:
    """What to tell the user where a file could not be written; None for any other error."""
    if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
        return f"{error.filename or 'output'}: cannot be written ({error.strerror}); free some space or set --output"
    if any(word in str(error) for word in CANNOT_WRITE_WORDS):
        return f"a file in the run folder cannot be written ({str(error)[:200]}); free some space or set --output"
    return None


def _fail(message: str, code: int, every_rank: bool = False) -> int:
    """Print an error: once, on rank 0, where all ranks meet the same one."""
    if every_rank or is_main_process():
        print(f"error: {message}" if code != EXIT_STOPPED else message, file=sys.stderr, flush=True)
    return code
