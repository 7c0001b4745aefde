"""Agreement of the judges that need no model with labels by people, one table per labelled model.

    python benchmarks/judge_agreement.py gpt4.csv llama2orig.csv mistralguard.csv

The files are csv or jsonl, one per model, with `prompt`, `completion`, `human_label` and optionally `id` and labels by
other judges (`gpt4_label`), as XSTest publishes them. If the shipped weights of `rules` were fitted on a file, `rules`
is fitted again on the other such files, so that no answers are judged by weights that were fitted on them. Any other
file is judged with the shipped weights. A degenerate answer counts as no refusal, and as a wrong label.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import chain
from pathlib import Path

from dcr_ds.errors import UserError
from dcr_ds.judges import Answer, Judge, verdicts
from dcr_ds.judges.agreement import table
from dcr_ds.judges.rows import read_answers, read_labels
from dcr_ds.judges.rules.fit import fit, read_labelled, read_written
from dcr_ds.judges.rules.judge import RulesJudge, rules_judge
from dcr_ds.judges.strings import PRESETS, string_judge
from dcr_ds.label_agreement import agree

PUBLISHED = ("gpt4_label",)  # columns with labels of other judges
MEASURES = ("f1", "precision", "recall", "accuracy", "kappa")
HEADER = ["judge", "F1", "precision", "recall", "accuracy of three labels", "kappa"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE")
    files = [file for path in parser.parse_args().files for file in files_of(path)]
    together: dict[str, dict[str, str]] = {}
    for file in files:
        judge, how = rules_for(file, files)
        labels = all_labels(file, judge)
        print(f"## {Path(file).stem}, {len(labels['people'])} answers; rules {how}\n\n{table(rows_of(labels))}\n")
        for name, by_id in labels.items():
            together.setdefault(name, {}).update({f"{file} {key}": label for key, label in by_id.items()})
    if len(files) > 1:
        print(f"## all {len(together['people'])} answers\n\n{table(rows_of(together))}")
    return 0


def files_of(path: str) -> list[str]:
    """A file, or the csv and jsonl files of a folder."""
    if not Path(path).is_dir():
        return [path]
    return [str(file) for file in sorted(Path(path).iterdir()) if file.suffix in (".csv", ".jsonl")]


def rules_for(file: str, files: Sequence[str]) -> tuple[Judge, str]:
    """`rules` with weights that were not fitted on the file, and a description of them."""
    shipped = json.loads((resources.files("dcr_ds.judges.rules") / "weights.json").read_text(encoding="utf-8"))
    if Path(file).stem not in shipped["fitted_on"]:
        return rules_judge(), "as shipped, not fitted on these answers"
    others = [other for other in files if other != file and Path(other).stem in shipped["fitted_on"]]
    if not others:
        raise UserError(f"{file}: rules was fitted on it; add another file it was fitted on, to fit it on that")
    weights = fit([*chain.from_iterable(read_labelled(other) for other in others), *read_written()])
    return RulesJudge(
        weights["refusal"], weights["partial"]
    ), f"fitted on {', '.join(Path(other).stem for other in others)}, and answers written by hand"


def all_labels(file: str, rules: Judge) -> dict[str, dict[str, str]]:
    """Labels by judge and id, people first."""
    answers = {row.id: row.answer for row in read_answers(file).rows}
    labels = {"people": read_labels(file, "human_label"), rules.name: judged(rules, answers)}
    labels |= {name: judged(string_judge(name), answers) for name in PRESETS}
    columns = read_answers(file).rows[0].others
    return labels | {name: read_labels(file, name) for name in PUBLISHED if name in columns}


def judged(judge: Judge, answers: Mapping[str, Answer]) -> dict[str, str]:
    labels = [verdict.label for verdict in verdicts(judge, list(answers.values()))]
    return dict(zip(answers, labels, strict=True))


def rows_of(labels: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    rows = [HEADER]
    for name, by_id in labels.items():
        if name != "people":
            agreement = agree(labels["people"], by_id)
            rows.append([name, *(f"{getattr(agreement, measure):.3f}" for measure in MEASURES)])
    return rows


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
