"""Runs that benchmarks/faults.py disturbs: how they are launched and killed, and what their results are."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from record import ROOT

LONGEST_SECONDS = 400  # of a launch; a hang is a failure of this benchmark
TRAINED = ("refine", "align", "control")
MODELS = ("control", "aligned")
BENCHMARKS = ("builtin-seemingly-toxic", "builtin-toxic-twins", "builtin-general")
RECIPE = {
    "name": "run",
    "stages": ["refine", "align"],
    "data": {"general": {"rows": 40}, "refusals": {"rows": 40}},
    "refine": {"layer": 2, "global_batch": 8, "max_steps": 10, "retain_batch": 3, "patience": 99, "target_gap": 2,
               "on_failure": "continue", "learning_rate": 1e-3, "measure_every": 5},
    "align": {"global_batch": 4, "learning_rate": 1e-3},
    "checkpoint": {"every_steps": 2},
    "watchdog": {"hang_minutes": 1.0},
    "deepspeed": "ds_configs/zero3.json",
}  # fmt: skip
EVALUATION = {
    "stages": ["refine", "align", "evaluate"],
    "control": "stl",
    "align": {"global_batch": 8, "learning_rate": 1e-3},
    "evaluate": {"models": list(MODELS), "benchmarks": [{"name": name, "rows": 16} for name in BENCHMARKS],
                 "judges": ["rules", "advbench_strings"],
                 "max_new_tokens": 12, "batch_size": 4},
}  # fmt: skip


def write_recipe(folder: Path, with_evaluation: bool) -> Path:
    """Write a tiny model, data and a recipe of them into a folder, and return the recipe."""
    from tiny import make_model

    from dcr_ds.data.shipped import FOLDER

    folder.mkdir()
    values: dict[str, Any] = RECIPE | (EVALUATION if with_evaluation else {})
    values["model"] = {"source": str(make_model(folder / "model", layers=3, tied=False))}
    if with_evaluation:  # a copy, which a fault can change
        rows = (FOLDER / "general.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        trained = [row for row in rows if json.loads(row)["split"] == "train"][:40]
        (folder / "general.jsonl").write_text("".join(trained), encoding="utf-8")
        general = {"source": str(folder / "general.jsonl")}
        values["data"] = values["data"] | {"general": general}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


class ForkedRanks:
    """Ranks forked from this process, which has imported all libraries: a start takes a second, not ten."""

    def __init__(self, arguments: list[str], ranks: int, console: Path, environment: dict[str, str]):
        self.returncode: int | None = None
        self.pids: list[int] = []
        self._codes: dict[int, int] = {}
        place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        place |= {"LOCAL_WORLD_SIZE": str(ranks)} | environment
        for rank in range(ranks):
            pid = os.fork()
            if pid == 0:
                _run_rank(arguments, console, place | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            self.pids.append(pid)
        self.pid = self.pids[0]

    def poll(self) -> int | None:
        """Return the exit code once all ranks have ended: the first that is not zero."""
        for pid in self.alive():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._codes[pid] = os.waitstatus_to_exitcode(status)
        if not self.alive():
            self.returncode = next(filter(None, self._codes.values()), 0)
        return self.returncode

    def alive(self) -> list[int]:
        return [pid for pid in self.pids if pid not in self._codes]


def _run_rank(arguments: list[str], console: Path, environment: dict[str, str]) -> NoReturn:
    """The body of a forked rank."""
    try:
        os.setsid()
        output = os.open(console, os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(environment)
        sys.argv[1:] = arguments
        from dcr_ds.cli import train_as_rank

        train_as_rank()
        os._exit(0)
    finally:
        os._exit(1)


def import_everything() -> None:
    """Import in this process what a rank needs, before it is forked."""
    import deepspeed.ops
    import torch

    import dcr_ds.align.loop
    import dcr_ds.evaluate.run
    import dcr_ds.refine.loop
    import dcr_ds.report
    import dcr_ds.run.pipeline  # noqa: F401

    assert deepspeed.ops.__compatible_ops__  # the first access takes a second
    torch.set_num_threads(1)


@dataclass
class Run:
    """A run under faults: its folder, its launcher, and its processes while it is launched."""

    recipe: Path
    output: Path
    launcher: str  # deepspeed, torchrun or fork
    ranks: int
    last_steps: dict[str, int] = field(default_factory=dict)  # by stage, of the undisturbed run
    environment: dict[str, str] = field(default_factory=dict)  # of the next launches
    log: list[str] = field(default_factory=list)
    process: Any = None
    faulted: float = 0.0  # time.monotonic() at the last fault, and when no process was left after it
    ended: float = 0.0

    @property
    def folder(self) -> Path:
        return self.output / "run"

    @property
    def console(self) -> Path:
        return self.recipe.with_name("console.log")

    @property
    def stages(self) -> tuple[str, ...]:
        return TRAINED if "control" in self.recipe.read_text() else TRAINED[:2]

    def launch(self) -> None:
        self.console.write_text("")
        arguments = [str(self.recipe), "--output", str(self.output)]
        if self.launcher == "fork":
            self.process = ForkedRanks(arguments, self.ranks, self.console, self.environment)
            return
        with self.console.open("w") as stream:
            self.process = subprocess.Popen(
                [*launcher_command(self.launcher, self.ranks), str(ROOT / "train.py"), *arguments], cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | self.environment,
                stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def wait(self) -> int:
        """Return the launcher's exit code once no process of the run is left."""
        end = time.monotonic() + LONGEST_SECONDS
        while self.process.poll() is None or self.processes():
            if time.monotonic() > end:
                self.kill(self.processes())
                raise TimeoutError(f"the run did not end within {LONGEST_SECONDS} s:\n{self.printed()[-3000:]}")
            time.sleep(0.05)
        self.ended = time.monotonic()
        self.log.append(self.printed())
        return self.process.returncode

    def printed(self) -> str:
        return self.console.read_text()

    def processes(self, ranks_only: bool = False) -> list[int]:
        """Living processes of this run; those of a launcher by the output folder on their command lines."""
        if self.launcher == "fork":
            self.process.poll()
            return self.process.alive()
        pids = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                words = (place / "cmdline").read_bytes().split(b"\0")
                is_rank = b"\0LOCAL_RANK=" in b"\0" + (place / "environ").read_bytes()
            except OSError:
                continue
            if str(self.output).encode() in words and (is_rank or not ranks_only):
                pids.append(int(place.name))
        return sorted(pids)

    def kill(self, pids: list[int], number: int = signal.SIGKILL) -> None:
        self.faulted = time.monotonic()
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def kill_all(self) -> None:
        """Kill every process, and wait until none is left."""
        self.kill(self.processes())
        while self.processes():
            time.sleep(0.02)

    def until(self, happened: Callable[[], bool], seconds_between: float = 0.01) -> bool:
        """Wait for a moment of a launched run; False if the run ended before it came."""
        end = time.monotonic() + LONGEST_SECONDS
        while not happened():
            if self.process.poll() is not None or time.monotonic() > end:
                return False
            time.sleep(seconds_between)
        return True

    def losses(self) -> dict[str, list[float]]:
        return {
            stage: [row["loss"] for row in read_rows(self.folder / stage / "metrics.jsonl")] for stage in self.stages
        }

    def num_steps(self) -> int:
        return sum(len(losses) for losses in self.losses().values())

    def num_answers(self) -> int:
        return sum(len(read_rows(path)) for path in self.folder.glob("evaluate/*/*/generations.jsonl"))

    def checkpoints(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*/checkpoints/step-*") if path.suffix != ".universal")

    def results(self) -> dict[str, Any]:
        """What must not depend on faults: losses of each step, hashes of models, answers, verdicts and scores."""
        models = {
            f"{stage}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
            for stage in self.stages
            for file in sorted((self.folder / stage / "model").glob("*.safetensors"))
        }
        answers, labels, scores = {}, {}, {}
        for model in MODELS:
            for path in sorted((self.folder / "evaluate" / model).glob("*/generations.jsonl")):
                key = f"{model}/{path.parent.name}"
                answers[key] = {row["id"]: row["completion"] for row in read_rows(path)}
                for verdicts in sorted(path.parent.glob("verdicts.*.jsonl")):
                    rows = read_rows(verdicts)
                    labels[f"{key}/{verdicts.name}"] = [(row["id"], row["label"], row["score"]) for row in rows]
                scores[key] = json.loads((path.parent / "scores.json").read_text())
        return {"losses": self.losses(), "models": models, "answers": answers, "labels": labels, "scores": scores}


def launcher_command(launcher: str, ranks: int) -> list[str]:
    if launcher == "deepspeed":
        path = Path(sys.executable).with_name("deepspeed")
        return [sys.executable, str(path), "--num_gpus", str(ranks), "--master_port", str(free_port())]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    return [*command, "--master_port", str(free_port())]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def read_rows(path: Path) -> list[dict]:
    """Return the complete rows; a kill may have torn the last one."""
    try:
        lines = path.read_text().split("\n")[:-1]
    except OSError:
        return []
    return [json.loads(line) for line in lines]
