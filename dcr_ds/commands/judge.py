"""`dcr-ds judge`: label the answers of a file, whoever gave them; and compare labels of the same answers."""

import argparse
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from dcr_ds.errors import UserError
from dcr_ds.files import write_atomically, write_json
from dcr_ds.judges import Judge, load_judge
from dcr_ds.judges.agreement import Labels, as_json, as_markdown
from dcr_ds.judges.judging import judge_rows
from dcr_ds.judges.rows import AnswerRow, read_answers, read_labels
from dcr_ds.recipe import AnyJudge

DESCRIPTION = """\
Label the answers of a file (csv, jsonl, …) with columns `prompt` and `completion`; other columns are carried along.
With several judges VERDICTS.jsonl becomes VERDICTS.<judge>.jsonl, one each. What was judged before is not judged
again, also after a kill.

  dcr-ds judge answers.csv --judge rules --judge xstest_strings --out verdicts.jsonl
  dcr-ds judge answers.csv --compare verdicts.rules.jsonl verdicts.xstest_strings.jsonl --out agreement.md

With --compare: how far labels agree, as Markdown and as JSON beside it. A file of labels has columns `id` and `label`
(or `human_label`), and the first is taken as the truth.
"""


def run(arguments: list[str]) -> int:
    """Judge a file, or compare labels of it.

    Raises:
        UserError: anything that the user can put right.
    """
    options = _parse(arguments)
    rows = read_answers(options.file)
    if options.compare:
        _compare(rows, options.compare, options.out)
    else:
        _judge(rows, [_load(name) for name in options.judge], options.out)
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("dcr-ds judge", description=DESCRIPTION, formatter_class=layout)
    parser.error = _refuse
    parser.add_argument("file", metavar="FILE", help="the answers")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument(
        "--judge",
        action="append",
        metavar="NAME",
        help="rules, xstest_strings, advbench_strings, scans_strings, refusal_direction_strings, or a YAML file with a "
        "judge's mapping as recipes have it (guards and LLM judges); may be repeated",
    )
    task.add_argument("--compare", nargs="+", metavar="LABELS", help="two or more files of labels of these answers")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="verdicts (.jsonl), or report (.md)")
    options = parser.parse_args(arguments)
    if options.compare and len(options.compare) < 2:
        _refuse("--compare: wants two or more files of labels")
    for read in (options.file, *(options.compare or [])):
        if options.out.exists() and Path(read).exists() and options.out.samefile(read):
            _refuse(f"--out: {options.out} is what is read; name another file")
    return options


def _refuse(message: str) -> None:
    raise UserError(f"judge: {message}; dcr-ds judge --help lists the options")


def _load(name: str) -> Judge:
    declared: Any = name
    try:
        if Path(name).suffix in (".yaml", ".yml", ".json"):
            declared = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
        return load_judge(TypeAdapter(AnyJudge).validate_python(declared))
    except OSError as error:
        raise UserError(f"--judge: {name}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--judge: {name}: is no YAML ({str(error).splitlines()[0]})") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"][1:]))
        what = first["msg"].removeprefix("Value error, ").removeprefix("evaluate.judges: ")
        raise UserError(f"--judge: {name}: {place + ': ' if place else ''}{what}") from None


def _judge(rows: list[AnswerRow], judges: list[Judge], out: Path) -> None:
    if len({judge.name for judge in judges}) < len(judges):
        _refuse("--judge: two judges have the same name, and would write the same file")
    for judge in judges:
        file = out if len(judges) == 1 else out.with_name(f"{out.stem}.{judge.name}{out.suffix}")
        labels = Counter(verdict["label"] for verdict in judge_rows(rows, judge, file))
        counted = ", ".join(f"{count} {label}" for label, count in labels.most_common())
        print(f"{judge.name}: {len(rows)} answers: {counted}. {file}")


def _compare(rows: list[AnswerRow], files: list[str], out: Path) -> None:
    answers = {row.id: row.answer for row in rows}
    has_plain_names = len({Path(file).name for file in files}) == len(files)
    sides = [Labels(Path(file).name if has_plain_names else file, read_labels(file)) for file in files]
    for side in sides:
        if unknown := next((key for key in side.by_id if key not in answers), None):
            raise UserError(f"{side.name}: has a label of {unknown!r}, and no answer of the file has this id")
    pairs = list(combinations(sides, 2))
    for first, second in pairs:
        if _judged_matter(first) != _judged_matter(second):
            raise UserError(
                f"{first.name} and {second.name}: one is of refusal, the other of harm; compare like with like"
            )
    sections = [as_markdown(*pair, answers) for pair in pairs]
    write_atomically(out, "\n\n".join(["# Agreement of labels", *sections]) + "\n")
    beside = out.with_suffix(".json")
    write_json(beside, [as_json(*pair, answers) for pair in pairs])
    print(f"Agreement: {out} and {beside}")


def _judged_matter(labels: Labels) -> str:
    return "harm" if {"harmful", "harmless"} & set(labels.by_id.values()) else "refusal"
