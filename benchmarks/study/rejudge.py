"""Judge the kept answers of the study again, after the judge has changed.

    python benchmarks/study/rejudge.py --out runs/study

Every arm and seed with results needs its answers, which `run.py --out` keeps; otherwise nothing is written.
"""

import argparse
import sys
from pathlib import Path

from arms import is_noted, read_arms
from rows import RESULTS, Row, place, read, read_cost, seeds_done, write
from sets import JUDGE

from dcr_ds.errors import EXIT_USER_ERROR, UserError
from dcr_ds.judges.base import verdicts
from dcr_ds.judges.continued import continued
from dcr_ds.judges.rows import read_generations
from dcr_ds.judges.rules.judge import RELEASE, rules_judge
from dcr_ds.recipe.layout import ModelFolder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    jobs = [(arm, seed) for arm in read_arms() for seed in seeds_done(arm, options.results)]
    try:
        if not jobs:
            raise UserError(f"--results {options.results}: no results of any arm")
        judged = {job: judged_again(*job, options.out, options.results) for job in jobs}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    for (arm, seed), (rows, changed) in judged.items():
        cost = read_cost(arm, seed, options.results) | {"judge": f"{JUDGE} {RELEASE}"}
        write(place(arm, seed, options.results), rows, cost)
        print(f"{arm}-{seed}: {changed} labels changed")
    return 0


def judged_again(arm: str, seed: int, out: Path, results: Path) -> tuple[list[Row], int]:
    """The rows of an arm and seed with new labels, and how many differ.

    Raises:
        UserError: an answer is missing, or the answers are of a run of another protocol.
    """
    rows, home = read(arm, seed, results), out / f"{arm}-{seed}"
    is_noted(home, read_cost(arm, seed, results)["protocol"])  # folders of early runs say nothing
    folder = ModelFolder(home / "measured")
    labels: dict[tuple[str, str], str] = {}
    for name in dict.fromkeys(row.set for row in rows if row.label):
        file = folder.benchmark(name).generations
        answers = read_generations(file).rows if file.is_file() else []
        opening = answers[0].others.get("attack", {}).get("opening", "") if answers else ""
        of_set = verdicts(continued(rules_judge(), opening), [row.answer for row in answers])
        labels |= {(name, row.id): verdict.label for row, verdict in zip(answers, of_set, strict=True)}
        if missing := [row.id for row in rows if row.set == name and (name, row.id) not in labels]:
            raise UserError(f"{file}: the answer to {missing[0]} is missing; repeat {arm} with seed {seed}")
    new = [row._replace(label=labels[row.set, row.id]) if row.label else row for row in rows]
    return new, sum(row != old for row, old in zip(new, rows, strict=True))


if __name__ == "__main__":
    sys.exit(main())
