"""All files of a run are standard JSON without NaN, even if a value cannot be measured."""

import json

import pytest
from small_runs import ROWS, write_rows


def check_json(folder):
    """Parse every file strictly; returns the names of the files."""

    def refuse(name):
        pytest.fail(f"{path}: {name} is not JSON")

    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl"))
    for path in paths:
        text = path.read_text()
        for document in text.splitlines() if path.suffix == ".jsonl" else [text]:
            json.loads(document, parse_constant=refuse)
    return {path.name for path in paths}


def test_a_run_whose_auc_cannot_be_measured(place, train, run_folder):
    """All held-out prompts belong to one pair, so that no others are left for the class means."""
    for name in ("seemingly_toxic", "toxic"):
        rows = [{**row, "pair": f"pair {number // 2}"} for number, row in enumerate(ROWS[name])]
        write_rows(place / f"{name}.jsonl", rows)
    train("--stages", "[refine,align]", stop=True)
    assert {"metrics.jsonl", "manifest.json", "identity.json"} <= check_json(run_folder.folder)
    train("--stages", "[refine,align]")
    assert {"summary.json", "metrics.jsonl", "config.json"} <= check_json(run_folder.folder)
    summary = json.loads(run_folder.stage("refine").summary.read_text())
    assert summary["start"]["auc"] is None and summary["start"]["gap"] is not None
