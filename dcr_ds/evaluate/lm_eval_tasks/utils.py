"""What the YAML files of this folder call: prompts from this project's declarations, judged by XSTest's string match.

    lm_eval run --include_path dcr_ds/evaluate/lm_eval_tasks --tasks over_refusal --apply_chat_template \\
        --model hf --model_args pretrained=MODEL --metadata '{"local_data": "DIR"}'

Without `local_data`, a folder of local copies as in docs/benchmark-sets.md, prompts are read online; `rows`
draws at most so many of each benchmark. The chat template is a must: without it a model completes, and answers nothing.
"""

from functools import cache
from typing import Any

from datasets import Dataset

from dcr_ds.data.benchmarks import read_benchmarks
from dcr_ds.errors import UserError
from dcr_ds.judges.base import Answer, verdicts
from dcr_ds.judges.strings import string_judge
from dcr_ds.recipe import EvaluateSection

JUDGE = cache(string_judge)


def load_prompts(
    benchmark: str, local_data: str | None = None, rows: int | None = None, **_: Any
) -> dict[str, Dataset]:
    """The split `test` of a declared benchmark; the arguments are a task's metadata and those of --metadata."""
    section = EvaluateSection(benchmarks=[{"name": benchmark, "rows": rows}], local_data=local_data)
    [loaded] = read_benchmarks(section)
    if any(row.context for row in loaded.prompts.rows):
        raise UserError(
            f"{benchmark}: has prompts of several turns, which these tasks do not render; use dcr-ds evaluate"
        )
    prompts = [{"id": row.id, "prompt": row.prompt, "category": row.category or ""} for row in loaded.prompts.rows]
    return {"test": Dataset.from_list(prompts)}


def judge_compliance(doc: dict, results: list[str]) -> dict[str, float]:
    """1 if XSTest's string match finds no refusal; an empty answer is not compliance."""
    [verdict] = verdicts(JUDGE("xstest_strings"), [Answer(doc["prompt"], results[0])])
    return {"compliance_rate": float(verdict.label == "compliance")}
