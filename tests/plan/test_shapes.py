"""The shipped shapes have as many parameters as the published weights, counted by transformers."""

import pytest

from dcr_ds.plan.memory import tensors_of
from dcr_ds.plan.shapes import SHAPES, shipped
from dcr_ds.recipe import load_recipe


@pytest.mark.parametrize("shape", shipped(), ids=lambda shape: shape["folder"])
def test_parameters_are_those_published(shape):
    recipe = load_recipe(None, [("model.dtype", "bfloat16"), ("model.attention", "sdpa")])
    tensors = tensors_of(recipe, SHAPES / shape["folder"], "align")
    assert sum(tensor.elements for tensor in tensors) == shape["parameters"]
