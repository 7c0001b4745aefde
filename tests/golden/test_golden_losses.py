"""The losses of three short runs, full-parameter, LoRA and QLoRA, are those that were kept in losses.json.

A change that moves them on purpose keeps the new ones, and says why in its commit:

    python tests/golden/test_golden_losses.py
"""

import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KEPT = HERE / "losses.json"
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    import conftest  # noqa: F401  one thread, and where the helpers are

from small_runs import write_recipe
from tiny import make_model

from dcr_ds.cli import main

LORA = ["--refine.adapter", "lora", "--align.adapter", "lora"]
RUNS = {"full": [], "lora": LORA, "qlora": [*LORA, "--model.quantize", "nf4"]}
STEPS = {
    "refine.max_steps": 4, "refine.target_gap": 2, "refine.patience": 9, "refine.learning_rate": 1e-3,
    "refine.lora.rank": 4, "align.global_batch": 5, "align.epochs": 1.6, "align.learning_rate": 1e-3,
    "align.lora.rank": 4,
}  # fmt: skip


def losses(name: str, folder: Path) -> dict[str, list[float]]:
    """The loss of every step of both stages of a run, from a model and data that are the same everywhere."""
    model = make_model(
        folder / "model", layers=2, tied=False, hidden_size=64, intermediate_size=128, head_dim=16,
        initializer_range=0.05,
    )  # fmt: skip
    recipe = write_recipe(folder, model)
    steps = [word for field, value in STEPS.items() for word in (f"--{field}", str(value))]
    assert main(["train", str(recipe), *steps, *RUNS[name]]) == 0
    lines = {stage: (folder / "runs/run" / stage / "metrics.jsonl").read_text() for stage in ("refine", "align")}
    return {stage: [json.loads(line)["loss"] for line in text.splitlines()] for stage, text in lines.items()}


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_those_kept(name, tmp_path):
    kept, found = json.loads(KEPT.read_text())[name], losses(name, tmp_path)
    assert {stage: len(each) for stage, each in kept.items()} == {"refine": 4, "align": 4}
    for stage, each in kept.items():
        assert found[stage] == pytest.approx(each, rel=1e-4), stage
        assert max(each) > 1.01 * min(each)  # the runs do learn


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = {name: losses(name, Path(folder) / name) for name in RUNS}
    KEPT.write_text(json.dumps(found, indent=1) + "\n")
