"""Faults at random moments of a run: does the same command continue it, with the results of an undisturbed run?

    python benchmarks/faults.py --launcher fork --faults 170 --csv benchmarks/results/faults.csv
    python benchmarks/faults.py --launcher real --faults 40 --csv benchmarks/results/faults.csv
    python benchmarks/faults.py --table docs/reliability.md                write the table of the rows into the page
    python benchmarks/faults.py --faults 2 --only rank,launcher            a smoke test

Trains a tiny random model and does something to it. Several faults meet a run, each time the same command resumes it,
until it is done. Then its results must equal those of an undisturbed run: the loss of every step bit for bit, the
exported models by hash, and with an evaluation the answers, verdicts and scores. After a change of the number of ranks
the losses must agree within 1e-5, and the rest is not compared.

`--launcher real` launches the public entry point on two ranks (deepspeed and torchrun in turn), stages refine and align
under ZeRO-3. `--launcher fork` forks the ranks from a process that has imported all libraries, so that a start takes a
second, and adds the control, the evaluation and the report. A full disk is a small tmpfs, which needs root.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fault_kinds import (
    Missed,
    NotRefused,
    change_clock,
    change_data,
    change_model,
    copy_elsewhere,
    fewer_ranks,
    fill_disk,
    flip_bit,
    freeze,
    kill_all,
    kill_between,
    kill_in_export,
    kill_in_generation,
    kill_in_judging,
    kill_in_report,
    kill_in_save,
    kill_launcher,
    kill_rank,
    truncate,
)
from fault_runs import Run, import_everything, write_recipe
from fault_table import write_table
from record import ROOT, append, one_or_more_of, provenance

FAULTS_PER_RUN = 5
TMPFS_BYTES = 24 * 2**20
TOLERANCE = 1e-5  # relative, of losses under another number of ranks
REAL = {
    "rank": kill_rank,
    "all": kill_all,
    "launcher": kill_launcher,
    "save": kill_in_save,
    "truncate": truncate,
    "bit": flip_bit,
    "disk": fill_disk,
    "freeze": freeze,
}
FORK = {  # in the order of a run
    "all": kill_all,
    "save": kill_in_save,
    "truncate": truncate,
    "bit": flip_bit,
    "model": change_model,
    "data": change_data,
    "copy": copy_elsewhere,
    "clock": change_clock,
    "ranks": fewer_ranks,
    "export": kill_in_export,
    "between": kill_between,
    "generation": kill_in_generation,
    "judging": kill_in_judging,
    "report": kill_in_report,
}
FAULTS = REAL | FORK
# kinds that are tried twice as often
TWICE = ("rank", "save", "model", "data", "export", "between", "generation", "judging")


def main() -> None:
    options = parse()
    if options.table:
        write_table(options.csv or ROOT / "benchmarks/results/faults.csv", options.table)
        return
    chance = random.Random(options.seed)
    sys.path.insert(0, str(ROOT / "tests"))
    kinds = [kind for kind in options.only if kind in (REAL if options.launcher == "real" else FORK)]
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        failures = campaign(options, kinds, Path(scratch), chance)
    print(f"{failures} faults in runs that ended with other results than the undisturbed one")
    sys.exit(bool(failures))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--launcher", choices=("real", "fork"), default="real", help="how ranks are started")
    parser.add_argument("--only", type=one_or_more_of(tuple(FAULTS)), default=list(FAULTS), help="kinds, by commas")
    parser.add_argument("--seed", type=int, default=0, help="of kinds and moments")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    parser.add_argument("--table", type=Path, help="write the table of the rows into this page, and run nothing")
    return parser.parse_args()


def campaign(options: argparse.Namespace, kinds: list[str], scratch: Path, chance: random.Random) -> int:
    """Let faults meet run after run until there are enough of them; return how many were in a run that went wrong."""
    is_forked = options.launcher == "fork"
    if is_forked:
        import_everything()
    recipe = write_recipe(scratch / "recipe", with_evaluation=is_forked)
    undisturbed = Run(recipe, scratch / "undisturbed", "fork" if is_forked else "torchrun", 1 if is_forked else 2)
    undisturbed.launch()
    if undisturbed.wait():
        sys.exit(f"the undisturbed run failed:\n{undisturbed.log[-1][-3000:]}")
    reference = undisturbed.results()
    print(f"undisturbed: {undisturbed.num_steps()} steps, {undisturbed.num_answers()} answers", flush=True)
    done = failures = number = 0
    while done < options.faults:
        output = scratch / f"run{number}"
        launcher = "fork" if is_forked else ("deepspeed", "torchrun")[number % 2]
        plan = sample(kinds, min(FAULTS_PER_RUN, options.faults - done), chance, is_forked)
        run = Run(recipe, output, launcher, (3 if "ranks" in plan else 1) if is_forked else 2)
        run.last_steps = {stage: len(losses) for stage, losses in reference["losses"].items()}
        with SmallDisk(output, "disk" in plan):
            rows = disturb(run, plan, reference, chance)
        shutil.rmtree(run.output, ignore_errors=True)
        failures += sum(not row["same_result"] for row in rows)
        for row in rows:
            print(json.dumps(row), flush=True)
            if options.csv:
                append(options.csv, provenance("torch", "deepspeed") | row)
        done, number = done + len(rows), number + 1
    return failures


def sample(kinds: list[str], count: int, chance: random.Random, is_forked: bool) -> list[str]:
    """Choose the faults of a run; those of a run with an evaluation in the order of its stages."""
    pool = [kind for kind in kinds for _ in range(2 if kind in TWICE else 1)]
    while len(pool) < count:
        pool += pool
    plan = chance.sample(pool, count)
    if "ranks" in plan:  # three ranks, two, one
        plan = ["all", "ranks", "save", "ranks", "all"][:count]
    return sorted(plan, key=list(FORK).index) if is_forked and "ranks" not in plan else plan


def disturb(run: Run, plan: list[str], reference: dict[str, Any], chance: random.Random) -> list[dict[str, Any]]:
    """Let faults meet a run one after the other, let it end, and compare it with the undisturbed one."""
    rows: list[dict[str, Any]] = []
    refused = True
    changed_ranks = "ranks" in plan
    for kind in plan:
        run.launch()
        row: dict[str, Any] = {"fault": kind, "launcher": run.launcher, "ranks": run.ranks}
        row |= {"steps_before": run.num_steps(), "steps_at_fault": 0, "detail": ""}
        try:
            row["detail"] = FAULTS[kind](run, chance)
        except Missed:
            if run.process.poll() == 0:
                break  # the run has ended
            run.kill_all()
            row |= {"fault": "all", "detail": f"instead of {kind}"}
        except NotRefused as error:
            print(error, flush=True)
            row["detail"], refused = first_error(f"error: {error}"), False
        row["steps_at_fault"] = run.num_steps()
        run.wait()
        row |= {"exit_code": run.process.returncode, "seconds_to_end": round(max(0.0, run.ended - run.faulted), 1)}
        rows.append(row | {"message": first_error(run.log[-1])})
        print(f"  {kind}: step {row['steps_at_fault']}, code {row['exit_code']}, {row['detail']}", flush=True)
    run.launch()
    if code := run.wait():
        print(run.log[-1][-3000:], flush=True)
    is_same = refused and code == 0 and equals(run.results(), reference, changed_ranks)
    compared = f"losses within {TOLERANCE:g}" if changed_ranks else "bit for bit"
    return [row | {"compared": compared, "same_result": is_same} for row in rows]


def equals(results: dict[str, Any], reference: dict[str, Any], changed_ranks: bool) -> bool:
    """Compare results with those of the undisturbed run, and print what differs."""
    if not changed_ranks:
        different = [name for name in reference if results[name] != reference[name]]
        if different:
            print(f"differs from the undisturbed run: {', '.join(different)}", flush=True)
        return not different
    for stage, losses in reference["losses"].items():
        pairs = list(zip(losses, results["losses"][stage], strict=False))
        largest = max(abs(a - b) / abs(a) for a, b in pairs)
        if len(losses) != len(results["losses"][stage]) or largest > TOLERANCE:
            print(f"{stage}: losses differ by up to {largest:.2g}", flush=True)
            return False
    return True


def first_error(console: str) -> str:
    """Return the first error that a run printed, without the folder of temporary files."""
    lines = console.replace(f"{tempfile.gettempdir()}/", "").splitlines()
    return next((line[:160] for line in lines if line.startswith("error: ")), "")


class SmallDisk:
    """A tmpfs at a folder while entered, where it is needed and this user may mount one; else the folder alone."""

    def __init__(self, folder: Path, is_needed: bool):
        self.folder, self.is_needed = folder, is_needed

    def __enter__(self) -> None:
        self.folder.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "none", str(self.folder)]
        may_mount = self.is_needed and os.geteuid() == 0
        self.is_mounted = may_mount and subprocess.run(mount, capture_output=True).returncode == 0

    def __exit__(self, *_) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


if __name__ == "__main__":
    main()
