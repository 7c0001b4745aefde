"""Faults at random moments of a two-rank ZeRO-3 run: does the same command go on, and end as if nothing had happened?

    python benchmarks/faults.py --faults 30 --csv benchmarks/results/faults.csv
    python benchmarks/faults.py --faults 2 --only rank,launcher             a smoke test

Launches the public entry point (deepspeed and torchrun in turn) on a tiny random model, stages refine and align, and
does something to it: kill -9 of a rank, of all processes or of the launcher, at a random moment of a step or of the
start; the same at a random byte of a checkpoint being saved; after a kill, a file of the newest checkpoint cut or one
bit of it turned; a full disk (a small tmpfs; needs root); a rank frozen by SIGSTOP. Several faults meet one run, each
time the same command resumes it, until it is done. Then its losses, step by step, must equal an undisturbed run's
bit for bit, and so must the exported models, by hash.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from record import ROOT, append, one_or_more_of, provenance

STAGES = ("refine", "align")
RANKS = 2
FAULTS_A_RUN = 5
LONGEST_SECONDS = 400  # of one launch; a hang is a failure of this benchmark
TMPFS_BYTES = 24 * 2**20
RECIPE = {
    "name": "run",
    "stages": list(STAGES),
    "data": {"general": {"rows": 40}, "refusals": {"rows": 40}},
    "refine": {"layer": 2, "global_batch": 8, "max_steps": 10, "retain_batch": 3, "patience": 99, "target_gap": 2,
               "on_failure": "continue",
               "learning_rate": 1e-3, "measure_every": 5},
    "align": {"global_batch": 4, "learning_rate": 1e-3},
    "checkpoint": {"every_steps": 2},
    "watchdog": {"hang_minutes": 1.0},
    "deepspeed": "ds_configs/zero3.json",
}  # fmt: skip


@dataclass
class Run:
    """A run under faults: its folder, its launcher, and its processes while it is launched."""

    recipe: Path
    output: Path
    launcher: str
    log: list[str] = field(default_factory=list)
    process: subprocess.Popen | None = None
    faulted: float = 0.0  # time.monotonic() at the last fault, and when no process was left after it
    ended: float = 0.0

    @property
    def folder(self) -> Path:
        return self.output / "run"

    @property
    def console(self) -> Path:
        return self.output.with_suffix(".log")

    def launch(self) -> None:
        command = [*launcher_command(self.launcher), str(ROOT / "train.py"), str(self.recipe)]
        with self.console.open("w") as stream:
            self.process = subprocess.Popen(
                [*command, "--output", str(self.output)], cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, start_new_session=True,
            )  # fmt: skip

    def wait(self) -> int:
        """The launcher's exit code, once no process of the run is left."""
        end = time.monotonic() + LONGEST_SECONDS
        while self.process.poll() is None or self.processes():
            if time.monotonic() > end:
                self.kill(self.processes())
                raise TimeoutError(f"the run did not end within {LONGEST_SECONDS} s:\n{self.said()[-3000:]}")
            time.sleep(0.1)
        self.ended = time.monotonic()
        self.log.append(self.said())
        return self.process.returncode

    def said(self) -> str:
        return self.console.read_text()

    def processes(self, ranks_only: bool = False) -> list[int]:
        """Living processes of this run, by its output folder on their command lines."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                words = (place / "cmdline").read_bytes().split(b"\0")
                is_rank = b"\0LOCAL_RANK=" in b"\0" + (place / "environ").read_bytes()
            except OSError:
                continue
            if str(self.output).encode() in words and (is_rank or not ranks_only):
                found.append(int(place.name))
        return sorted(found)

    def kill(self, pids: list[int], number: int = signal.SIGKILL) -> None:
        self.faulted = time.monotonic()
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def losses(self) -> dict[str, list[float]]:
        return {stage: [row["loss"] for row in read_rows(self.folder / stage / "metrics.jsonl")] for stage in STAGES}

    def num_steps(self) -> int:
        return sum(len(losses) for losses in self.losses().values())

    def checkpoints(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*/checkpoints/step-*") if path.suffix != ".universal")

    def model_hashes(self) -> dict[str, str]:
        return {
            f"{stage}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
            for stage in STAGES
            for file in sorted((self.folder / stage / "model").glob("*.safetensors"))
        }


def launcher_command(launcher: str) -> list[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    if launcher == "deepspeed":
        path = Path(sys.executable).with_name("deepspeed")
        return [sys.executable, str(path), "--num_gpus", str(RANKS), "--master_port", port]
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(RANKS), "--master_port", port]


def read_rows(path: Path) -> list[dict]:
    """Whole rows only: a kill may have torn the last one."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def until(run: Run, happened: Callable[[], bool], seconds_between: float) -> bool:
    """Wait for a moment of a launched run; False where the run ended before it came."""
    end = time.monotonic() + LONGEST_SECONDS
    while not happened():
        if run.process.poll() is not None or time.monotonic() > end:
            return False
        time.sleep(seconds_between)
    return True


def random_moment(run: Run, chance: random.Random) -> None:
    """Wait for some moment of the start, or of one of the next steps."""
    if chance.random() < 0.15:
        until(run, lambda: len(run.processes(ranks_only=True)) == RANKS, 0.1)
        time.sleep(chance.uniform(0, 10))
        return
    target = run.num_steps() + chance.randint(1, 4)
    until(run, lambda: run.num_steps() >= target, 0.02)
    time.sleep(chance.uniform(0, 0.3))


def kill_rank(run: Run, chance: random.Random) -> str:
    random_moment(run, chance)
    ranks = run.processes(ranks_only=True)
    if ranks:
        run.kill([chance.choice(ranks)])
    return ""


def kill_all(run: Run, chance: random.Random) -> str:
    random_moment(run, chance)
    run.kill(run.processes())
    return ""


def kill_launcher(run: Run, chance: random.Random) -> str:
    """The outermost process alone."""
    random_moment(run, chance)
    run.kill([run.process.pid])
    return ""


def kill_in_save(run: Run, chance: random.Random) -> str:
    """All processes or one, once so many bytes of a checkpoint are written."""
    whole = [size_of(path) for path in run.checkpoints()]
    offset = chance.randint(1, max(whole, default=200_000))
    target = run.num_steps() + chance.randint(1, 3)

    def written() -> int:
        return max((size_of(path) for path in run.folder.glob("*/checkpoints/*.partial")), default=0)

    until(run, lambda: run.num_steps() >= target and written() >= offset, 0.0005)
    seen = written()
    ranks = run.processes(ranks_only=True)
    run.kill(run.processes() if chance.random() < 0.5 else [chance.choice(ranks)] if ranks else [])
    return f"{seen} bytes written"


def damage(run: Run, chance: random.Random, spoil: Callable[[bytes, int], bytes]) -> str:
    """Kill all once there are two checkpoints, and spoil a file of the newest."""
    until(run, lambda: len(whole_checkpoints(run)) >= 2, 0.02)
    random_moment(run, chance)
    run.kill(run.processes())
    while run.processes():
        time.sleep(0.05)
    there = whole_checkpoints(run)
    if len(there) < 2:  # a stage has just begun: spoiling its only checkpoint must end in an error, by design
        return "no second checkpoint: nothing spoiled"
    file = chance.choice([path for path in sorted(there[-1].rglob("*")) if path.is_file()])
    content = file.read_bytes()
    position = chance.randrange(len(content))
    file.write_bytes(spoil(content, position))
    return f"{file.name} at byte {position} of {len(content)}"


def whole_checkpoints(run: Run) -> list[Path]:
    """The finished checkpoints of the stage under way."""
    return [path for path in run.checkpoints() if path.suffix == "" and (path / "manifest.json").is_file()]


def truncate(run: Run, chance: random.Random) -> str:
    return damage(run, chance, lambda content, position: content[:position])


def flip_bit(run: Run, chance: random.Random) -> str:
    bit = 1 << chance.randrange(8)
    return damage(run, chance, lambda content, at: content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])


def fill_disk(run: Run, chance: random.Random) -> str:
    """Leave less than a checkpoint takes, and wait for the run to end by itself."""
    random_moment(run, chance)
    ballast = run.output / "ballast"
    left = chance.randint(0, 400_000)
    free = shutil.disk_usage(run.output).free
    with ballast.open("wb") as stream:
        stream.write(bytes(max(0, free - left)))
    run.faulted = time.monotonic()
    run.wait()
    ballast.unlink()
    return f"{left} bytes left"


def freeze(run: Run, chance: random.Random) -> str:
    """A rank that is there and does nothing; the others must notice."""
    random_moment(run, chance)
    ranks = run.processes(ranks_only=True)
    if ranks:
        run.kill([chance.choice(ranks)], signal.SIGSTOP)
    return ""


FAULTS = {
    "rank": kill_rank,
    "all": kill_all,
    "launcher": kill_launcher,
    "save": kill_in_save,
    "truncate": truncate,
    "bit": flip_bit,
    "disk": fill_disk,
    "freeze": freeze,
}


def size_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # renamed under our eyes
            continue
    return total


def main() -> None:
    options = parse()
    chance = random.Random(options.seed)
    # every kind in turn, at random in each turn: two kills of a step and of a save for every other fault
    kinds = [kind for kind in options.only for _ in range(2 if kind in ("rank", "save") else 1)]
    plan: list[str] = []
    while len(plan) < options.faults:
        plan += chance.sample(kinds, len(kinds))
    plan = plan[: options.faults]
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        recipe = prepare(Path(scratch))
        reference = Run(recipe, Path(scratch) / "undisturbed", "torchrun")
        reference.launch()
        if reference.wait():
            sys.exit(f"the undisturbed run failed:\n{reference.log[-1][-3000:]}")
        print(f"undisturbed: {reference.num_steps()} steps", flush=True)
        failures = 0
        for number in range(0, len(plan), FAULTS_A_RUN):
            launcher = ("deepspeed", "torchrun")[number // FAULTS_A_RUN % 2]
            output = Path(scratch) / f"run{number}"
            with small_disk(output):
                rows = suffer(Run(recipe, output, launcher), plan[number : number + FAULTS_A_RUN], reference, chance)
            failures += sum(not (row["losses_identical"] and row["models_identical"]) for row in rows)
            for row in rows:
                print(json.dumps(row), flush=True)
                if options.csv:
                    append(options.csv, provenance("torch", "deepspeed") | row)
            shutil.rmtree(output, ignore_errors=True)
    print(f"{len(plan)} faults, {failures} of them in runs that ended otherwise than the undisturbed one")
    sys.exit(bool(failures))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--only", type=one_or_more_of(tuple(FAULTS)), default=list(FAULTS), help="kinds, by commas")
    parser.add_argument("--seed", type=int, default=0, help="of kinds and moments")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    return parser.parse_args()


def prepare(scratch: Path) -> Path:
    """A tiny model, and a recipe of it."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import make_model

    recipe = scratch / "recipe.yaml"
    model = make_model(scratch / "model", tied=False)
    recipe.write_text(yaml.safe_dump(RECIPE | {"model": {"source": str(model)}}))
    return recipe


class small_disk:
    """A tmpfs at a folder while entered, where this user may mount one; else the folder alone."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> None:
        self.folder.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "none", str(self.folder)]
        self.is_mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0

    def __exit__(self, *_) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


def suffer(run: Run, kinds: list[str], reference: Run, chance: random.Random) -> list[dict]:
    """Let faults meet a run one after the other, let it end, and compare it with the undisturbed one."""
    rows = []
    for kind in kinds:
        before = run.num_steps()
        run.launch()
        detail = FAULTS[kind](run, chance)
        moment = run.num_steps()
        code = run.process.returncode if kind == "disk" else run.wait()  # a full disk was waited for
        rows.append(
            {
                "fault": kind,
                "launcher": run.launcher,
                "steps_before": before,
                "steps_at_fault": moment,
                "detail": detail,
                "exit_code": code,
                "seconds_to_end": round(run.ended - run.faulted, 1),
                "told": first_error(run.log[-1]),
            }
        )
        print(f"  {kind}: step {moment}, code {code}, {detail}", flush=True)
    run.launch()
    code = run.wait()
    if code:
        print(run.log[-1][-3000:], flush=True)
    same = {
        "losses_identical": code == 0 and run.losses() == reference.losses(),
        "models_identical": code == 0 and run.model_hashes() == reference.model_hashes(),
    }
    return [row | same for row in rows]


def first_error(console: str) -> str:
    return next((line[:160] for line in console.splitlines() if line.startswith("error: ")), "")


if __name__ == "__main__":
    main()
