"""`dcr-ds recipes`: the list, and copies that load like the shipped recipes from any folder."""

import pytest
from small_runs import the_error

from dcr_ds.cli import main
from dcr_ds.recipe import load_recipe, shipped_files

RECIPES = {path.stem: path for path in shipped_files("recipes", ".yaml")}


def test_list_has_every_shipped_recipe_with_a_description(capsys):
    assert main(["recipes"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(rows) == list(RECIPES)
    assert all(description.endswith(".") and not description.startswith("#") for description in rows.values())


@pytest.mark.parametrize("name", RECIPES)
def test_a_copy_loads_like_the_shipped_recipe(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", name]) == 0
    assert f"{name}.yaml: copied" in capsys.readouterr().out
    assert load_recipe(f"{name}.yaml") == load_recipe(str(RECIPES[name]))


def test_a_copy_never_overwrites(tmp_path, capsys):
    target = tmp_path / "mine.yaml"
    target.write_text("seed: 7\n")
    assert main(["recipes", "copy", "smollm2-135m", "--to", str(target)]) == 2
    assert f"{target}: exists already" in the_error(capsys.readouterr().err)
    assert target.read_text() == "seed: 7\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["copy"], "copy needs the NAME"),
        (["copy", "nothing"], "nothing: not a shipped recipe"),
        (["remove"], "invalid choice: 'remove'"),
        (["list", "repair"], "list takes no NAME"),
        (["copy", "smolm2-135m"], "Did you mean recipes/smollm2-135m.yaml?"),
        (["copy", "smollm2-135m", "--to", "file/x.yaml"], "file: cannot be written"),
    ],
)
def test_bad_arguments(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["recipes", *arguments]) == 2
    assert message in the_error(capsys.readouterr().err)
