"""A GGUF export has the log-odds of the run's model; its converter is found, or named as missing."""

import os
from pathlib import Path

import pytest
from run_folders import write_run
from small_runs import the_error
from tiny import make_model

from dcr_ds.cli import main
from dcr_ds.models.gguf_file import load_gguf

CONVERTER = Path(__file__).with_name("llama_converter.py")
SHORT = ["--prompts", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with a finished alignment."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "tiny", stages=("align",))
    make_model(folder / "align" / "model")
    return folder


@pytest.fixture
def export(run, tmp_path, capsys):
    def export_run(*options, code=0):
        out = tmp_path / "out"
        capsys.readouterr()
        assert main(["export", str(run), "--gguf", "f32", "--out", str(out), *map(str, options)]) == code
        assert not out.with_name("out.partial").exists() and out.exists() == (code == 0)
        return out if code == 0 else the_error(capsys.readouterr().err)

    return export_run


def test_a_gguf_export_has_the_log_odds_and_the_tokens_of_the_run(run, export, capsys):
    out = export("--converter", CONVERTER)
    assert sorted(file.name for file in out.iterdir()) == ["Modelfile", "exported.json", "model-f32.gguf"]
    modelfile = (out / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./model-f32.gguf\n") and 'PARAMETER stop "<|im_end|>"' in modelfile
    assert "<|im_start|>assistant\n" in modelfile.split('"""')[1]
    assert main(["verify", str(run), str(out / "model-f32.gguf"), str(run / "align" / "model"), *SHORT]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [row[-1] for row in rows] == ["equal", "equal"] and all(row[3] == "0" for row in rows)


def test_a_changed_weight_is_a_difference(run, export, monkeypatch, capsys):
    monkeypatch.setenv("SCALE", "1.1")
    monkeypatch.setenv("LLAMA_CPP", str(CONVERTER))
    file = export() / "model-f32.gguf"
    assert main(["verify", str(run), str(file), *SHORT]) == 1
    difference = float(capsys.readouterr().out.splitlines()[-1].split()[1])
    assert difference > 0.01
    assert main(["verify", str(run), str(file), *SHORT, "--bound", str(difference + 0.01)]) == 0


def test_another_chat_template_is_a_difference(run, tmp_path, capsys):
    other = make_model(tmp_path / "other")
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\n", "helper\n"))
    assert main(["verify", str(run), str(other), *SHORT]) == 1
    assert capsys.readouterr().out.splitlines()[-1].split()[3] == "4"


def test_a_missing_converter_is_named(export, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    assert "llama.cpp's convert_hf_to_gguf.py" in export(code=2)
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    assert f"$LLAMA_CPP: no file {tmp_path}/convert_hf_to_gguf.py" in export(code=2)


def test_a_converter_that_fails_leaves_nothing(export, monkeypatch):
    monkeypatch.setenv("FAIL", "1")
    message = export("--converter", CONVERTER, code=2)
    assert "exit code 1" in message and "No module named 'sentencepiece'" in message


def test_options_that_exclude_each_other(export, run, tmp_path, capsys):
    assert "--push" in export("--push", "me/model", code=2)
    assert main(["export", str(run), "--converter", "x", "--out", str(tmp_path / "out")]) == 2
    assert "--gguf" in the_error(capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="needs a checkout of llama.cpp in $LLAMA_CPP")
def test_the_converter_of_llama_cpp(tmp_path, capsys):
    """With the demo's model, whose tokenizer llama.cpp knows."""
    from dcr_ds.models.locate import prepare_source
    from dcr_ds.recipe import ModelSection

    run = write_run(tmp_path / "demo", stages=("align",))
    (run / "align" / "model").symlink_to(prepare_source(ModelSection(source="smollm2-135m")))
    out = tmp_path / "out"
    assert main(["export", str(run), "--gguf", "--out", str(out)]) == 0
    assert main(["verify", str(run), str(out / "model-bf16.gguf"), *SHORT]) == 0
    assert load_gguf(out / "model-bf16.gguf")[0].config.num_hidden_layers == 30
