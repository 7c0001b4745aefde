"""The plan of an evaluation follows the rule by which the run chooses its copies."""

import pytest

from dcr_ds.plan.choose import Cluster, planned
from dcr_ds.plan.clock import GPUS
from dcr_ds.plan.evaluation import plan_evaluation
from dcr_ds.plan.shapes import SHAPES
from dcr_ds.recipe import load_recipe


@pytest.mark.parametrize(
    ("shape", "gpus", "fields", "figures", "words"),
    [
        ("qwen2.5-72b", 32, {}, (4, 8), "8 copies of the model, 4 GPUs of a node each: 35.7 GiB"),
        ("qwen2.5-72b", 8, {"evaluate.ranks_per_copy": "8"}, (8, 1), "1 copy of the model, 8 GPUs of a node each"),
        ("llama-3-8b", 2, {}, (1, 2), "2 copies of the model, one per GPU"),
    ],
)
def test_layout(shape, gpus, fields, figures, words):
    recipe = load_recipe("recipes/qwen2.5-72b.yaml", [("refine.layer", "2"), *fields.items()])
    cluster = Cluster(gpus, min(gpus, 8), 80, GPUS["h100"])
    assert "evaluate" in recipe.stages
    recipe = planned(recipe, SHAPES / shape, cluster)
    text, planned_figures = plan_evaluation(recipe, SHAPES / shape, cluster)
    assert words in text
    assert (planned_figures["ranks_per_copy"], planned_figures["copies"]) == figures


def test_a_model_that_does_not_fit_is_no_obstacle_to_the_plan_of_training():
    recipe = load_recipe("recipes/qwen2.5-72b.yaml", [("refine.layer", "2")])
    cluster = Cluster(1, 1, 80, GPUS["h100"])
    text, figures = plan_evaluation(planned(recipe, SHAPES / "qwen2.5-72b", cluster), SHAPES / "qwen2.5-72b", cluster)
    assert figures is None and "the model does not fit" in text and "URL#MODEL" in text


def test_a_server_is_described():
    recipe = load_recipe("recipes/qwen2.5-72b.yaml", [("refine.layer", "2"), ("evaluate.engine", "vllm")])
    cluster = Cluster(16, 8, 80, GPUS["h100"])
    text, _ = plan_evaluation(planned(recipe, SHAPES / "qwen2.5-72b", cluster), SHAPES / "qwen2.5-72b", cluster)
    assert "on the 8 GPUs that it sees: vllm serve {model}" in text
    assert "--tensor-parallel-size 8 --data-parallel-size 1" in text and "the other ranks wait" in text
