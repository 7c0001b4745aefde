"""Results of two models are never in one folder, where a report would show them as those of one model."""

import pytest
from chat_server import refuses, says, serving
from tiny_models import ONE_RANK

from dcr_ds.data.benchmarks import read_benchmarks
from dcr_ds.errors import UserError
from dcr_ds.evaluate.run import evaluate_endpoint
from dcr_ds.evaluate.same_model import refuse_other_model
from dcr_ds.files import read_object, write_json
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.recipe import EvaluateSection
from dcr_ds.recipe.layout import ModelFolder

FINE = says("fine")


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Evaluate a model behind an endpoint on one prompt of each benchmark; servers have another address each time."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk")

    def run(model: str, *benchmarks: str, reply=FINE) -> None:
        settings = EvaluateSection(benchmarks=[{"name": name, "rows": 1} for name in benchmarks], judges=["rules"])
        with serving(lambda number, request: reply) as server:
            asked = Endpoint(server.url, model)
            evaluate_endpoint(asked, ModelFolder(tmp_path), read_benchmarks(settings), settings, ONE_RANK)

    return run


def test_another_model_on_other_benchmarks_is_refused(evaluate, tmp_path):
    evaluate("one", "builtin-toxic")
    evaluate("one", "builtin-general")
    with pytest.raises(UserError, match=r"holds results on builtin-general of another model.*builtin-general"):
        evaluate("two", "builtin-toxic")
    evaluate("two", "builtin-toxic", "builtin-general")  # all of them again


def test_what_an_endpoint_does_not_measure_is_not_that_of_the_model_before(evaluate, tmp_path):
    home = ModelFolder(tmp_path)
    evaluate("one", "builtin-toxic")
    others = (home.benchmark("builtin-toxic").log_odds, home.general_loss, home.openings)
    for file in others:
        write_json(file, {})
    evaluate("two", "builtin-toxic")
    assert not any(file.exists() for file in others)
    with pytest.raises(UserError):  # interrupted: the scores of the earlier answers are not those of the new ones
        evaluate("three", "builtin-toxic", reply=refuses(401, "no such key"))
    assert not home.benchmark("builtin-toxic").scores.exists()


def test_scores_of_earlier_versions_pass(evaluate, tmp_path):
    evaluate("one", "builtin-toxic")
    file = ModelFolder(tmp_path).benchmark("builtin-toxic").scores
    write_json(file, {name: value for name, value in read_object(file).items() if name != "model"})
    evaluate("two", "builtin-general")


def test_general_ability_of_another_model_is_refused(tmp_path):
    home = ModelFolder(tmp_path)
    write_json(home.ability, {"settings": {"model": "one"}, "tasks": {}})
    refuse_other_model(home, {}, "key", "one")
    with pytest.raises(UserError, match=r"ability.json: is of another model.*remove it"):
        refuse_other_model(home, {}, "key", "two")
