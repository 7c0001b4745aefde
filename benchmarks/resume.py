"""Time to resume from a checkpoint and take one step: deep into the data compared with at its start.

    python benchmarks/resume.py --csv benchmarks/results/resume.csv
    python benchmarks/resume.py --samples 20000 --at 10000 --repeats 1     a smoke test

Stage 2 of a tiny random model trains on a synthetic set of 12 million conversations, which are generated on access.
In a new process each time, its session resumes from a checkpoint at sample 0 or at sample 10 million, alternately, and
takes one step. A run that replayed its data up to the checkpoint would read 10 million samples; ours asks the sampler
for the current step. Times are CPU seconds of the process after the engine is built; both cases compute the permutation
of a whole epoch.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from named_model import tiny_model
from record import append, cpu_name, provenance

from dcr_ds.align.mix import Mix
from dcr_ds.align.sft import SftObjective
from dcr_ds.align.state import AlignState, build_align
from dcr_ds.align.step import train_step
from dcr_ds.engine import distributed as process
from dcr_ds.engine.checkpoint.checkpoints import Checkpoints
from dcr_ds.engine.launcher import set_environment
from dcr_ds.engine.machine import Machine
from dcr_ds.engine.resolve import resolve
from dcr_ds.engine.session import Session
from dcr_ds.models.chat import Encoded
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.recipe import load_recipe
from dcr_ds.recipe.layout import StageFolder

BATCH = 16
LENGTH = 24  # tokens of a conversation


class Synthetic(Sequence):
    """`count` conversations, each generated on access."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Encoded:
        return Encoded([3 + (index * 31 + place) % 256 for place in range(LENGTH)], LENGTH // 2)


def main() -> None:
    options = parse()
    seconds: dict[str, list[float]] = {"start": [], "far": []}
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        forked(tiny_model, model)
        for name, sample in (("start", 0), ("far", options.at)):
            forked(save, model, Path(scratch) / name, sample // BATCH)
        for _ in range(options.repeats):
            for name, times in seconds.items():
                times.append(forked(resume, model, Path(scratch) / name, options.samples))
                print(f"{name}: {times[-1]:.2f} s", flush=True)
    start, far = median(seconds["start"]), median(seconds["far"])
    row = provenance("torch", "deepspeed") | {
        "device": cpu_name(),
        "samples": options.samples,
        "resumed_at_sample": options.at // BATCH * BATCH,
        "repeats": options.repeats,
        "seconds_at_start": start,
        "seconds_there": far,
        "there_over_start": far / start,
        "spread": max((max(times) - min(times)) / median(times) for times in seconds.values()),
    }
    print(f"first step after sample {options.at}: {far:.2f} s, after sample 0: {start:.2f} s, ratio {far / start:.3f}")
    if options.csv:
        append(options.csv, row)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=12_000_000)
    parser.add_argument("--at", type=int, default=10_000_000, help="resume at this sample")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--csv", type=Path, help="append the row to this file")
    return parser.parse_args()


def forked(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process, without cached permutations; forking avoids the time of the imports."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


def state_of(model: Path, samples: int) -> AlignState:
    """Stage 2 of a tiny recipe, with this process as its only rank."""
    set_environment()
    ranks = process.start()
    overrides = {"model.source": str(model), "stages": "[align]", "align.global_batch": str(BATCH), "log_every": "1000"}
    recipe = load_recipe(None, list(overrides.items()))
    recipe, _ = resolve(recipe, model_config(model), Machine.detect(ranks))
    return build_align(recipe, model, SftObjective(Mix(Synthetic(samples), [], 0)), ranks)


def save(model: Path, folder: Path, step: int) -> None:
    state = state_of(model, BATCH)
    checkpoints = Checkpoints(state.engine, folder / "checkpoints", 1, state.ranks)
    checkpoints.save(step, {"tokens": step * BATCH * LENGTH, "seconds": 0.0})
    checkpoints.wait_until_saved()
    process.close()


def resume(model: Path, folder: Path, samples: int) -> float:
    state = state_of(model, samples)
    started = time.process_time()
    with Session("align", state, StageFolder(folder), time.monotonic()) as session:
        rows = state.rows(session.step)
        session.take_step(train_step(state, session.step), [str(index) for index in rows])
    seconds = time.process_time() - started
    process.close()
    return seconds


if __name__ == "__main__":
    main()
