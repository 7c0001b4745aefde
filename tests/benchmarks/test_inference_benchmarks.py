"""The benchmarks of generation and of the log-odds run and write well-formed rows; their speed is not tested."""

from scripts import rows_of


def test_generation_writes_ratios_and_shares_of_identical_answers(tmp_path):
    (row,) = rows_of(tmp_path / "rows.csv", "benchmarks/generate.py", "--tiny")
    assert (row["model"], row["rows"], row["clock"]) == ("tiny", "24", "cpu")
    assert float(row["sorted_over_single"]) > 0 and 0 <= float(row["sorted_identical"]) <= 1


def test_log_odds_write_the_ratio_to_generation(tmp_path):
    (row,) = rows_of(tmp_path / "rows.csv", "benchmarks/log_odds.py", "--tiny", "--rounds", "1")
    assert (row["model"], row["prompts"]) == ("tiny", "6") and float(row["ratio"]) > 0
    assert 0 <= float(row["first_token_impurity"]) < 1
