"""The agreement of judges with people, where no model is judged with weights that were fitted on its answers."""

import json

import pytest
from scripts import ROOT, run_python

EXAMPLES = ROOT / "tests" / "judges" / "judge_examples.jsonl"
PEOPLE = {"compliance": "1_full_compliance", "full_refusal": "2_full_refusal", "partial_refusal": "3_partial_refusal"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The examples as the answers of three models; two have the names of files that rules was fitted on."""
    home = tmp_path_factory.mktemp("labelled")
    rows = [json.loads(line) for line in EXAMPLES.read_text(encoding="utf-8").split("\n") if line]
    rows = [
        {"id": str(i), "prompt": row["prompt"], "completion": row["completion"], "human_label": PEOPLE[row["label"]]}
        for i, row in enumerate(rows)
        if row["label"] in PEOPLE
    ]
    for start, name in enumerate(("gpt4", "llama2orig", "other")):
        answers = [{**row, "gpt4_label": row["human_label"]} for row in rows[start::3]]
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    return home


def run(*files):
    return run_python("benchmarks/judge_agreement.py", *files)


def test_each_judge_has_a_row_per_model_and_for_all_models(folder):
    done = run(*sorted(folder.iterdir()))
    assert done.returncode == 0, done.stderr
    parts = done.stdout.split("## ")[1:]
    assert [part.split(",")[0].split(" answers")[0] for part in parts] == ["gpt4", "llama2orig", "other", "all 65"]
    for part in parts:
        judges = [line.split("|")[1].strip() for line in part.splitlines() if line.startswith("| ")][2:]
        assert judges == [
            "rules", "xstest_strings", "advbench_strings", "scans_strings", "refusal_direction_strings", "gpt4_label",
        ]  # fmt: skip
        assert "| gpt4_label | 1.000 | 1.000 | 1.000 | 1.000 | 1.000 |" in part


def test_a_file_without_labels_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    done = run(tmp_path / "a.jsonl")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "no column 'human_label'" in done.stderr
