"""`dcr-ds judge`: label answers from a file, and compare labels of the same answers."""

import argparse
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from dcr_ds.commands.parser import (
    checked_mapping,
    column_mapping,
    command_parser,
    output_file,
    refuse,
    refuse_other_file,
    refuse_overwriting,
)
from dcr_ds.errors import UserError, write_errors_as_user_errors
from dcr_ds.files import write_atomically, write_json
from dcr_ds.judges import Judge, load_judge
from dcr_ds.judges.agreement import Labels, as_json, as_markdown
from dcr_ds.judges.judging import judge_rows
from dcr_ds.judges.rows import COLUMNS, AnswerRow, read_answers, read_labels
from dcr_ds.label_agreement import judged_matter
from dcr_ds.locks import sole_writer
from dcr_ds.recipe import AnyJudge, read_yaml
from dcr_ds.recipe.evaluation import PlainJudge

DESCRIPTION = """\
Label answers from a file (csv, jsonl, …) with the columns `prompt` and `completion`; other columns are copied. Also
read are conversations (`messages`, or a prompt and a `response`), samples of lm-eval, logs of inspect, artifacts of
JailbreakBench, results of HarmBench and outputs of AlpacaEval. With several judges, each writes its own file:
VERDICTS.<judge>.jsonl. Answers that were judged before are not judged again, so an interrupted command can be repeated.

  dcr-ds judge answers.csv --judge rules --judge xstest_strings --out verdicts.jsonl
  dcr-ds judge answers.csv --columns completion=response --judge rules --out verdicts.jsonl
  dcr-ds judge answers.csv --compare verdicts.rules.jsonl people.csv --out agreement.md

With --compare: the agreement of labels, as Markdown and JSON. A file of labels has the columns `id` and `label` (or
`human_label`, or XSTest's `final_label`); the first file is the reference. Without `id`, rows are matched in order.
"""

HEADING, FIGURE = "Agreement of labels", "binary_kappa"  # in the Markdown and the JSON of a comparison


def run(arguments: list[str]) -> int:
    """Judge answers, or compare labels of them.

    Raises:
        UserError: wrong usage, or a file or judge that cannot be used.
    """
    options = _parse(arguments)
    columns = checked_mapping("judge", options.columns, COLUMNS)
    answers = read_answers(options.file, columns)
    rows = answers.rows
    print(f"{options.file}: {len(rows)} answers, read as {answers.form}")
    for note in answers.notes:
        print(f"{options.file}: {note}")
    with write_errors_as_user_errors(options.out):
        if options.compare:
            _compare(rows, options.compare, columns.get("id", "id"), options.out)
        else:
            _judge(rows, [_load(name) for name in options.judge], options.out)
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = command_parser("judge", DESCRIPTION)
    parser.add_argument("file", metavar="FILE", help="the answers")
    task = parser.add_mutually_exclusive_group(required=True)
    help_judge = (
        f"{', '.join(get_args(PlainJudge))}, or a YAML file with the settings of a judge as in a recipe (guard models "
        "and LLM judges); may be repeated"
    )
    task.add_argument("--judge", action="append", metavar="NAME", help=help_judge)
    task.add_argument("--compare", nargs="+", metavar="LABELS", help="two or more files of labels of these answers")
    parser.add_argument(
        "--columns",
        nargs="+",
        type=column_mapping,
        default=[],
        metavar="NAME=COLUMN",
        help="the file's column for prompt, completion, id or finish; doc.question is a key in an object",
    )
    parser.add_argument(
        "--out", type=output_file, required=True, metavar="FILE", help="verdicts (.jsonl) or report (.md)"
    )
    options = parser.parse_args(arguments)
    if options.compare and len(options.compare) < 2:
        refuse("judge", "--compare: needs two or more files of labels")
    if options.compare and (repeated := [name for name in options.compare if options.compare.count(name) > 1]):
        refuse("judge", f"--compare: {repeated[0]} is named twice; name another file of labels")
    marks = {options.out: HEADING, options.out.with_suffix(".json"): FIGURE} if options.compare else {}
    for out in (options.out, *marks):
        refuse_overwriting("judge", out, map(Path, (options.file, *(options.compare or []))))
    for out, mark in marks.items():
        refuse_other_file("judge", out, mark)
    ending = ".md" if options.compare else ".jsonl"
    if options.out.suffix != ending:  # next to a .json file of an agreement, the Markdown must have another name
        refuse("judge", f"--out: {options.out} does not end in {ending}")
    return options


def _load(name: str) -> Judge:
    settings: Any = name
    try:
        if Path(name).suffix in (".yaml", ".yml", ".json"):
            settings, _ = read_yaml(Path(name).read_text(encoding="utf-8"), f"--judge: {name}", AnyJudge)
        return load_judge(TypeAdapter(AnyJudge).validate_python(settings))
    except OSError as error:
        raise UserError(f"--judge: {name}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--judge: {name}: is not valid YAML ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"][1:]))
        problem = first["msg"].removeprefix("Value error, ").removeprefix("evaluate.judges: ")
        raise UserError(f"--judge: {name}: {field + ': ' if field else ''}{problem}") from None


def _judge(rows: list[AnswerRow], judges: list[Judge], out: Path) -> None:
    if len({judge.name for judge in judges}) < len(judges):
        refuse("judge", "--judge: two judges have the same name and would write the same file")
    for judge in judges:
        file = out if len(judges) == 1 else out.with_name(f"{out.stem}.{judge.name}{out.suffix}")
        with sole_writer(file):
            counts = Counter(verdict["label"] for verdict in judge_rows(rows, judge, file))
        summary = ", ".join(f"{count} {label}" for label, count in counts.most_common())
        print(f"{judge.name}: {len(rows)} answers: {summary}. {file}")
        if set(counts) == {"unparsed"}:
            print(f"{judge.name}: no reply could be parsed; look at what this judge replies before you use its labels")


def _compare(rows: list[AnswerRow], files: list[str], id_column: str, out: Path) -> None:
    answers = {row.id: row.answer for row in rows}
    has_plain_names = len({Path(file).name for file in files}) == len(files)
    names = [Path(file).name if has_plain_names else file for file in files]
    labels_of = [read_labels(file, id_column=id_column, answers=rows) for file in files]
    all_labels = [Labels(name, labels) for name, labels in zip(names, labels_of, strict=True)]
    for labels in all_labels:
        if unknown := next((key for key in labels.by_id if key not in answers), None):
            raise UserError(f"{labels.name}: has a label for {unknown!r}, but no answer has this id")
    pairs = list(combinations(all_labels, 2))
    for first, second in pairs:
        if judged_matter(list(first.by_id.values())) != judged_matter(list(second.by_id.values())):
            raise UserError(
                f"{first.name} and {second.name}: one labels refusal, the other harm; compare labels of the same kind"
            )
        if not first.by_id.keys() & second.by_id.keys():
            raise UserError(f"{first.name} and {second.name}: no answer has a label in both; nothing can be compared")
    sections = [as_markdown(*pair, answers) for pair in pairs]
    json_file = out.with_suffix(".json")
    with sole_writer(out):
        write_atomically(out, "\n\n".join([f"# {HEADING}", *sections]) + "\n")
        write_json(json_file, [as_json(*pair, answers) for pair in pairs])
    print(f"Agreement: {out} and {json_file}")
