import pytest
from run_folders import write_run

from dcr_ds.commands.report import run as report
from dcr_ds.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "dcr-ds report: the following arguments are required: RUN; see dcr-ds report --help"),
        (["run", "--out"], "expected one argument"),
        (["run", "--nothing"], "unrecognized arguments: --nothing"),
        (["no/run"], "no/run: no such folder"),
    ],
)
def test_usage_errors_are_one_line(arguments, message):
    with pytest.raises(UserError) as error:
        report(arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_no_report_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, page = write_run(tmp_path / "run"), tmp_path / "index.html"
    page.write_text("<h1>my page</h1>")
    with pytest.raises(UserError, match=r"index\.html exists and holds something else"):
        report([str(run), "--out", "index.md"])
    assert page.read_text() == "<h1>my page</h1>" and not (tmp_path / "index.md").exists()
    for _ in range(2):  # a report is
        assert report([str(run), "--out", "report.md"]) == 0
