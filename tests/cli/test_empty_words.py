"""Empty words of a command, as from a variable of the shell that is not set, are never a default or this folder."""

import pytest

from dcr_ds.cli import main


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (["evaluate", "model", "--suite", "quick", "--out", ""], "--out"),
        (["evaluate", "model", "--suite", "quick", "--local-data=", "--out", "runs"], "--local-data"),
        (["evaluate", "", "--suite", "quick", "--out", "runs"], "[NAME=]MODEL"),
        (["evaluate", "model", "--attacks", " ", "--out", "runs"], "--attacks"),
        (["ability", "model", "--tasks", ""], "--tasks"),
        (["baseline", "llm-va", "model", "--harmful", "", "--out", "out"], "--harmful"),
        (["baseline", "stl-aug", "--out", "out", "--answers", ""], "--answers"),
        (["diagnose", "layers", "model", "--refined", ""], "--refined"),
        (["export", "", "--out", "out"], "RUN|CHECKPOINT|ADAPTER"),
        (["export", "run", "--out", "out", "--push", ""], "--push"),
        (["judge", "answers.jsonl", "--compare", "a", "", "--out", "out.md"], "--compare"),
        (["plan", "--json", ""], "--json"),
        (["recipes", "copy", ""], "NAME"),
        (["report", "runs/a", ""], "RUN"),
        (["report", "runs/a", "--out="], "--out"),
        (["slurm", "--check-points", ""], "--check-points"),
        (["verify", "run", ""], "MODEL"),
    ],
)
def test_an_empty_word_is_named(capsys, command, place):
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f" {place}: is empty; is a variable of the shell not set?" in line


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (["evaluate", "m", "--out", "runs", "--benchmarks", "advbench", "--benchmarks=xstest-safe"], "--benchmarks"),
        (
            ["judge", "a.csv", "--judge", "rules", "--out", "v", "--columns", "id=a", "--columns", "finish=b"],
            "--columns",
        ),
        (["verify", "run", "model", "--bound", "1", "--bound", "2"], "--bound"),
    ],
)
def test_an_option_whose_first_value_would_be_ignored_is_refused(capsys, command, place):
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f" {place}: is given twice; name all values after one, or leave one out;" in line


def test_a_field_of_a_recipe_that_is_given_twice_is_a_warning(capsys):
    assert main(["train", "--seed", "1", "--data.toxic", "none.csv", "--seed=2"]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning == "WARNING: --seed is given 2 times; the last one counts: 2" and "none.csv" in error


@pytest.mark.parametrize("words", ["a,,b", ",", "a,"])
def test_an_empty_word_between_commas_is_named(capsys, words):
    assert main(["evaluate", "model", "--out", "runs", "--benchmarks", words]) == 2
    assert f"--benchmarks: {words!r} has an empty word between its commas" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["evaluate", "dcr=", "--suite", "quick", "--out", "runs"], "dcr= names no model; is a variable"),
        (["evaluate", "a|b=model", "--suite", "quick", "--out", "runs"], "'a|b' is not a valid name"),
        (["evaluate", "outputs/lr=1", "--suite", "builtin", "--out", "runs"], "outputs/lr=1 could not be downloaded"),
        (["repair", ""], "name the MODEL to repair first"),
        (["repair", "one", "two"], "two follows the MODEL one: repair takes one model"),
    ],
)
def test_a_model_that_is_empty_or_misnamed_is_named(capsys, command, message):
    assert main(command) == 2
    assert message in capsys.readouterr().err
