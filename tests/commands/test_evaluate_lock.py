"""Two evaluations at once into one folder: the second ends with a message and exit code 2."""

import os
import signal

from small_runs import the_error
from tiny import make_model

from dcr_ds.cli import main
from dcr_ds.evaluate import run as evaluation
from dcr_ds.locks import locked
from dcr_ds.recipe.layout import RunFolder
from dcr_ds.run import opening


def test_second_evaluation_into_the_same_folder_is_refused(tmp_path, capsys, monkeypatch):
    make_model(tmp_path / "model", layers=2, tied=False)
    run = RunFolder(tmp_path / "out" / "model")
    run.folder.mkdir(parents=True)
    monkeypatch.setattr(opening, "LOCK_SECONDS", 0.1)
    with locked(run.lock):
        command = ["evaluate", tmp_path / "model", "--suite", "builtin", "--out", tmp_path / "out"]
        assert main([str(word) for word in command]) == 2
    message = the_error(capsys.readouterr().err)
    assert message.startswith(f"{run.folder}: another run is writing to this folder")
    assert not run.recipe.exists()


def test_evaluation_is_stopped_by_a_signal(tmp_path, capsys, monkeypatch):
    """The run is opened as a training run is: a stop signal ends it with exit code 75."""
    make_model(tmp_path / "model", layers=2, tied=False)

    def stop(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(evaluation, "evaluate_model", stop)
    command = ["evaluate", tmp_path / "model", "--suite", "builtin", "--out", tmp_path / "out"]
    assert main([str(word) for word in command]) == 75
    assert "stopped by SIGTERM" in capsys.readouterr().err
