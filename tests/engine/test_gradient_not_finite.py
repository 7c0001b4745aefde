"""A non-finite gradient with a finite loss ends the stage on all ranks before a weight changes or is saved."""

import json
from pathlib import Path

import pytest
from processes import as_ranks, run_command

SCRIPT = Path(__file__).with_name("poisoned_ranks.py")
CASES = 4 * 2 * 3  # ZeRO stages, dtypes, factors


def strict(text):
    """Parse standard JSON, without NaN and Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_rank_stops_before_it_saves(tmp_path, world_size):
    run_command(*as_ranks(world_size), SCRIPT, tmp_path)
    by_rank = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world_size)]
    assert all(len(results) == CASES for results in by_rank)
    for key, result in by_rank[0].items():
        message = result["message"]
        assert message.startswith("align: the gradient is not finite at step 3 (norm "), key
        assert "Samples of the step: sample 2." in message and "align.learning_rate" in message
        assert all(results[key]["message"] == message for results in by_rank), key
        assert all(results[key]["unchanged"] and results[key]["step"] == 2 for results in by_rank), key
        assert result["checkpoints"] == ["step-00000001", "step-00000002"], key
        rows = (tmp_path / key.replace(" ", "-") / "metrics.jsonl").read_text().splitlines()
        assert [strict(row)["step"] for row in rows] == [1, 2]
