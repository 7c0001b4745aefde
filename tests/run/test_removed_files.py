"""No file is mapped or open when it is removed; on NFS its folder could not be removed ("Directory not empty")."""

import os
import shutil
from pathlib import Path

import pytest
from small_runs import write_recipe
from tiny import make_model

from dcr_ds.cli import main

LORA = ["--refine.adapter", "lora", "--align.adapter", "lora"]
STEPS = ["--refine.max_steps", "4", "--refine.target_gap", "2", "--refine.patience", "9"]
STEPS += ["--checkpoint.every_steps", "1"]


def in_use(place: Path) -> list[str]:
    """Files at or below a path that this process has mapped or opened."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [line[5] for line in lines if len(line) == 6]
    opened = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            opened.append(os.readlink(entry))
        except FileNotFoundError:  # the folder itself, open while it is listed
            continue
    inside = f"{place.absolute()}{os.sep}"
    return sorted({path for path in [*mapped, *opened] if (path + os.sep).startswith(inside)})


@pytest.fixture
def removed(monkeypatch):
    """Fail if a removed file is in use; returns the removed paths."""
    paths: list[Path] = []
    rmtree, unlink = shutil.rmtree, Path.unlink

    def check(path):
        if Path(path).exists():
            paths.append(Path(path))
            assert not in_use(Path(path)), f"in use while {path} is removed: {in_use(Path(path))}"

    def checked_rmtree(path, *arguments, **options):
        check(path)
        rmtree(path, *arguments, **options)

    def checked_unlink(path, *arguments, **options):
        if path.suffix == ".safetensors":
            check(path)
        unlink(path, *arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", checked_rmtree)
    monkeypatch.setattr(Path, "unlink", checked_unlink)
    return paths


def test_files_in_use_are_detected(tmp_path):
    folder = make_model(tmp_path / "model", layers=1)
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as stream:
        tensor = stream.get_tensor("model.norm.weight")
    assert in_use(folder) == [str(folder / "model.safetensors")]  # mapped as long as the tensor exists
    del tensor
    assert in_use(folder) == []
    with (folder / "config.json").open():
        assert in_use(folder) == [str(folder / "config.json")]


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("adapter", [[], LORA])
def test_a_run_and_an_export(tmp_path, monkeypatch, removed, adapter, model_type):
    """Stopped after each step, so that checkpoints are loaded, rotated and removed; then exported from a checkpoint."""
    source = make_model(tmp_path / "source", model_type, layers=2, tied=False)
    recipe = str(write_recipe(tmp_path, source))
    run = tmp_path / "runs" / "run"
    monkeypatch.setenv("DCR_DS_DEADLINE", "1")
    for _ in range(3):
        assert main(["train", recipe, *STEPS, *adapter]) == 75
    monkeypatch.delenv("DCR_DS_DEADLINE")
    assert main(["export", str(run), "--merge", "--out", str(tmp_path / "exported")]) == 0
    assert main(["train", recipe, *STEPS, *adapter]) == 0
    assert (run / "align" / "model" / "config.json").is_file()
    assert any("step-" in path.name for path in removed) and any(path.name == "checkpoints" for path in removed)
