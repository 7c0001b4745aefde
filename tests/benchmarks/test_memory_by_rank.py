"""Under ZeRO-3 the memory of a rank falls with the number of ranks: when it loads, resumes, trains and exports."""

import sys

import pytest
from processes import run_command
from scripts import read_rows


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_rank_holds_the_whole_model(tmp_path):
    path = tmp_path / "rows.csv"
    run_command(sys.executable, "benchmarks/memory_by_rank.py", "--ranks", "1,4", "--csv", path, timeout=800)
    rows = read_rows(path)
    measured = {(row["moment"], int(row["ranks"])): float(row["measured_mb"]) for row in rows}
    planned = {(row["moment"], int(row["ranks"])): float(row["planned_mb"]) for row in rows}
    whole = float(rows[0]["model_mb"])
    assert whole > 200
    assert measured["align: load", 4] < 0.5 * whole < whole < measured["align: load", 1]
    for moment in ("refine: load", "align: load", "resume", "refine: step", "align: step", "refine: export"):
        assert measured[moment, 4] < 0.6 * measured[moment, 1], moment
        assert measured[moment, 4] < 1.7 * planned[moment, 4], moment
