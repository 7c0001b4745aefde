"""The public entry points, as a user launches them: DeepSpeed's launcher on two ranks, plain python, the dry run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from processes import ROOT, as_ranks, free_port
from safetensors.torch import load_file
from tiny import make_model, one_thread_environment
from transformers import AutoModelForCausalLM, AutoTokenizer

from dcr_ds.cli import main

STEPS = {"refine": 4, "align": 5}
pytestmark = pytest.mark.timeout(600)  # the first test that uses a fixture also waits for its launches


def deepspeed(*arguments: str, ranks: int) -> list[str]:
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    return [launcher, "--num_gpus", str(ranks), "--master_port", free_port(), "train.py", *arguments]


def start(command: list[str], **environment: str) -> subprocess.Popen:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        command, cwd=ROOT, env=one_thread_environment(PATH=path, **environment), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process: subprocess.Popen, code: int = 0, timeout: float = 150) -> str:
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == code, output[-3000:]
    return output


def losses(run: Path, stage: str) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / stage / "metrics.jsonl").read_text().splitlines()]


def kill_after(process: subprocess.Popen, run: Path, stage: str, step: int, number: int) -> None:
    """Send a signal to the whole process group once a step is in metrics.jsonl; SIGKILL only after a checkpoint."""
    metrics, latest = run / stage / "metrics.jsonl", run / stage / "checkpoints" / "latest"
    deadline = time.monotonic() + 120
    while not (
        metrics.is_file()
        and len(metrics.read_text().splitlines()) >= step
        and (number != signal.SIGKILL or latest.is_file())
    ):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-3000:]
        time.sleep(0.02)
    os.killpg(process.pid, number)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny", tied=False)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, model) -> str:
    """A small run of both stages that writes a checkpoint every other step."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    values = {
        "name": "tiny",
        "stages": ["refine", "align"],
        "model": {"source": str(model)},
        "data": {"general": {"rows": 30}, "refusals": {"rows": 20}},
        "refine": {"layer": 2, "global_batch": 8, "max_steps": STEPS["refine"], "retain_batch": 3, "patience": 99,
                   "on_failure": "continue",
                   "learning_rate": 1e-3, "pairs": "matched", "weight_decay": 0.1},
        "align": {"global_batch": 10, "learning_rate": 1e-3, "max_length": 512, "weight_decay": 1.0},
        "checkpoint": {"every_steps": 2},
        "deepspeed": "ds_configs/zero3.json",
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, recipe) -> Path:
    """An uninterrupted run on two ranks under ZeRO-3, through `deepspeed train.py`."""
    output = tmp_path_factory.mktemp("two")
    finish(start(deepspeed(recipe, "--output", str(output), ranks=2)))
    return output / "tiny"


def test_plain_transformers_loads_models_of_a_zero3_run(two_ranks, model):
    assert len(losses(two_ranks, "refine")) == STEPS["refine"]
    assert len(losses(two_ranks, "align")) == STEPS["align"]
    base = load_file(model / "model.safetensors")
    for stage in ("refine", "align"):
        folder = two_ranks / stage / "model"
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert AutoTokenizer.from_pretrained(folder).chat_template
        assert {name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()} == {
            name: tensor.shape for name, tensor in base.items()
        }
        assert all(torch.isfinite(parameter).all() for parameter in loaded.parameters())
    refined, aligned = (load_file(two_ranks / stage / "model" / "model.safetensors") for stage in ("refine", "align"))
    assert torch.equal(refined["model.layers.3.mlp.up_proj.weight"], base["model.layers.3.mlp.up_proj.weight"])
    assert not torch.equal(refined["model.layers.1.mlp.up_proj.weight"], base["model.layers.1.mlp.up_proj.weight"])
    assert not torch.equal(aligned["model.layers.3.mlp.up_proj.weight"], base["model.layers.3.mlp.up_proj.weight"])


@pytest.fixture(scope="module")
def killed(tmp_path_factory, recipe) -> Path:
    """A run on two ranks that was killed in stage 1, resumed, and killed in stage 2."""
    output = tmp_path_factory.mktemp("killed")
    for stage, step in (("refine", 3), ("align", 3)):
        process = start([*as_ranks(2), "train.py", recipe, "--output", str(output)])
        kill_after(process, output / "tiny", stage, step, signal.SIGKILL)
        process.communicate()
    return output


def test_killed_run_resumes_bit_for_bit(two_ranks, killed, recipe, tmp_path):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    output = finish(start([*as_ranks(2), "train.py", recipe, "--output", str(tmp_path)]))
    assert "resuming from" in output
    for stage in ("refine", "align"):
        assert losses(tmp_path / "tiny", stage) == losses(two_ranks, stage)
        weights = (run / stage / "model" / "model.safetensors" for run in (two_ranks, tmp_path / "tiny"))
        first, second = (file.read_bytes() for file in weights)
        assert first == second


def test_run_of_two_ranks_resumes_on_one(two_ranks, killed, recipe, tmp_path):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    command = [sys.executable, "-X", "importtime", "train.py", recipe, "--output", str(tmp_path)]
    output = finish(start(command))
    assert "saved by 2 ranks under ZeRO stage 3; converting it for 1" in output
    assert losses(tmp_path / "tiny", "align") == pytest.approx(losses(two_ranks, "align"), rel=1e-5)
    resumed, expected = (load_file(run / "align/model/model.safetensors") for run in (tmp_path / "tiny", two_ranks))
    assert torch.allclose(resumed["model.norm.weight"], expected["model.norm.weight"], rtol=1e-4)  # does not decay
    # what a run without adapters does not need and takes seconds to import
    imported = {line.rpartition("|")[2].strip() for line in output.splitlines() if line.startswith("import time:")}
    assert "deepspeed" in imported and not imported & {"peft", "bitsandbytes", "mlflow.version"}


@pytest.mark.parametrize("zero", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_run_of_one_rank_resumes_on_two(two_ranks, recipe, tmp_path, zero):
    options = [recipe, "--output", str(tmp_path), "--deepspeed", f"ds_configs/zero{zero}.json"]
    process = start([sys.executable, "train.py", *options])
    kill_after(process, tmp_path / "tiny", "align", 3, signal.SIGKILL)
    process.communicate()
    output = finish(start([*as_ranks(2), "train.py", *options]))
    assert f"saved by 1 ranks under ZeRO stage {zero}; converting it for 2" in output
    assert losses(tmp_path / "tiny", "align") == pytest.approx(losses(two_ranks, "align"), rel=1e-5)


def test_sigterm_ends_with_code_75_and_the_run_resumes(two_ranks, recipe, tmp_path, capsys):
    """One process with ZeRO-2, without launcher and MPI. Its losses agree with two ranks under ZeRO-3."""
    command = [sys.executable, "train.py", recipe, "--output", str(tmp_path), "--deepspeed", "ds_configs/zero2.json"]
    process = start(command)
    kill_after(process, tmp_path / "tiny", "align", 1, signal.SIGTERM)
    output = finish(process, code=75)
    assert "saved in" in output and "Traceback" not in output
    finish(start(command))
    for stage in ("refine", "align"):
        assert losses(tmp_path / "tiny", stage) == pytest.approx(losses(two_ranks, stage), rel=2e-3)
    assert main(["train", *command[2:]]) == 0
    again = capsys.readouterr().err
    assert "refine: already done" in again and "align: already done" in again


HIDE_KERNELS = """\
import importlib.machinery, importlib.metadata, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "kernels":  # only the installed package is hidden; Python still finds the folder of this project
            rest = [entry for entry in sys.path if "site-packages" not in entry]
            spec = importlib.machinery.PathFinder.find_spec(name, rest)
            if spec is None:
                raise ModuleNotFoundError(name)
            return spec
sys.meta_path.insert(0, Hidden())
version = importlib.metadata.version
def without(name):
    if name == "kernels":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = without
"""


def test_dry_run_from_the_root_without_hugging_faces_kernels(model, tmp_path):
    """The folder kernels/ is not taken for the package of that name. The other launches have the package."""
    (tmp_path / "sitecustomize.py").write_text(HIDE_KERNELS)
    command = deepspeed("--model.source", str(model), "--refine.layer", "2", "--dry-run", ranks=1)
    output = finish(start(command, PYTHONPATH=str(tmp_path)))
    assert "refine: parameters:" in output and "not loaded" in output
