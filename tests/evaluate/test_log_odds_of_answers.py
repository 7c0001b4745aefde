"""Log-odds that are read from the cache of the answers equal those of prompts that are read on their own.

Several ranks are tested in test_spread_models.py.
"""

import pytest
import torch
from tiny import make_model
from tiny_models import ONE_RANK, PROMPTS, load, measure_log_odds

from dcr_ds.files import read_json, read_jsonl

FIGURES = ("log_odds", "margin", "first_token")


@pytest.fixture(scope="module")
def expected(model_folder, tmp_path_factory):
    """The rows of prompts that are read on their own: their answers exist already."""
    folder = tmp_path_factory.mktemp("expected")
    measure_log_odds(*load(model_folder), folder, ONE_RANK)
    (folder / "log_odds.jsonl").unlink()
    assert measure_log_odds(*load(model_folder), folder, ONE_RANK) == (0, None)
    return read_jsonl(folder / "log_odds.jsonl")


def assert_same(folder, expected):
    rows = read_jsonl(folder / "log_odds.jsonl")
    for row, other in zip(rows, expected, strict=True):
        assert (row["id"], row["settings_hash"]) == (other["id"], other["settings_hash"])
        for figure in FIGURES:
            assert row[figure] == pytest.approx(other[figure], abs=1e-6, rel=1e-6)
        assert row["openings"] == pytest.approx(other["openings"], abs=1e-6, rel=1e-6)


def test_prompts_are_read_from_the_cache_of_their_answers(model_folder, tmp_path, expected):
    assert measure_log_odds(*load(model_folder), tmp_path, ONE_RANK) == (len(PROMPTS), None)
    assert_same(tmp_path, expected)
    part = read_json(tmp_path / "cost.json")["parts"]["log_odds"]
    assert part["prompts"] == len(PROMPTS) and part["seconds"] > 0


def test_answered_prompts_without_log_odds_are_read_on_their_own(model_folder, tmp_path, expected):
    measure_log_odds(*load(model_folder), tmp_path, ONE_RANK)
    (tmp_path / "log_odds.jsonl").unlink()
    answers = (tmp_path / "generations.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "generations.jsonl").write_bytes(b"".join(answers[:9]))
    read, _ = measure_log_odds(*load(model_folder), tmp_path, ONE_RANK)
    assert 0 < read < len(PROMPTS)
    assert_same(tmp_path, expected)


def test_rows_of_a_killed_evaluation_are_kept(model_folder, tmp_path):
    """A prompt is not read a second time, so a killed evaluation ends with the bytes of an uninterrupted one."""
    (tmp_path / "whole").mkdir()
    measure_log_odds(*load(model_folder), tmp_path / "whole", ONE_RANK)
    for name in ("generations.jsonl", "log_odds.jsonl"):
        (tmp_path / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    (tmp_path / "log_odds.jsonl").rename(tmp_path / "log_odds.rank0001.jsonl")
    assert measure_log_odds(*load(model_folder), tmp_path, ONE_RANK) == (len(PROMPTS), None)
    assert (tmp_path / "log_odds.jsonl").read_bytes() == (tmp_path / "whole" / "log_odds.jsonl").read_bytes()
    assert not list(tmp_path.glob("*.rank*"))


def test_a_head_that_cannot_be_read_is_reported_and_the_answers_stay(model_folder, tmp_path):
    model, tokenizer = load(model_folder)
    model.lm_head = torch.nn.Sequential(model.lm_head)  # as a quantised head, not a linear layer
    _, problem = measure_log_odds(model, tokenizer, tmp_path, ONE_RANK)
    assert "output head (Sequential)" in problem and not (tmp_path / "log_odds.jsonl").exists()
    assert len(read_jsonl(tmp_path / "generations.jsonl")) == len(PROMPTS)


def test_models_with_sliding_windows_are_read_on_their_own(tmp_path):
    model, tokenizer = load(make_model(tmp_path / "model", "gemma3_text"))
    assert measure_log_odds(model, tokenizer, tmp_path, ONE_RANK) == (0, None)
    assert len(read_jsonl(tmp_path / "log_odds.jsonl")) == len(PROMPTS)
