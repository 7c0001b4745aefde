"""A tiny model, small data files, a recipe of both and a finished run; and what a command that fails must look like."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import make_model

from dcr_ds.cli import main

TOPICS = ("apples", "bridges", "clouds", "doors", "engines", "ferns")
ROWS = {
    "seemingly_toxic": [{"prompt": f"paint {topic}", "pair": topic} for topic in TOPICS],
    "toxic": [{"prompt": f"wreck {topic}", "pair": topic} for topic in TOPICS],
    "general": [{"prompt": f"describe {topic}", "response": "Here it is."} for topic in TOPICS],
    "refusals": [{"prompt": f"burn {topic}", "response": "I will not."} for topic in TOPICS],
    "asked": [{"prompt": f"count {topic}"} for topic in TOPICS[:2]],
    "measured": [{"prompt": f"name {topic}", "response": "Yes."} for topic in TOPICS[:2]],
}
RECIPE = """\
model: {{source: {model}}}
stages: [refine, align]
data:
  seemingly_toxic: {data}/seemingly_toxic.jsonl
  toxic: {data}/toxic.jsonl
  general: {data}/general.jsonl
  refusals: {data}/refusals.jsonl
refine: {{layer: 1, global_batch: 4, retain_batch: 2, max_steps: 1}}
align: {{global_batch: 12}}
evaluate:
  models: [aligned]
  benchmarks: [{{name: asked, prompts: {data}/asked.jsonl, wanted: comply}}]
  general: {data}/measured.jsonl
  max_new_tokens: 2
deepspeed: ds_configs/zero0.json
output: {output}
"""


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny", layers=2, tied=False)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory, model) -> str:
    """A recipe of the tiny model and data whose run takes a second; it writes into `<its folder>/runs/run`."""
    home = tmp_path_factory.mktemp("recipe")
    for name, rows in ROWS.items():
        write_rows(home / f"{name}.jsonl", rows)
    path = home / "tiny.yaml"
    path.write_text(RECIPE.format(model=model, data=home, output=home / "runs"))
    return str(path)


@pytest.fixture(scope="session")
def finished_run(recipe) -> Path:
    """The run folder of the recipe, both stages done."""
    assert main(["train", recipe]) == 0
    return Path(recipe).parent / "runs" / "run"


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file of a folder with the time it was written and its hash."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def the_error(stderr: str) -> str:
    """The one error message of a failed command; no stack trace beside it."""
    assert "Traceback" not in stderr, stderr
    before, *messages = ("\n" + stderr).split("\nerror: ")
    assert len(messages) == 1, stderr
    return messages[0].strip()


@pytest.fixture
def failing(recipe, capsys) -> Callable[..., str]:
    """Run `train RECIPE` with more arguments, and give its error message; it must end with the code."""

    def run(*arguments: object, code: int = 2, start_from: str = recipe) -> str:
        capsys.readouterr()
        assert main(["train", start_from, *map(str, arguments)]) == code
        return the_error(capsys.readouterr().err)

    return run


@pytest.fixture
def refused(failing, finished_run) -> Callable[..., str]:
    """As `failing`, and the finished run of the recipe is not touched."""

    def run(*arguments: object, start_from: str | None = None) -> str:
        before = snapshot(finished_run)
        message = failing(*arguments, **({"start_from": start_from} if start_from else {}))
        assert snapshot(finished_run) == before
        return message

    return run
