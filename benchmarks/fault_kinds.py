"""The faults of benchmarks/faults.py: each meets a launched run, and returns what it did."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from fault_runs import Run

TWENTY_YEARS = 20 * 365 * 86400


class Missed(Exception):
    """The moment that a fault waits for did not come: nothing was done."""


class NotRefused(Exception):
    """A run was resumed with another model or other data, without an error."""


def random_moment(run: Run, chance: random.Random) -> None:
    """Wait for some moment of the start, or of one of the next steps."""
    if chance.random() < 0.15:
        run.until(lambda: len(run.processes(ranks_only=True)) == run.ranks, 0.1)
        time.sleep(chance.uniform(0, 1 if run.launcher == "fork" else 10))
        return
    after_steps(run, chance)


def after_steps(run: Run, chance: random.Random) -> None:
    """Wait for one of the next steps of training."""
    target = run.num_steps() + chance.randint(1, 4)
    run.until(lambda: run.num_steps() >= target)
    time.sleep(chance.uniform(0, 0.1 if run.launcher == "fork" else 0.3))


def kill_all_if(run: Run, is_there: Callable[[], bool], detail: Callable[[], str]) -> str:
    """Kill all processes; the fault counts if none had ended and the run is where it was to be killed."""
    had_ended = run.process.poll() is not None
    run.kill_all()
    if had_ended or not is_there():
        raise Missed
    return detail()


def kill_rank(run: Run, chance: random.Random) -> str:
    random_moment(run, chance)
    if not (ranks := run.processes(ranks_only=True)):
        raise Missed
    run.kill([chance.choice(ranks)])
    return ""


def kill_all(run: Run, chance: random.Random) -> str:
    random_moment(run, chance)
    return kill_all_if(run, lambda: True, lambda: "")


def kill_launcher(run: Run, chance: random.Random) -> str:
    """The outermost process alone."""
    random_moment(run, chance)
    if run.process.poll() is not None:
        raise Missed
    run.kill([run.process.pid])
    return ""


def kill_in_save(run: Run, chance: random.Random) -> str:
    """All processes or one of them, once so many bytes of a checkpoint are written."""
    sizes = [size_of(path) for path in run.checkpoints()]
    offset = chance.randint(1, max(sizes, default=200_000))
    target = run.num_steps() + chance.randint(1, 3)

    def written() -> int:
        return max((size_of(path) for path in run.folder.glob("*/checkpoints/*.partial")), default=0)

    run.until(lambda: run.num_steps() >= target and written() >= offset, 0.0005)
    seen = written()
    ranks = run.processes(ranks_only=True)
    if not ranks or not seen:
        raise Missed
    run.kill(run.processes() if chance.random() < 0.5 else [chance.choice(ranks)])
    return f"{seen} bytes written"


def kill_between(run: Run, chance: random.Random) -> str:
    """After the end of a stage, before the first step of the next one or the first answer."""
    stage = chance.choice(unfinished(run))
    following = [*run.stages, None][run.stages.index(stage) + 1]
    run.until(lambda: (run.folder / stage / "summary.json").exists())
    time.sleep(chance.uniform(0, 0.3))

    def is_between() -> bool:
        has_begun = run.losses()[following] if following else run.num_answers()
        return (run.folder / stage / "summary.json").exists() and not has_begun

    return kill_all_if(run, is_between, lambda: f"after {stage}")


def kill_in_export(run: Run, chance: random.Random) -> str:
    """After the last step of a stage, before its summary."""
    stage = chance.choice(unfinished(run))
    last = run.last_steps[stage]
    run.until(lambda: len(run.losses()[stage]) >= last)
    time.sleep(chance.uniform(0, 0.15))
    folder = run.folder / stage

    def describe() -> str:
        names = sorted(path.name for path in folder.iterdir() if path.name.startswith("model"))
        return f"{stage}: {', '.join(names) or 'no model yet'}"

    return kill_all_if(
        run, lambda: len(run.losses()[stage]) >= last and not (folder / "summary.json").exists(), describe
    )


def kill_in_generation(run: Run, chance: random.Random) -> str:
    before = run.num_answers()
    target = before + chance.randint(1, 20)
    run.until(lambda: run.num_answers() >= target, 0.003)
    return kill_all_if(run, lambda: run.num_answers() > before, lambda: f"{run.num_answers()} answers")


def kill_in_judging(run: Run, chance: random.Random) -> str:
    """After the answers of a model are complete and measured, before its last benchmark has scores."""
    loss = chance.choice([path for path in losses_of_models(run) if not path.exists()] or [None])
    if loss is None:
        raise Missed
    run.until(loss.exists, 0.001)
    time.sleep(chance.uniform(0, 0.15))
    benchmarks = len(list(loss.parent.glob("*/generations.jsonl")))

    def scored() -> int:
        return len(list(loss.parent.glob("*/scores.json")))

    return kill_all_if(
        run, lambda: loss.exists() and scored() < benchmarks, lambda: f"{scored()} of {benchmarks} scored"
    )


def kill_in_report(run: Run, chance: random.Random) -> str:
    """After the last scores, before the end."""

    def is_scored() -> bool:
        done = [len(list(path.parent.glob("*/scores.json"))) for path in losses_of_models(run)]
        answered = [len(list(path.parent.glob("*/generations.jsonl"))) for path in losses_of_models(run)]
        return min(done) > 0 and done == answered

    run.until(is_scored, 0.003)
    time.sleep(chance.uniform(0, 1.0))

    def describe() -> str:
        return f"{len([path for path in (run.folder / 'report').rglob('*') if path.is_file()])} files of the report"

    return kill_all_if(run, is_scored, describe)


def change_model(run: Run, chance: random.Random) -> str:
    """Kill, then other weights in model.source: the resume must be refused. Then the right weights again."""
    return change_file(run, chance, run.recipe.parent / "model" / "model.safetensors", flipped)


def change_data(run: Run, chance: random.Random) -> str:
    """Kill, then a training set with a changed row: the resume must be refused. Then the right data again."""
    return change_file(
        run, chance, run.recipe.parent / "general.jsonl", lambda content, _: content.replace(b"the", b"The", 9)
    )


def change_file(run: Run, chance: random.Random, path: Path, change: Callable[[bytes, random.Random], bytes]) -> str:
    run.until(lambda: bool(complete_checkpoints(run)))  # before, there is nothing to resume
    after_steps(run, chance)
    kill_all_if(run, lambda: bool(complete_checkpoints(run)), str)
    content = path.read_bytes()
    path.write_bytes(change(content, chance))
    before = snapshot(run.folder)
    run.launch()
    code = run.wait()
    path.write_bytes(content)
    if code != 2 or "began with something else" not in run.log[-1]:
        raise NotRefused(f"{path.name} was changed, exit code {code}:\n{run.log[-1][-2000:]}")
    if snapshot(run.folder) != before:
        raise NotRefused(f"{path.name} was changed, and the refused run changed the run folder")
    return f"{path.name}: refused"


def flipped(content: bytes, chance: random.Random) -> bytes:
    """One of the last weights, changed in the lowest bit of its last byte."""
    at = len(content) - 1 - 4 * chance.randint(0, 100)
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def snapshot(folder: Path) -> dict[str, bytes]:
    """The content of every file but the lock, which a killed run leaves behind and the next one releases."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".lock"))
    return {str(path): path.read_bytes() for path in files}


def fewer_ranks(run: Run, chance: random.Random) -> str:
    """Kill, and resume with one rank less, down to one."""
    if run.ranks == 1:
        raise Missed
    after_steps(run, chance)
    kill_all_if(run, lambda: True, str)
    run.ranks -= 1
    return f"{run.ranks + 1} ranks, then {run.ranks}"


def copy_elsewhere(run: Run, chance: random.Random) -> str:
    """Kill, and resume in a copy of the run folder at another path."""
    random_moment(run, chance)
    kill_all_if(run, lambda: True, str)
    new = run.output.with_name(run.output.name + "c")
    shutil.copytree(run.output, new)
    shutil.rmtree(run.output)
    run.output = new
    return ""


def change_clock(run: Run, chance: random.Random) -> str:
    """Kill, then files with times up to twenty years off, and a resume whose deadline has passed long ago."""
    random_moment(run, chance)
    kill_all_if(run, lambda: True, str)
    for path in run.folder.rglob("*"):
        when = time.time() + chance.uniform(-TWENTY_YEARS, TWENTY_YEARS)
        os.utime(path, (when, when))
    run.environment = {"DCR_DS_DEADLINE": str(time.time() - chance.uniform(0, TWENTY_YEARS))}
    run.launch()
    code = run.wait()
    run.environment = {}
    if code not in (0, 75):
        raise NotRefused(f"exit code {code} after a jump of the clock:\n{run.log[-1][-2000:]}")
    return f"code {code} with a deadline in the past"


def damage(run: Run, chance: random.Random, spoil: Callable[[bytes, int], bytes]) -> str:
    """Kill all once there are two checkpoints, and spoil a file of the newest."""
    run.until(lambda: len(complete_checkpoints(run)) >= 2)
    random_moment(run, chance)
    run.kill_all()
    checkpoints = complete_checkpoints(run)
    if len(checkpoints) < 2:  # a stage has just begun: spoiling its only checkpoint must end in an error, by design
        raise Missed
    file = chance.choice([path for path in sorted(checkpoints[-1].rglob("*")) if path.is_file()])
    content = file.read_bytes()
    position = chance.randrange(len(content))
    file.write_bytes(spoil(content, position))
    return f"{file.name} at byte {position} of {len(content)}"


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
    if not (ranks := run.processes(ranks_only=True)):
        raise Missed
    run.kill([chance.choice(ranks)], signal.SIGSTOP)
    return ""


def unfinished(run: Run) -> list[str]:
    stages = [stage for stage in run.stages if not (run.folder / stage / "summary.json").exists()]
    if not stages:
        raise Missed
    return stages


def losses_of_models(run: Run) -> list[Path]:
    """The last file that is measured on each model; judging follows."""
    return [run.folder / "evaluate" / model / "general_loss.json" for model in ("control", "aligned")]


def complete_checkpoints(run: Run) -> list[Path]:
    """The finished checkpoints of the stage under way."""
    return [path for path in run.checkpoints() if path.suffix == "" and (path / "manifest.json").is_file()]


def size_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # renamed meanwhile
            continue
    return total
