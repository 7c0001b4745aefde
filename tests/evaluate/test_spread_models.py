"""A model that two ranks hold together gives the results of a whole one, also after it was killed."""

import pytest
from spread_ranks import evaluate, evaluate_in_child
from tiny_models import ONE_RANK, PROMPTS, run_children

from dcr_ds.files import read_json, read_jsonl


def test_two_copies_of_two_ranks_complete_what_one_began(model_folder, tmp_path):
    """One copy is killed after a batch; two copies keep its rows and end with the results of a whole model."""
    whole, spread = tmp_path / "whole", tmp_path / "spread"
    spread.mkdir()
    evaluate(model_folder, whole, ONE_RANK, 1)
    assert run_children(evaluate_in_child, 2, model_folder, spread, tmp_path / "first", 1) == [-9, -9]
    (begun,) = spread.rglob("generations.rank*.jsonl")  # only one rank of a copy writes
    kept = read_jsonl(begun)
    assert 0 < len(kept) < len(PROMPTS)
    assert run_children(evaluate_in_child, 4, model_folder, spread, tmp_path / "second", 0) == [0, 0, 0, 0]
    assert not list(spread.rglob("generations.rank*"))
    shares = [read_json(spread / f"rank{rank}.json") for rank in range(4)]
    assert max(shares) <= 0.6, shares

    one, two = (read_jsonl(home / "tiny" / "generations.jsonl") for home in (whole, spread))
    assert all(row in two for row in kept)
    answers = [[(row["id"], row["completion"], row["tokens"], row["finish"]) for row in rows] for rows in (one, two)]
    assert answers[0] == answers[1] and len(answers[0]) == len(PROMPTS)
    one, two = (read_jsonl(home / "tiny" / "log_odds.jsonl") for home in (whole, spread))
    for expected, row in zip(one, two, strict=True):
        for figure in ("log_odds", "margin", "first_token"):
            assert row[figure] == pytest.approx(expected[figure], abs=1e-5)
    one, two = (read_json(home / "general_loss.json") for home in (whole, spread))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert (two["n"], two["tokens"]) == (one["n"], one["tokens"])
