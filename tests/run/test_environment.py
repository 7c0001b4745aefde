"""environment.json records where a run happened, and no secret."""

import json

from dcr_ds.run.environment import describe_environment


def test_slurm_job_is_recorded(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert "slurm" not in describe_environment("CPU", 1)
    for name, value in {"JOB_ID": "17", "JOB_NODELIST": "node[1-2]", "RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert describe_environment("CPU", 2)["slurm"] == {"job": "17", "nodes": "node[1-2]", "restarts": "1"}


def test_no_secret_of_the_environment_is_recorded(monkeypatch):
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "SLURM_JWT", "DCR_DS_ANYTHING", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "a-secret-value")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert "a-secret-value" not in json.dumps(describe_environment("CPU", 1))
