"""The picture of the strength of stage 1."""

import sys

import pytest
from scripts import FOLDER

sys.path.insert(0, str(FOLDER))
from strength import draw, read

HEADER = "setting,steps,builtin_gap,builtin_auc,jailbreakbench_auc,general_loss\n"
BASE, DEFAULTS = "base-23,0,0.0,0.8,0.7,3.0\n", "defaults,12,0.2,0.9,0.8,3.1\n"


def test_the_committed_rows_are_drawn(tmp_path):
    draw(read(FOLDER / "results" / "refine_settings.csv"), tmp_path / "strength.svg")
    assert (tmp_path / "strength.svg").stat().st_size > 10_000


def test_the_last_of_equal_rows_is_used(tmp_path):
    (tmp_path / "rows.csv").write_text(HEADER + BASE + DEFAULTS + DEFAULTS.replace("0.9", "0.95"))
    rows = read(tmp_path / "rows.csv")
    assert len(rows) == 2 and rows["defaults", 12]["builtin_auc"] == "0.95"


def test_rows_without_the_defaults_are_an_error(tmp_path):
    (tmp_path / "rows.csv").write_text(HEADER + BASE)
    with pytest.raises(SystemExit, match="no row of defaults after 12 steps"):
        read(tmp_path / "rows.csv")
