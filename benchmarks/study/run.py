"""Run the study of docs/STUDY.md: train the arms of arms.yaml, measure their models, write results/study.

    python benchmarks/study/run.py --data data
    python benchmarks/study/run.py --data data --only stl dcr --seeds 0 1
    python benchmarks/study/run.py --plan

Arms and seeds that have results are skipped, and an interrupted arm continues from its last checkpoint. `data` has
local copies of the sets, laid out as in docs/benchmark-sets.md. Models that no other arm starts from are deleted after
they were measured. Two calls may run at once with different --seeds and different --out.
"""

import argparse
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # record.py

from arms import (
    ATTACKED_SEEDS,
    NOTE,
    RECIPE,
    ROOT,
    TEMPLATE,
    Arm,
    check_runnable,
    is_noted,
    protocol_hash,
    read_arms,
    refuse_other_protocols,
)
from rows import RESULTS, place, read_cost, seeds_done, write
from sets import read_plan

from dcr_ds.errors import EXIT_USER_ERROR, UserError
from dcr_ds.files import read_object, write_atomically
from dcr_ds.recipe.layout import TRAINING_STAGES, RunFolder


class Job(NamedTuple):
    """An arm with a seed."""

    name: str
    arm: Arm
    seed: int

    @property
    def run(self) -> str:
        return f"{self.name}-{self.seed}"


def main() -> int:
    options = parse()
    try:
        arms = read_arms()
        jobs = jobs_of(arms, options)
        check_runnable(arms)
        refuse_other_protocols(arms, options.results)
        note_other_commits(jobs, options.results)
        if options.plan:
            print_plan(arms, jobs, options.results)
            return 0
        if not all(place(job.name, job.seed, options.results).is_done for job in jobs):
            check_data(options.data)
        failed = [job for job in jobs if not done(job, arms, options)]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    for job in failed:
        print(f"not done: {job.run}; see above", file=sys.stderr)
    return EXIT_USER_ERROR if failed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of local copies of the public sets")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="+", metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED")
    parser.add_argument("--plan", action="store_true", help="print what is done and what is left; run nothing")
    options = parser.parse_args()
    options.out = options.out.resolve()  # what is called below runs in the folder of the checkout
    if not options.plan and not options.data:
        parser.error("--data is needed: a folder of local copies of the public sets (docs/benchmark-sets.md)")
    if options.data and not Path(options.data).is_dir():
        parser.error(f"--data {options.data}: no such folder")
    for name, folder in (("--out", options.out), ("--results", options.results)):
        if folder.exists() and not folder.is_dir():
            parser.error(f"{name} {folder}: is a file; name a folder")
    return options


def check_data(data: str) -> None:
    """Read all sets, before hours of training whose models could not be measured.

    Raises:
        UserError: which files are missing or cannot be read.
    """
    from measure import read_sets  # torch: --plan and wrong input need not wait for it

    read_sets(data, list(read_plan().pairs.values()))


def jobs_of(arms: dict[str, Arm], options: argparse.Namespace) -> list[Job]:
    """The jobs in order: by group, then by seed, so that an interrupted study has all arms of a group at some seeds."""
    if unknown := set(options.only or ()) - set(arms):
        raise UserError(f"no such arm: {', '.join(sorted(unknown))}; arms: {', '.join(arms)}")
    chosen = {name: arms[name] for name in arms if not options.only or name in options.only}
    groups = list(dict.fromkeys(arm.group for arm in chosen.values()))
    seeds = range(max(arm.seeds for arm in chosen.values()))
    jobs = [
        Job(name, arm, seed)
        for group in groups
        for seed in seeds
        if not options.seeds or seed in options.seeds
        for name, arm in chosen.items()
        if arm.group == group and seed < arm.seeds
    ]
    if unused := sorted(set(options.seeds or ()) - {job.seed for job in jobs}):
        counts = ", ".join(f"{name} 0 to {arm.seeds - 1}" for name, arm in chosen.items())
        raise UserError(f"--seeds {unused[0]}: no arm has this seed; seeds: {counts}")
    return jobs


def done(job: Job, arms: dict[str, Arm], options: argparse.Namespace) -> bool:
    """Train and measure an arm unless it has results. Whether it has them now."""
    to = place(job.name, job.seed, options.results)
    if to.is_done:
        return True
    from measure import What, measure

    print(f"== {job.run}", flush=True)
    home = options.out / job.run
    try:
        model = model_of(job, arms, options)
        what = What(job.arm.answers, job.arm.attacks and job.seed < ATTACKED_SEEDS)
        measured = measure(str(model), options.data, home / "measured", what, read_plan())
    except (UserError, subprocess.CalledProcessError) as error:
        print(f"error: {job.run}: {error}", file=sys.stderr, flush=True)
        return False
    write(to, measured.rows, cost_of(job, arms, home) | measured._asdict())
    tidy(job, arms, home)
    return True


def note_other_commits(jobs: list[Job], results: Path) -> None:
    """Say that the rows were made by other code than those to come: the protocol covers settings alone."""
    from record import commit

    here, finished = commit(), [job for job in jobs if place(job.name, job.seed, results).is_done]
    others = {read_cost(job.name, job.seed, results)["commit"] for job in finished} - {here}
    if others and len(finished) < len(jobs):
        print(f"note: {results} has rows of other commits ({len(others)}); this is {here}", file=sys.stderr)


def claim(home: Path, protocol: str, has_results: bool) -> None:
    """Note in a run's folder which protocol it follows; what another protocol left there is not continued.

    Args:
        has_results: results of this protocol were made from the folder, which may be older than these notes.

    Raises:
        UserError: the folder follows another protocol, or does not say which one.
    """
    if is_noted(home, protocol):
        return
    if home.exists() and any(home.iterdir()) and not has_results:
        raise UserError(f"{home}: does not say which protocol it follows (no {NOTE}); delete it, or name another --out")
    write_atomically(home / NOTE, f"{protocol}\n")


def cost_of(job: Job, arms: dict[str, Arm], home: Path) -> dict:
    """What made the results: protocol, commit, device, and what each stage reports."""
    from record import commit, cpu_name

    from dcr_ds.judges.rules.judge import RELEASE

    stages = {stage: RunFolder(home).stage(stage).summary for stage in TRAINING_STAGES}
    keys = ("steps", "tokens", "seconds", "wall_seconds", "exported_step", "start", "final", "failures")
    reported = {stage: read_object(file) for stage, file in stages.items() if file.is_file()}
    return {
        "protocol": protocol_hash(job.name, arms),
        "commit": commit(),
        "date": date.today().isoformat(),
        "device": cpu_name(),
        "judge": f"rules {RELEASE}",
        "stages": {stage: {key: row[key] for key in keys if key in row} for stage, row in reported.items()},
    }


def model_of(job: Job, arms: dict[str, Arm], options: argparse.Namespace) -> Path:
    """The model of an arm; it is made if it does not exist yet.

    Raises:
        UserError: the folder of the arm, or of one that it starts from, is of another protocol.
    """
    from dcr_ds.models.locate import prepare_source
    from dcr_ds.recipe import ModelSection

    home, arm = options.out / job.run, job.arm
    claim(home, protocol_hash(job.name, arms), place(job.name, job.seed, options.results).is_done)
    source = model_of(Job(arm.of, arms[arm.of], job.seed), arms, options) if arm.of else prepare_source(ModelSection())
    if arm.apply:
        model = home / "model"
        if not model.exists():
            call_baseline(*arm.apply, str(source), "--chat-template", str(TEMPLATE), "--out", str(model))
        return model
    if not arm.stages:
        return source
    last = RunFolder(home).stage(arm.stages[-1])
    if not (last.is_done and last.model.is_dir()):
        recipe = prepared(job, options) if arm.prepare else RECIPE
        stages = ["--stages", f"[{', '.join(arm.stages)}]"]
        call("train.py", str(recipe), *overrides(job, options), *stages, "--model.source", str(source))
    return last.model


def prepared(job: Job, options: argparse.Namespace) -> Path:
    """The recipe that a baseline writes from the study's; answers of earlier seeds are reused."""
    folder = options.out / "prepared" / job.run
    if not (folder / "recipe.yaml").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        earlier = sorted((options.out / "prepared").glob(f"{job.name}-*/answers.jsonl"))
        reuse = ["--answers", str(earlier[0])] if earlier else []
        name, *rest = job.arm.prepare
        call_baseline(name, str(RECIPE), *rest, *overrides(job, options), *reuse, "--out", str(folder))
    return folder / "recipe.yaml"


def overrides(job: Job, options: argparse.Namespace) -> list[str]:
    fields = {
        "name": job.run,
        "output": str(options.out),
        "seed": job.seed,
        "model.chat_template": str(TEMPLATE),
    }
    return [word for name, value in (fields | job.arm.change).items() for word in (f"--{name}", str(value))]


def call(*words: str) -> None:
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)


def call_baseline(*words: str) -> None:
    call("-m", "dcr_ds", "baseline", *words)


def tidy(job: Job, arms: dict[str, Arm], home: Path) -> None:
    """Delete checkpoints, and models that no other arm starts from."""
    wanted = any(arm.of == job.name for arm in arms.values())
    for stage in TRAINING_STAGES:
        folder = RunFolder(home).stage(stage)
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        if not (wanted and job.arm.stages and stage == job.arm.stages[-1]):
            shutil.rmtree(folder.model, ignore_errors=True)
    shutil.rmtree(home / "model", ignore_errors=True)


def print_plan(arms: dict[str, Arm], jobs: list[Job], results: Path) -> None:
    """Seeds done and left per arm, and the minutes left where a seed was measured."""
    left = 0.0
    for name in dict.fromkeys(job.name for job in jobs):
        finished = set(seeds_done(name, results))
        missing = [job.seed for job in jobs if job.name == name and job.seed not in finished]
        minutes = [minutes_of(read_cost(name, seed, results)) for seed in finished]
        each = sum(minutes) / len(minutes) if minutes else None
        left += (each or 0) * len(missing)
        cost = f"{each:.0f} min each" if each is not None else "not measured"
        print(f"{name:16} {arms[name].group:9} done {len(finished):2}  left {len(missing):2}  {cost}")
    print(f"left: {left / 60:.1f} h on one core, without the arms that were not measured")


def minutes_of(cost: dict) -> float:
    trained = sum(stage.get("wall_seconds", 0) for stage in cost.get("stages", {}).values())
    return (trained + cost.get("seconds", 0)) / 60


if __name__ == "__main__":
    sys.exit(main())
