"""`dcr-ds diagnose`: each diagnosis on a tiny model and the built-in prompts."""

import json

import pytest
from small_runs import the_error, write_rows
from tiny import make_model

from dcr_ds.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "tiny", layers=3, tied=False)


def test_the_kernel_is_printed_and_written(model, tmp_path, capsys):
    assert main(["diagnose", "entk", str(model), "--prompts", "3", "--k", "4", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny: mean ‖K(x', x)‖")
    assert [line[:15].strip() for line in lines[2:5]] == ["seemingly toxic", "toxic", "general"]
    written = json.loads((tmp_path / "tiny" / "entk.json").read_text())
    assert written["k"] == 4


def test_every_layer_but_the_last_is_probed_and_one_chosen(model, tmp_path, capsys):
    assert main(["diagnose", "layers", str(model), "--prompts", "20", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["1", "2"]
    assert lines[4].startswith("refine.layer: ")
    written = json.loads((tmp_path / "tiny" / "layers.json").read_text())
    assert [row["layer"] for row in written["layers"]] == [1, 2] and written["chosen"] in (1, 2)


def test_a_confound_is_warned_of(tmp_path, capsys):
    short = write_rows(tmp_path / "short.jsonl", [{"prompt": f"Name {i} cats"} for i in range(30)])
    long = write_rows(tmp_path / "long.jsonl", [{"prompt": f"Tell me about {i} cats " * 5} for i in range(30)])
    assert main(["diagnose", "confounds", "--seemingly-toxic", str(short), "--toxic", str(long)]) == 0
    out = capsys.readouterr().out
    assert "characters" in out and "WARNING: the feature 'characters' alone separates" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "unknown diagnosis 'nothing'; there are entk, layers, confounds"),
        (["layers", "MODEL", "--prompts", "4"], "layer probe: 4 seemingly toxic prompts"),
        (["entk", "MODEL", "--prompts", "2", "--k", "999"], "999"),
        (["entk", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_bad_input_is_one_message(model, arguments, message, capsys):
    assert main(["diagnose", *(str(model) if word == "MODEL" else word for word in arguments)]) == 2
    assert message in the_error(capsys.readouterr().err)
