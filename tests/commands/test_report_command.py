import pytest

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
