"""--redo happens once: it first removes earlier results, and the same command after a stop continues it."""

import json
import shutil

from dcr_ds.run import folder as run_folder_module


def first_losses(run_folder) -> list[float]:
    rows = map(json.loads, run_folder.stage("refine").metrics.read_text().splitlines())
    return [row["loss"] for row in rows]


def test_a_stopped_redo_is_continued_by_the_same_command(train, run_folder):
    train("--stages", "[refine]")
    train("--stages", "[refine]", "--redo", "all", stop=True)
    assert len(first_losses(run_folder)) == 1
    message = train("--stages", "[refine]", "--redo", "all")
    assert "--redo all has begun before and is continued" in message
    assert "step-00000001" in message  # resumed from its checkpoint, not trained from the start
    assert run_folder.stage("refine").is_done


def test_redo_after_a_finished_redo_starts_again(train, run_folder):
    train("--stages", "[refine]")
    train("--stages", "[refine]", "--redo", "all")
    assert not run_folder.redo.exists()
    assert "removed the earlier results of refine" in train("--stages", "[refine]", "--redo", "all")


def test_redo_with_another_recipe_starts_again(train, run_folder):
    train("--stages", "[refine]")
    train("--stages", "[refine]", "--redo", "all", stop=True)
    message = train("--stages", "[refine]", "--redo", "all", "--refine.margin", "0.4")
    assert "removed the earlier results of refine" in message and "step-00000001" not in message


def test_an_interrupted_removal_is_completed_before_resuming(train, run_folder, monkeypatch):
    train("--stages", "[refine]")

    def die(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder_module, "_clear", die)
        train("--stages", "[refine]", "--redo", "all", code=130)
    assert "removed what an interrupted --redo had left of refine" in train("--stages", "[refine]")


def test_stage_behind_a_symbolic_link_is_repeated(train, run_folder, place):
    """A stage folder on scratch space: its contents are removed, the link stays."""
    train("--stages", "[refine]")
    shutil.move(run_folder.stage("refine").folder, place / "scratch")
    run_folder.stage("refine").folder.symlink_to(place / "scratch")
    before = run_folder.stage("refine").summary.stat().st_mtime_ns
    message = train("--stages", "[refine]", "--redo", "refine")
    assert "already done" not in message
    assert run_folder.stage("refine").folder.is_symlink()
    assert (place / "scratch" / "summary.json").stat().st_mtime_ns > before


def test_stage_that_cannot_be_removed_is_an_error(train, refused, run_folder, monkeypatch):
    train("--stages", "[refine]")

    def deny(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", deny)
        message = refused("--stages", "[refine]", "--redo", "refine")
    assert str(run_folder.stage("refine").folder) in message and "cannot be removed for --redo" in message
