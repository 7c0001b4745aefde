"""The discernment benchmark measures the models of runs and baselines, each of them once."""

import numpy as np
import pytest
from scripts import read_rows, run_python
from tiny import make_model

from dcr_ds.cli import main
from dcr_ds.data.benchmarks import read_benchmarks
from dcr_ds.data.kept import kept_rows
from dcr_ds.discernment import raised_log_odds
from dcr_ds.files import read_jsonl, write_jsonl
from dcr_ds.recipe import EvaluateSection
from dcr_ds.recipe.layout import RunFolder

READINGS = ("log_odds", "margin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs; the readings of their models are in `kept` after the first test."""
    folder = tmp_path_factory.mktemp("discernment")
    for seed in (0, 1):
        run = RunFolder(folder / f"seed-{seed}")
        for number, stage in enumerate(("control", "align")):
            run.stage(stage).folder.mkdir(parents=True)
            make_model(run.stage(stage).model, layers=1, tied=False, seed=2 * seed + number)
    return folder


def test_rows_of_two_runs_and_their_summary(folder, tmp_path):
    runs = [folder / "seed-0", folder / "seed-1"]
    command = ["benchmarks/discernment.py", *runs, "--sets", "builtin", "--out", folder / "kept"]
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


def test_a_baseline_is_compared_with_the_aligned_model_of_a_run(folder, tmp_path):
    """Prompts that it was made from are measured only when it is asked; kept readings are not measured again."""
    run, knob = folder / "seed-0", tmp_path / "knob"
    assert (
        main(["baseline", "knob", str(RunFolder(run).stage("align").model), "--strength", "1.5", "--out", str(knob)])
        == 0
    )
    (leaked, *_) = read_benchmarks(EvaluateSection(benchmarks=["builtin-toxic-twins"]))[0].prompts.rows
    write_jsonl(knob / "prompts.jsonl", kept_rows({"harmful": [leaked]}))
    command = ["benchmarks/discernment.py", run, knob, "--models", "aligned", "--against-first", "--sets", "builtin"]
    command += ["--out", folder / "kept"]
    files = [folder / "kept" / name / "aligned" / "builtin.jsonl" for name in ("seed-0", "knob")]
    before = files[0].stat().st_mtime_ns
    done = run_python(*command)
    assert done.returncode == 2 and f"{knob} (harmful) and builtin-toxic-twins: 1 exact" in done.stderr
    assert "Traceback" not in done.stderr and not files[1].exists()
    done = run_python(*command, "--allow-leakage")
    assert "builtin knob less seed-0 aligned, margin: auc" in done.stdout, done.stderr[-3000:]
    base, raised = (read_jsonl(file) for file in files)
    assert len(base) == len(raised) == 126 and "margin" in base[0] and files[0].stat().st_mtime_ns == before
    figures = [np.array([row[figure] for row in base]) for figure in ("log_odds", "first_token")]
    assert [row["log_odds"] for row in raised] == pytest.approx(raised_log_odds(*figures, 1.5).tolist(), abs=1e-4)


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
