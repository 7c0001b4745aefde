"""The losses of three short runs (full-parameter, LoRA, QLoRA) equal those recorded in losses.json.

A change that intentionally changes them records new ones and gives the reason in its commit message:

    python tests/golden/test_golden_losses.py
"""

import json
import shutil
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RECORDED = HERE / "losses.json"
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    import conftest  # noqa: F401  one thread, and the path of the helpers

from small_runs import write_recipe
from tiny import make_model

from dcr_ds.cli import main

LORA = ["--refine.adapter", "lora", "--align.adapter", "lora"]
RUNS = {"full": [], "lora": LORA, "qlora": [*LORA, "--model.quantize", "nf4"]}
COMPILED = {"compile": ["--model.kernels", "compile"]}
STEPS = {
    "refine.max_steps": 4, "refine.target_gap": 2, "refine.patience": 9, "refine.learning_rate": 1e-3,
    "refine.lora.rank": 4, "align.global_batch": 5, "align.epochs": 1.6, "align.learning_rate": 1e-3,
    "align.lora.rank": 4,
}  # fmt: skip


def losses(name: str, folder: Path) -> dict[str, list[float]]:
    """The losses of all steps of both stages of a run, which always uses the same model and data."""
    model = make_model(
        folder / "model", layers=2, tied=False, hidden_size=64, intermediate_size=128, head_dim=16,
        initializer_range=0.05,
    )  # fmt: skip
    recipe = write_recipe(folder, model)
    steps = [word for field, value in STEPS.items() for word in (f"--{field}", str(value))]
    assert main(["train", str(recipe), *steps, *(RUNS | COMPILED)[name]]) == 0
    lines = {stage: (folder / "runs/run" / stage / "metrics.jsonl").read_text() for stage in ("refine", "align")}
    return {stage: [json.loads(line)["loss"] for line in text.splitlines()] for stage, text in lines.items()}


@pytest.mark.parametrize("name", RUNS)
def test_losses_equal_those_recorded(name, tmp_path):
    expected, measured = json.loads(RECORDED.read_text())[name], losses(name, tmp_path)
    assert {stage: len(values) for stage, values in expected.items()} == {"refine": 4, "align": 4}
    for stage, values in expected.items():
        assert measured[stage] == pytest.approx(values, rel=1e-4), stage
        assert max(values) > 1.01 * min(values)  # the losses change over the steps


@pytest.mark.slow  # compiles for a minute or more
@pytest.mark.timeout(900)
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_have_the_same_losses(tmp_path):
    expected = json.loads(RECORDED.read_text())["full"]
    for stage, values in losses("compile", tmp_path).items():
        assert values == pytest.approx(expected[stage], rel=1e-4), stage


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        recorded = {name: losses(name, Path(folder) / name) for name in RUNS}
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
