"""The command line, `train.py` and `dcr-ds`: runs a subcommand and turns errors into messages and exit codes."""

import difflib
import importlib
import io
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from dcr_ds.commands.parser import show
from dcr_ds.engine.distributed import is_peer_failure
from dcr_ds.engine.launcher import is_main_process, set_environment
from dcr_ds.errors import (
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    Diverged,
    RefinementFailed,
    ServerFailed,
    Stopped,
    UserError,
    write_errors_as_user_errors,
)

# Subcommand → one line for the overview. `a-b` is run by `dcr_ds.commands.a_b.run(arguments) -> exit code`.
COMMANDS = {
    "train": "refine, align and evaluate a model as a recipe says; the same as train.py",
    "repair": "refine and shortly align a model that refuses harmless prompts already",
    "recipes": "list the shipped recipes; copy one to edit it",
    "data": "check data sets before a run; make twins of harmful prompts",
    "plan": "memory and time of a recipe, and the ZeRO stage and micro-batch size that fit",
    "slurm": "submit a run to SLURM: one job, one job per stage, or a sweep",
    "evaluate": "evaluate any models on benchmarks: folder, hub id, adapter or endpoint",
    "judge": "label the answers of a file, and compare labels",
    "ability": "general ability with lm-eval: MMLU, ARC, OpenBookQA, PIQA",
    "compare-quality": "which of two models answers better, judged by a language model",
    "diagnose": "gradient kernel, layer probe, PCA, confounds and refusal openings",
    "baseline": "baselines that DCR is compared with, made from a recipe or a model",
    "report": "report of runs: Markdown, HTML, figures; seeds combined",
    "export": "safetensors for transformers and vLLM, or GGUF, from a run or a checkpoint",
    "verify": "whether an exported or served model has the refusal log-odds of the run's",
    "schema": "JSON schema of recipes, for editors",
}
MAIN_RANK_FIRST_SECONDS = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand. Returns 0 (done), 1 (training failed), 2 (error of the user) or 75 (stopped and saved)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of another encoding than UTF-8
    try:
        return _dispatch(arguments)
    except SystemExit as done:  # argparse, after --help
        return int(done.code or 0)
    except UserError as error:
        return _fail(str(error), EXIT_USER_ERROR)
    except Stopped as stopped:
        return _end(f"{stopped}; the same command continues from there", EXIT_STOPPED)
    except (Diverged, RefinementFailed, ServerFailed) as error:
        return _fail(str(error), 1)
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        time.sleep(MAIN_RANK_FIRST_SECONDS)  # the rank that failed prints the reason, and the launcher ends this one
        return _fail(f"another rank ended before this one; its message has the reason ({str(error)[:200]})", 1)
    except KeyboardInterrupt:
        return _end("interrupted; the same command continues from the last checkpoint", 128 + 2)


def train_as_rank() -> None:
    """Run `train` with the arguments of this process and exit; the body of train.py.

    A rank that fails exits at once: torch's clean-up may wait for ranks that are gone, or take seconds in which the
    launcher lets the other ranks run.
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


def quiet_libraries() -> None:
    """Silence the progress and information lines of libraries; their warnings still show."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _dispatch(arguments: list[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in ("--help", "-h", "help"):
        show(_overview())
        return 0
    if command == "--version":
        show(f"dcr-ds {version('dcr-ds')}")
        return 0
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"commands: {', '.join(COMMANDS)}."
        raise UserError(f"unknown command {command!r}; {hint} See dcr-ds --help")
    set_environment()
    quiet_libraries()
    module = importlib.import_module(f"dcr_ds.commands.{command.replace('-', '_')}")
    with write_errors_as_user_errors(Path.cwd()):
        return module.run(rest)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    return (
        "Usage: dcr-ds COMMAND [arguments]\n\n"
        "Train language models that refuse harmful prompts without refusing harmless ones.\n\n"
        f"Commands:\n{lines}\n\n"
        "dcr-ds COMMAND --help lists the options of a command; dcr-ds --version prints the version."
    )


def _end(message: str, code: int) -> int:
    """Print, on rank 0 only, why a run ends early without an error."""
    _keep_exit_code(code)
    if is_main_process():
        print(message, file=sys.stderr, flush=True)
    return code


def _fail(message: str, code: int) -> int:
    """Print an error; only rank 0 prints it when all ranks have the same one.

    A launcher ends all ranks soon after one has failed, so the other ranks wait for rank 0 to print first. A rank that
    is still running after that has an error of its own (for example a file that is missing on one node).
    """
    _keep_exit_code(code)
    if not is_main_process():
        time.sleep(MAIN_RANK_FIRST_SECONDS)
        message = f"rank {os.environ['RANK']}: {message}"
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _keep_exit_code(code: int) -> None:
    """Exit with this code even when a launcher terminates this rank because another one ended a moment before."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(code))
