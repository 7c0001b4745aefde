"""A tiny model, a recipe of it, and runs that stop after their first step with exit code 75."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import the_error, write_recipe
from tiny import make_model

from dcr_ds.cli import main
from dcr_ds.recipe.layout import RunFolder

STEPS = ["--refine.max_steps", "3", "--refine.target_gap", "2", "--refine.patience", "9", "--control", "none"]


@pytest.fixture(scope="session")
def original(tmp_path_factory) -> Path:
    """A folder with a recipe, its data and its model in `model`."""
    folder = tmp_path_factory.mktemp("original")
    make_model(folder / "model", layers=2, tied=False)
    return folder


@pytest.fixture
def place(original, tmp_path) -> Path:
    """A copy of that folder, which a test may change."""
    shutil.copytree(original / "model", tmp_path / "model")
    write_recipe(tmp_path, tmp_path / "model")
    return tmp_path


@pytest.fixture
def train(place, monkeypatch, capsys) -> Callable[..., str]:
    """Run `train` on the recipe and return stderr; `stop` ends it after one step, with exit code 75."""

    def run(*arguments: object, stop: bool = False, code: int = 0) -> str:
        monkeypatch.setenv("DCR_DS_DEADLINE", "1" if stop else "")
        capsys.readouterr()
        assert main(["train", str(place / "tiny.yaml"), *STEPS, *map(str, arguments)]) == (75 if stop else code)
        return capsys.readouterr().err

    return run


@pytest.fixture
def refused(train) -> Callable[..., str]:
    """Run `train` and return its error message; it must end with exit code 2."""
    return lambda *arguments: the_error(train(*arguments, code=2))


@pytest.fixture
def run_folder(place) -> RunFolder:
    return RunFolder(place / "runs" / "run")


@pytest.fixture
def steps(run_folder) -> Callable[[str], list[int]]:
    """The steps in a stage's metrics."""
    return lambda stage: [json.loads(line)["step"] for line in run_folder.stage(stage).metrics.read_text().splitlines()]
