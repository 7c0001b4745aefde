import pytest

from dcr_ds.commands.report import run as report
from dcr_ds.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "report: name one or more run folders, e.g. dcr-ds report"),
        (["run", "--out"], "expected one argument"),
        (["run", "--nothing"], "unrecognized arguments: --nothing"),
        (["no/run"], "no/run: no such folder"),
    ],
)
def test_wrong_usage_is_told_in_one_line(arguments, said):
    with pytest.raises(UserError) as error:
        report(arguments)
    assert said in str(error.value) and "\n" not in str(error.value)
