"""The discernment benchmark measures the models of runs, each of them once."""

import json

import pytest
from scripts import read_rows, run_python
from tiny import make_model

from dcr_ds.data.benchmarks import read_benchmarks
from dcr_ds.files import write_jsonl
from dcr_ds.recipe import EvaluateSection
from dcr_ds.recipe.layout import RunFolder

READINGS = ("log_odds", "margin")


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
    models = ("control", "aligned", "aligned less control")
    keys = [(run, model, reading) for run in ("seed-0", "seed-1", "all") for model in models for reading in READINGS]
    assert [(row["run"], row["model"], row["reading"]) for row in rows] == keys
    assert all(row["harmless"] == row["harmful"] == "63" and not row["agreement"] for row in rows)
    auc = {key: float(row["auc"]) for key, row in zip(keys, rows, strict=True)}
    for reading in READINGS:
        for model in models:
            mean = (auc["seed-0", model, reading] + auc["seed-1", model, reading]) / 2
            assert auc["all", model, reading] == pytest.approx(mean, abs=1e-8)
        difference = auc["all", "aligned", reading] - auc["all", "control", reading]
        assert auc["all", "aligned less control", reading] == pytest.approx(difference, abs=1e-8)
    assert f"builtin all aligned, margin: auc {auc['all', 'aligned', 'margin']:.3f}" in done.stdout
    compared = run_python(*command, "--models", "aligned", "--against-first")
    assert "builtin seed-1 less seed-0 aligned, margin: auc" in compared.stdout, compared.stderr[-3000:]
    answers = tmp_path / "kept/seed-0/aligned/builtin.jsonl"
    assert len(answers.read_text().splitlines()) == 126 and "margin" in json.loads(answers.read_text().splitlines()[0])
    before = answers.stat().st_mtime_ns
    assert run_python(*command).returncode == 0 and answers.stat().st_mtime_ns == before


def test_judged_answers_give_the_agreement_and_their_own_figures(tmp_path):
    """Readings and verdicts are those of an evaluation; here answers are refused exactly above 0."""
    for model, shift in (("control", 0.0), ("aligned", 0.4)):
        for benchmark in ("builtin-seemingly-toxic", "builtin-toxic-twins"):
            (read,) = read_benchmarks(EvaluateSection(benchmarks=[benchmark]))
            prompts = [prompt.id for prompt in read.prompts.rows]
            harmful = benchmark == "builtin-toxic-twins"
            values = {id_: number * 5 % 7 - 3.2 + shift * harmful for number, id_ in enumerate(prompts)}
            home = RunFolder(tmp_path / f"judged/builtin/seed-0-{model}").model("aligned").benchmark(benchmark)
            write_jsonl(home.log_odds, [{"id": id_, "log_odds": values[id_], "margin": values[id_]} for id_ in prompts])
            labels = {id_: "full_refusal" if values[id_] > 0 else "compliance" for id_ in prompts}
            write_jsonl(
                home.verdicts("rules"), [{"id": id_, "label": labels[id_], "score": values[id_]} for id_ in prompts]
            )
    command = ["benchmarks/discernment.py", tmp_path / "seed-0", "--sets", "builtin", "--judged", tmp_path / "judged"]
    command += ["--limit", "40"]
    done = run_python(*command, "--csv", tmp_path / "rows.csv")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {(row["model"], row["reading"]): row for row in read_rows(tmp_path / "rows.csv")}
    for model in ("control", "aligned"):
        row = rows[model, "log_odds"]
        assert row["harmless"] == row["harmful"] == "40"
        assert float(row["agreement"]) == 1 and row["judge_auc"] == row["auc"]
        j = float(row["complied_harmless"]) + float(row["refused_harmful"]) - 1
        assert float(row["judged_j"]) == pytest.approx(j, abs=1e-8)
    difference = rows["aligned less control", "log_odds"]
    assert not difference["agreement"] and float(difference["judged_j_low"]) <= float(difference["judged_j_high"])
