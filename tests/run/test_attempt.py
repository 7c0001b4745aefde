"""What slurm/job.sh compares between attempts: it changes whenever the run has saved something, and only then."""

import os

from dcr_ds.recipe.layout import RunFolder
from dcr_ds.run.attempt import progress_of, record_progress


def test_progress_is_what_need_not_be_repeated(tmp_path):
    run = RunFolder(tmp_path)
    seen = [progress_of(run)]
    assert seen == ["control not begun, refine not begun, align not begun, evaluate 0 bytes"]
    (run.stage("refine").checkpoints / "step-00000005").mkdir(parents=True)
    (run.stage("refine").checkpoints / "step-00000010.partial").mkdir()
    seen.append(progress_of(run))
    (run.stage("refine").checkpoints / "step-00000010").mkdir()
    seen.append(progress_of(run))
    run.stage("refine").summary.write_text("{}")
    seen.append(progress_of(run))
    answers = run.model("aligned").benchmark("asked").generations
    answers.parent.mkdir(parents=True)
    answers.write_text("{}\n")
    seen.append(progress_of(run))
    assert [text.split(", ")[1] for text in seen[1:4]] == [
        "refine step-00000005",
        "refine step-00000010",
        "refine done",
    ]
    assert seen[4].endswith("evaluate 3 bytes") and len(set(seen)) == len(seen)


def test_logs_and_an_unfinished_checkpoint_are_no_progress(tmp_path):
    run = RunFolder(tmp_path)
    before = progress_of(run)
    run.stage("refine").folder.mkdir()
    run.stage("refine").metrics.write_text("{}\n")
    (run.stage("refine").checkpoints / "step-00000005.partial").mkdir(parents=True)
    assert progress_of(run) == before


def test_it_is_recorded_in_jobs_of_slurm_only(tmp_path, monkeypatch):
    monkeypatch.delenv("DCR_DS_ATTEMPT", raising=False)
    record_progress(RunFolder(tmp_path))
    assert not os.listdir(tmp_path)
    monkeypatch.setenv("DCR_DS_ATTEMPT", str(tmp_path / "attempt"))
    record_progress(RunFolder(tmp_path))
    assert (tmp_path / "attempt/progress").read_text() == progress_of(RunFolder(tmp_path)) + "\n"
