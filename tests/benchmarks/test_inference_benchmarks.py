"""The benchmarks of generation, log-odds and start-up run and write well-formed rows; their speed is not tested."""

from scripts import rows_of


def test_generation_writes_ratios_and_shares_of_identical_answers(tmp_path):
    (row,) = rows_of(tmp_path / "rows.csv", "benchmarks/generate.py", "--tiny")
    assert (row["model"], row["rows"], row["clock"]) == ("tiny", "24", "cpu")
    assert float(row["sorted_over_single"]) > 0 and 0 <= float(row["sorted_identical"]) <= 1


def test_log_odds_write_the_ratio_to_generation(tmp_path):
    (row,) = rows_of(tmp_path / "rows.csv", "benchmarks/log_odds.py", "--tiny", "--rounds", "1")
    assert (row["model"], row["prompts"]) == ("tiny", "6") and float(row["ratio"]) > 0
    assert 0 < float(row["share"]) < 1
    assert 0 <= float(row["first_token_impurity"]) < 1


def test_startup_writes_a_row_per_number_of_ranks(tmp_path):
    rows = rows_of(tmp_path / "rows.csv", "benchmarks/startup.py", "--tiny", "--ranks", "1,8")
    assert [row["ranks"] for row in rows] == ["1", "8"] and rows[0]["over_first"] == "1.0"
    assert all(float(row[part]) > 0 for row in rows for part in ("read", "encode", "anchors", "steps", "total"))
