"""Peak memory of each rank at each moment of a run under ZeRO-3, and what the plan says.

    python benchmarks/memory_by_rank.py --ranks 1,2,4 --csv benchmarks/results/memory_by_rank.csv
    python benchmarks/memory_by_rank.py --table docs/scaling.md

Trains a random model of 250 MB in float32 on a CPU: refine is stopped after its first step, resumed, and exported, then
align and evaluate follow. Memory is that of the process that is not mapped from files (RssAnon of Linux), sampled every
2 ms, beyond what the process has after joining the process group. Files of a model are mapped and can be dropped by the
system at any time, so they are not counted.
"""

import argparse
import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import record
import yaml
from marks import replace_marked

ROOT = Path(__file__).resolve().parent.parent
SIZES = {
    "hidden_size": 768, "intermediate_size": 2048, "vocab_size": 4096, "head_dim": 64, "num_attention_heads": 12,
    "num_key_value_heads": 4,
}  # fmt: skip
TINY = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 600, "head_dim": 16}
LAYERS = 8
MB = 1e6


class Sampler:
    """The peak memory of this process by moment, sampled in a thread."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self.moment = ""
        self.base = 0
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while True:
            moment, now = self.moment, anonymous_bytes()
            if moment:
                self.peaks[moment] = max(self.peaks.get(moment, 0), now - self.base)
            time.sleep(0.002)

    @contextmanager
    def during(self, moment: str) -> Iterator[None]:
        before, self.moment = self.moment, moment
        try:
            yield
        finally:
            self.moment = before

    def wrap(self, module: Any, name: str, moment: str) -> None:
        """Attribute what a function needs to a moment; of `train_step` also what follows, the optimizer step."""
        function: Callable[..., Any] = getattr(module, name)

        def measured(*arguments: Any, **options: Any) -> Any:
            with self.during(moment):
                result = function(*arguments, **options)
            self.moment = moment if name == "train_step" else self.moment
            return result

        setattr(module, name, measured)


def anonymous_bytes() -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition("RssAnon:")[2].split()[0])


def work(recipe_file: Path, out: Path) -> None:
    """On each rank: the run, with its moments measured."""
    import dcr_ds
    from dcr_ds.align import loop as align_loop
    from dcr_ds.align import state as align_state
    from dcr_ds.engine import build
    from dcr_ds.engine.checkpoint.checkpoints import Checkpoints
    from dcr_ds.errors import Stopped
    from dcr_ds.evaluate import run as evaluate_run
    from dcr_ds.refine import loop as refine_loop
    from dcr_ds.refine import state as refine_state
    from dcr_ds.run import pipeline

    sampler = Sampler()
    for module, name, moment in (
        (refine_state, "load_trunk", "refine: load"),
        (align_state, "load_causal_lm", "align: load"),
        (build, "build_engine", "engine"),
        (refine_loop, "train_step", "refine: step"),
        (align_loop, "train_step", "align: step"),
        (Checkpoints, "save", "checkpoint"),
        (Checkpoints, "_load", "resume"),
        (refine_loop, "write_trained", "refine: export"),
        (align_loop, "write_trained", "align: export"),
        (evaluate_run, "evaluate_models", "evaluate"),
    ):
        sampler.wrap(module, name, moment)
    run_stages = pipeline._run_stages

    def from_here(tokens: Any, ranks: Any) -> None:
        sampler.base = anonymous_bytes()
        run_stages(tokens, ranks)

    pipeline._run_stages = from_here
    with suppress(Stopped):
        dcr_ds.train(dcr_ds.load_recipe(recipe_file))
    (out / f"{os.environ['PART']}-{os.environ['RANK']}.json").write_text(json.dumps(sampler.peaks))


def write_recipe(folder: Path, sizes: dict[str, int], ranks: int) -> Path:
    sys.path.insert(0, str(ROOT / "tests"))
    from small_runs import ROWS, write_rows
    from tiny import make_model

    data = {name: str(write_rows(folder / f"{name}.jsonl", rows)) for name, rows in ROWS.items()}
    config = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())
    buckets = {"reduce_bucket_size": 2_000_000, "stage3_prefetch_bucket_size": 2_000_000}
    config["zero_optimization"] |= buckets | {
        "stage3_param_persistence_threshold": 10_000,
        "stage3_max_live_parameters": 10_000_000,
        "stage3_max_reuse_distance": 0,
    }
    (folder / "zero3.json").write_text(json.dumps(config))
    values = {
        "name": f"run-{ranks}",
        "output": str(folder),
        "stages": ["refine", "align", "evaluate"],
        "model": {"source": str(make_model(folder / "model", layers=LAYERS, tied=False, **sizes)),
                  "activation_checkpointing": True, "dtype": "float32"},
        "data": {name: data[name] for name in ("seemingly_toxic", "toxic", "general", "refusals")},
        "refine": {"layer": LAYERS // 2, "global_batch": 4, "max_steps": 2, "retain_batch": 4, "patience": 99,
                   "target_gap": 2, "on_failure": "continue", "measure_every": 2, "max_length": 64},
        "align": {"global_batch": 4, "measure_every": 0, "max_length": 64},
        "checkpoint": {"every_steps": 1, "keep": 1},
        "deepspeed": str(folder / "zero3.json"),
        "evaluate": {"models": ["aligned"], "general": data["measured"], "judges": ["rules"], "max_new_tokens": 2,
                     "benchmarks": [{"name": "asked", "prompts": data["asked"], "wanted": "comply"}]},
    }  # fmt: skip
    path = folder / f"recipe-{ranks}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def measure(folder: Path, sizes: dict[str, int], ranks: int) -> list[dict[str, Any]]:
    """Run on some ranks: stopped after the first step, and resumed to the end. A row per moment."""
    recipe = write_recipe(folder, sizes, ranks)
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}"]
    launch += [f"--master_port={free_port()}", __file__, "--work", str(recipe), "--out", str(folder)]
    for part, more in (("stopped", {"DCR_DS_DEADLINE": "1"}), ("resumed", {})):
        environment = os.environ | more | {
            "PART": part, "OMP_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": "100000", "MALLOC_TRIM_THRESHOLD_": "100000",  # freed memory goes back at once
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        done = subprocess.run(launch, env=environment)
        if done.returncode:
            raise SystemExit(f"{part} on {ranks} ranks: exit code {done.returncode}")
    peaks: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*-*.json")):
        for moment, peak in json.loads(file.read_text()).items():
            peaks.setdefault(moment, []).append(peak)
        file.unlink()
    plan = planned_bytes(recipe, ranks)
    whole = plan.pop("whole")
    return [
        record.provenance("torch", "deepspeed", "transformers")
        | {"ranks": ranks, "model_mb": whole / MB, "moment": moment}
        | {"planned_mb": plan[moment] / MB, "measured_mb": max(peaks[moment]) / MB}
        for moment in plan
        if moment in peaks
    ]


def planned_bytes(recipe_file: Path, ranks: int) -> dict[str, int]:
    """Bytes per rank by moment: those of `dcr-ds plan`, and what loading and exports add to the states."""
    import dcr_ds
    from dcr_ds.engine.config import read_config
    from dcr_ds.models.checkpoint_files import weight_files
    from dcr_ds.plan.choose import Cluster, Lengths, Stage, planned
    from dcr_ds.plan.clock import GPUS
    from dcr_ds.plan.states import Zero

    recipe = dcr_ds.load_recipe(recipe_file)
    source = Path(recipe.model.source)
    cluster = Cluster(ranks, ranks, 24, GPUS["h100"], on_gpu=False)
    recipe = planned(recipe, source, cluster)
    whole = sum(file.stat().st_size for file in weight_files(source))
    moments = {"whole": whole}
    for name in ("refine", "align"):
        stage = Stage(recipe, source, name, cluster, Lengths(128, 128))
        memory = stage.at(Zero.of(read_config(recipe)), 1 if name == "align" else 2).memory
        states = memory.states
        largest = max(tensor.elements for tensor in stage.tensors) * 4
        moments[f"{name}: load"] = states.parameters + largest
        if name == "refine":
            moments["resume"] = states.resident + states.masters + states.moments  # read, then copied
        moments[f"{name}: step"] = memory.peak
        moments[f"{name}: export"] = states.resident + states.buckets + 2 * largest + whole // ranks
    moments["evaluate"] = whole
    return moments


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def table(rows_file: Path) -> str:
    with rows_file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    cells = {(row["moment"], row["ranks"]): row for row in rows}  # the last measurement of each
    ranks = sorted({row["ranks"] for row in rows}, key=int)
    names = list(dict.fromkeys(row["moment"] for row in rows))
    lines = [
        f"A model of {float(rows[-1]['model_mb']):.0f} MB, commit {rows[-1]['commit']}; planned / measured MB.",
        "",
    ]
    lines += ["| moment | " + " | ".join(f"{count} ranks" if count != "1" else "1 rank" for count in ranks) + " |"]
    lines += ["|---" * (len(ranks) + 1) + "|"]
    for name in names:
        pairs = [cells[name, count] for count in ranks]
        columns = [f"{float(row['planned_mb']):.0f} / {float(row['measured_mb']):.0f}" for row in pairs]
        lines.append(f"| {name} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def write_table(rows_file: Path, page: Path) -> None:
    """Replace what is between the marks of a page by the table of a file of rows."""
    replace_marked(page, "benchmarks/memory_by_rank.py --table", table(rows_file))


def main() -> None:
    parser = record.option_parser(str(__doc__))
    parser.add_argument("--ranks", type=record.whole_numbers, default=[1, 2, 4], metavar="N,…")
    parser.add_argument("--table", type=Path, metavar="PAGE", help="write the table of the rows of --csv into a page")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows_file = options.csv or ROOT / "benchmarks" / "results" / "memory_by_rank.csv"
    if options.work:
        return work(options.work, options.out)
    if options.table:
        return write_table(rows_file, options.table)
    for ranks in options.ranks:
        with tempfile.TemporaryDirectory() as folder:
            for row in measure(Path(folder), TINY if options.tiny else SIZES, ranks):
                row = record.rounded(row)
                print(row, flush=True)
                if options.csv:
                    record.append(options.csv, row)


if __name__ == "__main__":
    main()
