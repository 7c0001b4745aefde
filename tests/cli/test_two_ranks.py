"""A failure on one of two ranks ends both: no hang, a single message, and a non-zero exit code."""

import math
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from processes import torchrun
from safetensors.torch import load_file, save_file
from tiny import one_thread_environment

TRAIN = Path(__file__).parents[2] / "train.py"
LONGEST_SECONDS = 120


def bad_data(model, folder):
    path = folder / "bad.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt" "b"}\n')
    return ["--data.toxic", str(path)], None, f"data.toxic: {path}, line 2, column 11: not valid JSON"


def loss_not_finite(model, folder):
    copy = shutil.copytree(model, folder / "model")
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][:] = math.nan
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return ["--model.source", str(copy)], None, "refine: the loss is nan at step 1"


def disk_full(model, folder):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    return [], limit, f"{folder}/run: cannot be written"


@pytest.mark.parametrize("mistake", [bad_data, loss_not_finite, disk_full])
def test_failure_ends_both_ranks(recipe, model, tmp_path, mistake):
    options, preexec, expected = mistake(model, tmp_path)
    process = subprocess.Popen(
        [*torchrun(2), str(TRAIN), recipe, "--output", str(tmp_path), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=one_thread_environment(),
        preexec_fn=preexec,
    )
    try:  # returns when no process has the pipes open, so that the launcher and both ranks have ended
        _, stderr = process.communicate(timeout=LONGEST_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher stops its ranks
        process.communicate()
        raise
    assert process.returncode != 0
    messages = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1 and messages[0].startswith(f"error: {expected}"), stderr
    assert f'File "{TRAIN}"' not in stderr, stderr  # the launcher prints a stack trace of its own
    assert not (tmp_path / "run/refine/model").exists()
