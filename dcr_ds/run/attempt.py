"""The attempt of a SLURM job that this process belongs to: what is done of the run when it begins."""

import os
from pathlib import Path

from dcr_ds.files import write_atomically
from dcr_ds.recipe.layout import MODELS, STAGE_OF_MODEL, RunFolder, StageFolder

ATTEMPT = "DCR_DS_ATTEMPT"  # folder of the attempt's logs; slurm/job.sh sets it


def record_progress(run: RunFolder) -> None:
    """Write what is done of a run for slurm/job.sh, which counts the attempts between which it is the same. Rank 0.

    Does nothing outside the jobs of slurm/dcr.sh.
    """
    if attempt := os.environ.get(ATTEMPT):
        write_atomically(Path(attempt) / "progress", progress_of(run) + "\n")


def progress_of(run: RunFolder) -> str:
    """Describe in one line what a run need not repeat: stages, their newest checkpoints, bytes of the evaluation."""
    stages = [f"{stage} {_progress_of_stage(run.stage(stage))}" for stage in STAGE_OF_MODEL.values()]
    files = (path for model in MODELS for path in run.model(model).folder.rglob("*") if path.is_file())
    return ", ".join([*stages, f"evaluate {sum(path.stat().st_size for path in files)} bytes"])


def _progress_of_stage(stage: StageFolder) -> str:
    if stage.is_done:
        return "done"
    folders = stage.checkpoints.iterdir() if stage.checkpoints.is_dir() else []
    complete = [folder.name for folder in folders if folder.is_dir() and not folder.suffix]  # not .partial
    return max(complete, default="not begun")
