"""Before training, a run says which superficial features separate its two sets."""

import json

from small_runs import write_recipe, write_rows
from tiny import make_model

from dcr_ds.cli import main


def warnings_of(folder, seemingly_toxic, toxic) -> list[str]:
    recipe = write_recipe(folder, make_model(folder / "model", layers=2, tied=False))
    for name, prompts in (("seemingly_toxic", seemingly_toxic), ("toxic", toxic)):
        write_rows(folder / f"{name}.jsonl", [{"prompt": prompt} for prompt in prompts])
    assert main(["train", str(recipe), "--stages", "[refine]"]) == 0
    return json.loads((folder / "runs/run/environment.json").read_text())["warnings"]


def test_sets_of_different_length_give_a_warning(tmp_path, capsys):
    short, long = [f"Name {i} cats" for i in range(30)], [f"Tell me all about {i} cats and dogs" for i in range(30)]
    warnings = warnings_of(tmp_path, short, long)
    assert any("the feature 'characters' alone separates the two prompt sets" in warning for warning in warnings)
    assert "WARNING: the feature 'characters'" in capsys.readouterr().err


def test_sets_too_small_for_the_check_give_a_warning(tmp_path):
    few = [f"paint {i}" for i in range(6)], [f"wreck {i}" for i in range(6)]
    assert any(warning.startswith("confound check left out") for warning in warnings_of(tmp_path, *few))
