"""Files of rows: readers are strict; a writer that resumes drops incomplete rows."""

import json
import os
import resource
import tempfile
from pathlib import Path

import pytest

from dcr_ds.errors import UserError, write_errors_as_user_errors
from dcr_ds.files import read_json, read_jsonl, read_object, read_whole_rows, write_atomically, write_jsonl

ROWS = [{"id": str(number), "text": "é\u2028"} for number in range(3)]
DEEP = "[" * 100_000
DAMAGE = ["{", DEEP, "\0\0\0", "[1]", "1", '{"text": "no id"}', '{"id": "9' + "9" * 5000]


@pytest.fixture
def file(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    return tmp_path / "rows.jsonl"


def test_both_readers_read_what_was_written(file, capsys):
    assert read_jsonl(file, ("id",)) == read_whole_rows(file, {"id": str}) == ROWS
    assert read_jsonl(file.with_name("none")) == read_whole_rows(file.with_name("none")) == []
    assert not capsys.readouterr().err


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("line", [0, 1, 3])
def test_a_damaged_line_is_named_or_left_out_and_reported(file, capsys, damage, line):
    lines = file.read_text().split("\n")[:-1]
    lines.insert(line, damage)
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=rf"rows\.jsonl, line {line + 1}: "):
        read_jsonl(file, ("id",))
    assert read_whole_rows(file, {"id": str}) == ROWS
    assert ("is damaged" in capsys.readouterr().err) == (line < len(ROWS))  # an incomplete last line is normal


@pytest.mark.parametrize("row", [{"id": "1", "tokens": "3"}, {"id": ["1"], "tokens": 3}, {"id": "1", "tokens": None}])
def test_a_row_with_a_value_of_another_type_is_written_again(tmp_path, row):
    rows = [{"id": "0", "tokens": 2}, row]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_whole_rows(tmp_path / "rows.jsonl", {"id": str, "tokens": int}) == rows[:1]


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    for path in (pipe, tmp_path / "stdout", Path("/dev/fd/1")):
        with pytest.raises(UserError, match="is a device or pipe"):
            write_atomically(path, "text")
    assert pipe.is_fifo()


def test_the_file_that_a_link_names_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("there", "not-yet"):
        link = tmp_path / f"link-{name}"
        link.symlink_to(tmp_path / "disk" / name)
        write_atomically(link, "new")
        assert link.is_symlink() and (tmp_path / "disk" / name).read_text() == "new"
        assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", DEEP, "\0"])
def test_a_damaged_object_is_empty(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    assert read_object(tmp_path / "a.json") == {} == read_object(tmp_path / "none.json")
    if content not in ("[1]",):
        assert read_json(tmp_path / "a.json") is None
    (tmp_path / "a.json").write_text(json.dumps({"a": 1}))
    assert read_object(tmp_path / "a.json") == {"a": 1}


def test_a_full_disk_is_reported_with_the_file(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        message = rf"^{tmp_path}/big\.txt: cannot be written"
        with pytest.raises(UserError, match=message), write_errors_as_user_errors(tmp_path / "elsewhere"):
            write_atomically(tmp_path / "big.txt", "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_error_of_a_read_does_not_say_that_something_cannot_be_written(tmp_path):
    memory, damaged = Path("/proc/self/mem"), "^/proc/self/mem: cannot be read or written .*Input/output error"
    with pytest.raises(UserError, match=damaged), write_errors_as_user_errors(memory):
        memory.read_bytes()
    folder = rf"^{tmp_path}: cannot be read or written .*move the folder away"
    with pytest.raises(UserError, match=folder), write_errors_as_user_errors(tmp_path):
        tmp_path.read_text()
    (tmp_path / "file").touch()
    in_the_way = "file: cannot be written .*a file is in the way: move it"
    with pytest.raises(UserError, match=in_the_way), write_errors_as_user_errors(tmp_path):
        (tmp_path / "file").mkdir()
    (tmp_path / "folder").mkdir()
    in_the_way = "folder: cannot be written .*move the folder away"
    with pytest.raises(UserError, match=in_the_way), write_errors_as_user_errors(tmp_path):
        write_atomically(tmp_path / "folder", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="the user who may read everything becomes another one")
def test_a_file_that_may_not_be_read_is_not_said_to_be_unwritable():
    with tempfile.TemporaryDirectory() as name:  # the folders of pytest are private
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "secret").write_text("a")
        (folder / "secret").chmod(0)
        os.seteuid(65534)
        try:
            with pytest.raises(UserError, match="secret: cannot be read"), write_errors_as_user_errors(folder):
                (folder / "secret").read_text()
            message = "new.partial: cannot be written .*change its permissions, or those of its folder"
            with pytest.raises(UserError, match=message), write_errors_as_user_errors(folder):
                write_atomically(folder / "new", "")
            with pytest.raises(UserError, match="new.partial: cannot be written"), write_errors_as_user_errors(folder):
                write_atomically(folder / "new", "a")
        finally:
            os.seteuid(0)
