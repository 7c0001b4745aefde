"""--help: of the program, of every command, and of the fields of recipes."""

import subprocess
import sys

import pytest
from processes import ROOT
from small_runs import the_error

from dcr_ds import __version__
from dcr_ds.cli import COMMANDS, main
from dcr_ds.recipe import DataSource, LlmJudge, field_rows, section_rows


@pytest.fixture
def printed(capsys):
    """Run a command that prints help; returns the text without line breaks and the widest line."""

    def run(*arguments: str) -> str:
        assert main(list(arguments)) == 0
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 100
        return " ".join(text.split())

    return run


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_overview_names_every_command(printed, arguments):
    text = printed(*arguments)
    assert all(f" {name} {summary}" in text for name, summary in COMMANDS.items())


def test_version(printed):
    assert printed("--version") == f"dcr-ds {__version__}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(printed, command):
    text = printed(command, "--help")
    assert text.lower().startswith(f"usage: dcr-ds {command} ")


def test_help_of_train_is_an_overview(printed, capsys):
    text = printed("train", "--help")
    assert all(f"{section.name} {section.description}" in text for section in section_rows())
    assert "deepspeed train.py" in text and "--dry-run" in text and "--redo" in text
    assert "--refine.margin" not in text
    main(["train", "--help"])
    assert len(capsys.readouterr().out.splitlines()) < 50


@pytest.mark.parametrize("topic", ["all", *(section.name for section in section_rows())])
def test_help_of_a_section_has_all_of_its_fields(printed, topic):
    text = printed("train", "--help", topic)
    for row in field_rows():
        in_section = topic == "all" or row.name.startswith(f"{topic}.")
        assert (f"--{row.name} ({row.type}" in text) == in_section
        if in_section:
            assert row.default in text and " ".join(row.description.split()) in text


def test_help_of_a_field_or_prefix(printed):
    assert printed("train", "--help", "refine.margin").startswith("--refine.margin (float; default: 0.25)")
    text = printed("train", "-h", "refine.retain")
    assert "--refine.retain_weight" in text and "--refine.retain_batch" in text and "--refine.margin" not in text


def test_help_of_data_sets_and_judges(printed):
    text = printed("train", "--help", "data")
    assert all(f" {row.name} ({row.type}" in text for row in field_rows(DataSource))
    assert printed("train", "--help", "data.toxic.rows").startswith("--data.toxic.rows (int)")
    text = printed("train", "--help", "evaluate.judges")
    assert all(f" {row.name} ({row.type}" in text for row in field_rows(LlmJudge))


def test_help_of_an_unknown_section(capsys):
    assert main(["train", "--help", "refine.layr"]) == 2
    assert "'refine.layr'. Did you mean refine.layer?" in the_error(capsys.readouterr().err)


@pytest.mark.parametrize("command", [["train.py"], ["-m", "dcr_ds", "plan"]])
def test_help_into_a_closed_pipe(command):
    """`head` closes the pipe early; that is not an error."""
    process = subprocess.Popen(
        [sys.executable, *command, "--help"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, b"")
    process.stderr.close()
