"""General ability: multiple-choice accuracy through lm-eval, on its hub tasks or on local files.

Local files serve machines without a hub, and quick measurements on part of a set: `DIR/<task>*test*.jsonl`, or else
`DIR/<task>*.jsonl`, with rows of `question`, `choices`, `answer` (zero-based index of the correct choice), and for mmlu
`subject`. Prompts have the form of lm-eval's tasks of that name, zero-shot, so that figures differ from lm-eval's only
by the rows.
"""

import glob
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dcr_ds.errors import UserError, first_line
from dcr_ds.files import hash_of, json_at, placed_lines
from dcr_ds.reasoning import open_block
from dcr_ds.statistics import rate

# The paper's tasks. acc_norm divides the score of a choice by its bytes, for tasks whose choices differ in length.
TASKS = {
    "mmlu": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "openbookqa": "acc_norm",
    "piqa": "acc",
}
LAYOUTS = {
    "mmlu": "The following are multiple choice questions (with answers) about {{subject.replace('_', ' ')}}.\n\n"
    "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
    "openbookqa": "{{question}}",
}
DEFAULT_LAYOUT = "Question: {{question}}\nAnswer:"
CORRECT = "correct or remove the line"
LETTERS = ["A", "B", "C", "D"]  # of mmlu's choices


@dataclass(frozen=True)
class AbilityOptions:
    """What is measured, and how.

    Attributes:
        local: folder of local files; None: lm-eval's own tasks from the hub.
        limit: use only the first rows of each task (of each subject in lm-eval's mmlu).
        with_template: ask with the tokenizer's chat template, instead of plain text.
    """

    tasks: Sequence[str]
    local: Path | None = None
    limit: int | None = None
    batch_size: int = 8
    with_template: bool = False


def measure_ability(model: Any, tokenizer: Any, options: AbilityOptions) -> dict[str, dict]:
    """Accuracy of a loaded model by task: metric, value, low, high (Wilson, 95 %), n, and the hash of the rows.

    Raises:
        UserError: lm-eval is not installed, a task is unknown, its data is not available, or the chat template opens a
            block of reasoning, after which no choice of an answer is to be expected.
    """
    if find_spec("lm_eval") is None:
        raise UserError("general ability needs lm-eval: pip install 'dcr-ds[eval]'")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    if options.with_template:
        _check_template(tokenizer)
    tasks = options.tasks
    loaded = [_local_task(task, options.local) if options.local else _known(task) for task in tasks]
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    language_model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=options.batch_size)
    settings: dict[str, Any] = {"limit": options.limit, "apply_chat_template": options.with_template}
    try:
        output = simple_evaluate(language_model, tasks=loaded, num_fewshot=0, bootstrap_iters=0, **settings)
    except (OSError, ConnectionError, ValueError) as error:
        reason = first_line(error)[:200]
        raise UserError(
            f"ability: the data of {', '.join(tasks)} could not be loaded ({reason}); check the network, or set "
            "--local-data to a folder of local files"
        ) from None
    return {task: _figures(task, output["samples"]) for task in tasks}


def _check_template(tokenizer: Any) -> None:
    from dcr_ds.models.chat import PROMPT_END_TOKENS, encode_prompt

    if tag := open_block(str(tokenizer.decode(encode_prompt(tokenizer, "a")[-PROMPT_END_TOKENS:]))):
        raise UserError(
            f"ability: the chat template opens a block of reasoning ({tag}), which a choice does not continue; close "
            "it, with many models by --chat-template-kwargs '{\"enable_thinking\": false}', or ask without the template"
        )


def _known(task: str) -> str:
    if task not in TASKS:
        raise UserError(f"ability: unknown task {task!r}; tasks: {', '.join(TASKS)}")
    return task


def local_hash(tasks: Sequence[str], folder: Path) -> str:
    """A hash of the local files of tasks, by content. See `_local_file` for errors."""
    files = [_local_file(task, folder) for task in tasks]
    return hash_of([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])


def _local_file(task: str, folder: Path) -> Path:
    """The file of a task.

    Raises:
        UserError: the task is unknown, or has no file, or several.
    """
    _known(task)
    files = sorted(folder.glob(f"{task}*test*.jsonl")) or sorted(folder.glob(f"{task}*.jsonl"))
    if not files:
        raise UserError(f"{folder}: contains no {task}*.jsonl; remove {task}, or put its rows there")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{folder}: several files are of {task} ({names}); leave one of them there")
    return files[0]


def _local_task(task: str, folder: Path) -> dict[str, Any]:
    """An lm-eval task on a local file."""
    file = _local_file(task, folder)
    _check_rows(file, task)
    return {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": glob.escape(str(file))}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": LAYOUTS.get(task, DEFAULT_LAYOUT),
        "doc_to_choice": LETTERS if task == "mmlu" else "choices",
        "doc_to_target": "answer",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
    }


def _check_rows(file: Path, task: str) -> None:
    lines = placed_lines(file)
    if not lines:
        raise UserError(f"{file}: contains no rows; remove {task}, or put its rows there")
    places: dict[tuple[str, str], str] = {}  # of each id; subjects of mmlu may number their questions alike
    for place, content in lines:
        row = json_at(place, content, CORRECT)
        if problem := _problem(row, task):
            raise UserError(f"{place}: {problem}; {CORRECT}")
        name = row.get("id")
        first = places.setdefault((str(row.get("subject")), str(name)), str(place))
        if name is not None and first != str(place):
            raise UserError(f"{place}: the id {name!r} is also that of {first}; each question counts once; {CORRECT}")


def _problem(row: Any, task: str) -> str | None:
    """What is wrong with a row of a local file: lm-eval would print what is missing as None, or as nothing."""
    texts = ("question", "subject") if task == "mmlu" else ("question",)
    if not isinstance(row, dict):
        return "is not an object"
    if missing := [name for name in (*texts, "choices", "answer") if row.get(name) is None]:
        return f"no {', '.join(missing)}"
    choices, answer = row["choices"], row["answer"]
    if wrong := next((name for name in texts if not isinstance(row[name], str) or not row[name].strip()), None):
        return f"{wrong} must be text"
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        return "choices must be a list of texts"
    if len(choices) < 2 or (task == "mmlu" and len(choices) != len(LETTERS)):
        return f"has {len(choices)} choices, {task} needs {len(LETTERS) if task == 'mmlu' else 'two or more'}"
    if type(answer) is not int or not 0 <= answer < len(choices):
        return f"answer {answer!r} is not an index into the choices"
    return None


def _figures(task: str, samples: dict[str, list[dict]]) -> dict[str, Any]:
    """All rows of a task have the same weight, even if lm-eval splits the task, as mmlu into its 57 subjects."""
    rows = [
        row for name, part in sorted(samples.items()) if name == task or name.startswith(f"{task}_") for row in part
    ]
    metric = TASKS[task]
    right = sum(round(row[metric]) for row in rows)
    return {"metric": metric, **rate(right, len(rows)), "rows_hash": hash_of(sorted(row["doc_hash"] for row in rows))}
