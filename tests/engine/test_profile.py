"""profile_steps writes a trace and a table of the steps."""

import json
import sys

from processes import run_command
from tiny import make_model


def test_profile_has_a_trace_and_a_table(tmp_path):
    model = make_model(tmp_path / "model", layers=2, tied=False)
    values = {
        "model.source": model,
        "output": tmp_path,
        "stages": "[refine]",
        "profile_steps": 1,
        "refine.layer": 1,
        "refine.max_steps": 4,
        "refine.on_failure": "continue",
        "refine.patience": 9,
        "refine.target_gap": 2,
        "refine.global_batch": 4,
        "refine.retain_batch": 2,
    }
    words = [str(word) for name, value in values.items() for word in (f"--{name}", value)]
    run_command(sys.executable, "train.py", *words)
    folder = tmp_path / "smollm2-135m" / "refine" / "profile"
    names = {event.get("name") for event in json.loads((folder / "trace.json").read_text())["traceEvents"]}
    assert {"forward", "backward", "optimizer"} <= names
    table = {line[:24].strip(): float(line[24:34]) for line in (folder / "table.txt").read_text().splitlines()[1:]}
    parts = [table[part] for part in ("forward", "backward", "optimizer", "data, loss and the rest")]
    assert all(seconds > 0 for seconds in parts)
    assert abs(sum(parts) - table["total"]) < 1e-3
