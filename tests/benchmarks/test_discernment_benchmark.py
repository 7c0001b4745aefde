"""The discernment benchmark measures the models of runs, each of them once."""

import json

from scripts import read_rows, run_python
from tiny import make_model

from dcr_ds.recipe.layout import RunFolder


def test_rows_of_two_runs_and_their_summary(tmp_path):
    for seed in (0, 1):
        run = RunFolder(tmp_path / f"seed-{seed}")
        for number, stage in enumerate(("control", "align")):
            run.stage(stage).folder.mkdir(parents=True)
            make_model(run.stage(stage).model, layers=1, tied=False, seed=2 * seed + number)
    runs = [tmp_path / "seed-0", tmp_path / "seed-1"]
    command = ["benchmarks/discernment.py", *runs, "--sets", "builtin", "--out", tmp_path / "kept"]
    done = run_python(*command, "--csv", tmp_path / "rows.csv")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = read_rows(tmp_path / "rows.csv")
    assert [(row["run"], row["model"], row["reading"]) for row in rows] == [
        (f"seed-{seed}", model, reading)
        for seed in (0, 1)
        for model in ("control", "aligned")
        for reading in ("log_odds", "margin")
    ]
    assert all(row["harmless"] == row["harmful"] == "63" and 0 <= float(row["auc"]) <= 1 for row in rows)
    assert "builtin, log_odds, 63 harmless and 63 harmful prompts, 2 runs" in done.stdout
    mean = (float(rows[2]["auc"]) + float(rows[6]["auc"])) / 2
    assert f"aligned: auc {mean:.3f}" in done.stdout and "aligned less control: auc" in done.stdout
    compared = run_python(*command, "--models", "aligned", "--against-first")
    assert "seed-1 less seed-0: auc" in compared.stdout, compared.stderr[-3000:]
    answers = tmp_path / "kept/seed-0/aligned/builtin.jsonl"
    assert len(answers.read_text().splitlines()) == 126 and "margin" in json.loads(answers.read_text().splitlines()[0])
    before = answers.stat().st_mtime_ns
    assert run_python(*command).returncode == 0 and answers.stat().st_mtime_ns == before
