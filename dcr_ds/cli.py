"""The command line: `train.py` and `dcr-ds`. The one place where errors become messages and exit codes."""

import errno
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dcr_ds.engine.distributed import is_main_process, is_peer_failure, set_environment
from dcr_ds.errors import EXIT_STOPPED, EXIT_USER_ERROR, Diverged, RefinementFailed, RunEnded, Stopped, UserError
from dcr_ds.recipe import DataSource, field_rows, json_schema, load_recipe
from dcr_ds.recipe.arguments import DEFAULT_RECIPE, parse_train

CANNOT_WRITE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
CANNOT_WRITE |= {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}  # the path goes through a file, or is a folder
# how torch and safetensors word a write that failed; neither raises OSError
CANNOT_WRITE_WORDS = ("inline_container", "PytorchStreamWriter", "I/O error", "iostream error", "os error")
RANK_0_SPEAKS_SECONDS = 10

# What each command's module offers is `run(arguments) -> exit code`; imported only when it is asked for.
COMMANDS = {
    "evaluate": "dcr_ds.commands.evaluate",
    "judge": "dcr_ds.commands.judge",
    "ability": "dcr_ds.commands.ability",
    "compare-quality": "dcr_ds.evaluate.quality",
    "report": "dcr_ds.commands.report",
    "export": "dcr_ds.commands.export",
    "plan": "dcr_ds.commands.plan",
    "slurm": "dcr_ds.commands.slurm",
}

USAGE = f"""\
Usage:
  deepspeed train.py [RECIPE] [--field value …]     also: torchrun train.py, python train.py, dcr-ds train
  dcr-ds evaluate MODEL… --suite quick --out DIR    any models on benchmarks: folder, hub id, adapter, endpoint
  dcr-ds judge FILE --judge NAME --out FILE         label the answers of a csv or jsonl file
  dcr-ds ability RUN|MODEL…                         general ability (lm-eval): MMLU, ARC, OpenBookQA, PIQA
  dcr-ds compare-quality A B --judge-url URL …      which of two models answers better, by a language model
  dcr-ds report RUN… [--out FILE]                   Markdown, one page, figures; seeds of a recipe combined
  dcr-ds plan [RECIPE] --gpus N [--field …]         memory, time, and the ZeRO stage and micro-batch that fit
  dcr-ds slurm [--dry-run] [RECIPE] [--field …]     submit a run to SLURM: one job, a chain of stages, a sweep
  dcr-ds export RUN|CHECKPOINT|ADAPTER --out DIR    safetensors for transformers and vLLM; --merge, --push HUB_ID
  dcr-ds schema                                     JSON schema of recipes, for editors

Each but train and schema explains itself with --help.

RECIPE is a YAML file (default {DEFAULT_RECIPE}); every field of it can be set on the command line by
its dotted name, e.g. --refine.layer 14 --data.toxic prompts.csv --align.adapter lora.

Options:
  --dry-run        print the resolved recipe, parameter counts, steps and tokens; load no weight
  --redo STAGE     do refine, align, evaluate or all again, with the stages after it
  --help           this text

Fields (type; default):
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 training failed, 2 the user's input, 75 stopped and saved."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except UserError as error:
        return _fail(str(error), EXIT_USER_ERROR)
    except Stopped as stopped:
        return _end(f"{stopped}; the same command goes on from there", EXIT_STOPPED)
    except (Diverged, RefinementFailed) as error:
        return _fail(str(error), 1)
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        time.sleep(RANK_0_SPEAKS_SECONDS)  # the rank that ended tells why, and the launcher ends this one
        return _fail(f"another rank ended before this one; what it says tells why ({str(error)[:200]})", 1)
    except KeyboardInterrupt:
        return _end("interrupted; the same command goes on from the last checkpoint", 128 + 2)


def train_as_rank() -> None:
    """`train` with this process's arguments, and its end: what train.py is.

    A rank that fails ends at once. The clean-up of torch may wait for ranks that are gone, and takes seconds in which
    the launcher lets the others run.
    """
    try:
        code = main(["train", *sys.argv[1:]])
    except Exception:
        traceback.print_exc()
        code = 1
    if code == 0:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _dispatch(arguments: list[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command == "train":
        return _train(rest)
    if command == "schema":
        _show(json.dumps(json_schema(), indent=1))
        return 0
    if command in ("--help", "-h", "help"):
        _show(help_text())
        return 0
    if command not in COMMANDS:
        raise UserError(f"unknown command {command!r}; there are train, schema, {', '.join(COMMANDS)}")
    set_environment()
    _quiet()
    with _told_where_it_cannot_write(Path.cwd()):
        return importlib.import_module(COMMANDS[command]).run(rest)


def _train(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        _show(help_text())
        return 0
    recipe_path, options, dry_run, redo = parse_train(arguments)
    recipe = load_recipe(recipe_path, options)
    set_environment()
    _quiet()
    from dcr_ds.run.pipeline import run

    with _told_where_it_cannot_write(recipe.folder):
        run(recipe, redo=redo, dry_run=dry_run)
    return 0


def _show(text: str) -> None:
    """Print a text whose reader may close before its end, as `head` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter tells of it at its end


def help_text() -> str:
    """Usage and every field of the schema."""
    lines = []
    for name, kind, default, sentence in field_rows():
        lines.append(f"  --{name}  ({kind}; {default})\n        {sentence}")
    lines.append("\n  A data set is a source, or has fields: --data.toxic.rows 500, --data.toxic.where.label")
    lines.append("  unsafe, --data.toxic.columns.prompt goal; all of them: " + ", ".join(DataSource.model_fields))
    return USAGE + "\n".join(lines)


def _quiet() -> None:
    """Leave the console to the project's own lines; warnings of the libraries still show."""
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


@contextmanager
def _told_where_it_cannot_write(place: Path) -> Iterator[None]:
    """Make a full disk, or a folder that must not be written to, a UserError that names the file, or else the place."""
    try:
        yield
    except RunEnded:
        raise
    except Exception as error:
        is_one = isinstance(error, OSError) and error.errno in CANNOT_WRITE
        if not is_one and not any(word in str(error) for word in CANNOT_WRITE_WORDS):
            raise
        file, reason = getattr(error, "filename", None) or place, getattr(error, "strerror", None) or str(error)[:200]
        raise UserError(f"{file}: cannot be written ({reason}); free some space, or write elsewhere") from error


def _end(message: str, code: int) -> int:
    """Say on rank 0 why a run ends before it is done, through no error."""
    _keep_exit_code(code)
    if is_main_process():
        print(message, file=sys.stderr, flush=True)
    return code


def _fail(message: str, code: int) -> int:
    """Print an error: once, on rank 0, where all ranks meet the same one.

    A launcher ends all ranks as soon as one has failed, so the others let rank 0 speak first. Who is still there after
    that has met an error of its own (a file that is missing on one node, say), and tells it.
    """
    _keep_exit_code(code)
    if not is_main_process():
        time.sleep(RANK_0_SPEAKS_SECONDS)
        message = f"rank {os.environ['RANK']}: {message}"
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _keep_exit_code(code: int) -> None:
    """End with this code also where a launcher terminates this rank, because another one has ended a moment before."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(code))
