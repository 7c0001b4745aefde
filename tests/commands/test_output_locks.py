"""Two commands that write one file or folder: the second ends with a message and exit code 2."""

import pytest
from small_runs import the_error

from dcr_ds import locks
from dcr_ds.cli import main
from dcr_ds.errors import UserError
from dcr_ds.files import write_jsonl
from dcr_ds.new_folder import complete_folder

COMMANDS = {
    "judge": "judge {folder}/a.jsonl --judge rules --out {out}",
    "compared labels": "judge {folder}/a.jsonl --compare {folder}/labels.jsonl {folder}/others.jsonl --out {out}",
    "compare-quality": "compare-quality {folder}/a.jsonl {folder}/b.jsonl --out {out} --judge-url http://127.0.0.1/v1 "
    "--model m",
    "data pairs": "data pairs {folder}/a.jsonl --endpoint http://localhost:1/v1#m --out {out}",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_second_command_that_writes_the_same_file_is_refused(command, tmp_path, capsys, monkeypatch):
    answers = [{"id": "1", "prompt": "Why?", "completion": "Because.", "label": "compliance"}]
    for name in ("a", "b", "labels", "others"):
        write_jsonl(tmp_path / f"{name}.jsonl", answers)
    out = tmp_path / ("out.md" if command == "compared labels" else "out.jsonl")
    monkeypatch.setattr(locks, "WRITER_SECONDS", 0.1)
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.02)
    with locks.sole_writer(out):
        assert main(COMMANDS[command].format(folder=tmp_path, out=out).split()) == 2
    error = capsys.readouterr().err
    assert the_error(error).startswith(f"{out}: another command is writing to it: process ")
    assert "waiting for process " in error
    assert not out.exists()
    with locks.sole_writer(out):  # the lock is free again
        pass
    assert sorted(file.stem for file in tmp_path.iterdir()) == ["a", "b", "labels", "others"]  # and gone


def test_a_second_process_that_writes_the_same_new_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "WRITER_SECONDS", 0.1)
    with complete_folder(tmp_path / "model") as partial:
        partial.mkdir()
        (partial / "config.json").write_text("{}")
        with pytest.raises(UserError, match="another command is writing to it"), complete_folder(tmp_path / "model"):
            pass
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["config.json"]
    with pytest.raises(UserError, match="exists, and nothing is overwritten"), complete_folder(tmp_path / "model"):
        pass
