"""Small data and a recipe for them; helpers that compare files and read the error message of a command."""

import hashlib
import json
from pathlib import Path

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
refine: {{layer: 1, global_batch: 4, retain_batch: 2, max_steps: 1, on_failure: continue,
  scale: 32, learning_rate: 2.0e-5, retain_weight: 1, patience: 5, measure_every: 1}}
align: {{global_batch: 12}}
evaluate:
  models: [aligned]
  benchmarks: [{{name: asked, prompts: {data}/asked.jsonl, wanted: comply}}]
  general: {data}/measured.jsonl
  max_new_tokens: 2
output: {output}
"""


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_recipe(folder: Path, model: Path) -> Path:
    """Write the data and a recipe to a folder; a run takes a second and writes to `<folder>/runs/run`."""
    for name, rows in ROWS.items():
        write_rows(folder / f"{name}.jsonl", rows)
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(model=model, data=folder, output=folder / "runs"))
    return path


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file of a folder with the time it was written and its hash."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def the_error(stderr: str) -> str:
    """The error message of a failed command, of which there must be one, without a stack trace."""
    assert "Traceback" not in stderr, stderr
    before, *messages = ("\n" + stderr).split("\nerror: ")
    assert len(messages) == 1, stderr
    return messages[0].strip()
