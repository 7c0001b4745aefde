"""Recipes are read as written: text stays text, duplicate keys are errors, and hostile YAML gives a single message."""

import time

import pytest
import yaml

from dcr_ds.errors import UserError
from dcr_ds.recipe import Recipe, dump_recipe, field_rows, load_recipe
from dcr_ds.recipe.annotations import inside, wants_text
from dcr_ds.recipe.changes import change_recipe

LIKE_OTHER_TYPES = [
    "0012345",
    "no",
    "Yes",
    "off",
    "1e5",
    "2024-01-01",
    "0x1F",
    "1:30",
    "010",
    "1_000",
    "7",
    "true",
]
TEXT_FIELDS = ["model.revision", "name", "data.toxic.revision", "data.toxic.where.kind", "data.toxic.columns.prompt"]


@pytest.fixture
def read(tmp_path):
    def load(text, *overrides):
        (tmp_path / "recipe.yaml").write_text(text)
        return load_recipe(str(tmp_path / "recipe.yaml"), list(overrides))

    return load


@pytest.fixture
def refused(read):
    def message(text, *overrides):
        started = time.perf_counter()
        with pytest.raises(UserError) as error:
            read(text, *overrides)
        assert time.perf_counter() - started < 5 and len(str(error.value)) < 5000
        return str(error.value)

    return message


def nested(name, value):
    head, _, rest = name.partition(".")
    return "{" + f"{head}: " + (nested(rest, value) if rest else value) + "}"


def value_of(recipe, name):
    for key in name.split("."):
        recipe = recipe[key] if isinstance(recipe, dict) else getattr(recipe, key)
    return recipe


@pytest.mark.parametrize("name", TEXT_FIELDS)
@pytest.mark.parametrize("text", LIKE_OTHER_TYPES)
def test_text_is_read_as_it_is_written(read, name, text):
    if name == "name" and ":" in text:
        pytest.skip("the name of a run has no colon")
    for recipe in (read(nested(name, text)), read(nested(name, f"'{text}'")), read("", (name, text))):
        assert value_of(recipe, name) == text
        assert value_of(read(dump_recipe(recipe)), name) == text  # also when it is written and read again
        assert Recipe.model_validate(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_text_fields_of_lists_and_short_forms(read):
    recipe = read("evaluate: {judges: [rules], benchmarks: [{name: 007, prompts: 12.csv, wanted: comply}]}")
    assert recipe.evaluate.benchmarks[0].name == "007" and recipe.evaluate.benchmarks[0].prompts.source == "12.csv"
    assert read("data: {toxic: 0012}").data.toxic.source == "0012"
    assert read("align: {lora: {targets: [1, no]}}").align.lora.targets == ["1", "no"]
    assert read("watchdog: {loss_spike: off}").watchdog.loss_spike == "off"
    assert read("", ("data.toxic.where.kind", "[no, 1]")).data.toxic.where == {"kind": ["no", "1"]}


def test_other_fields_keep_their_types(read):
    recipe = read("{seed: 12, log_every: 010, tensorboard: yes, align: {learning_rate: 1e-4, epochs: .5}}")
    assert (recipe.seed, recipe.log_every, recipe.tensorboard) == (12, 10, True)
    assert (recipe.align.learning_rate, recipe.align.epochs) == (1e-4, 0.5)
    config = read("deepspeed: {bf16: {enabled: true}, a: [1, 2e-5], b: null}").deepspeed
    assert config == {"bf16": {"enabled": True}, "a": [1, 2e-5], "b": None}
    assert read("model: {revision: null, chat_template: ~}").model.revision is None
    assert read("", ("model.revision", "null")).model.revision is None


def test_each_text_field_of_the_schema_is_known_as_text():
    for row in field_rows():
        annotation = Recipe
        for key in row.name.split("."):
            annotation = inside(annotation, key)
        is_number = bool({"int", "float", "bool"} & set(row.type.split(" | ")))
        assert wants_text(annotation) != is_number or row.type.startswith(("list", "mapping")), row


@pytest.mark.parametrize(
    "text",
    ["{seed: 1, seed: 2}", "model: {source: a}\nmodel: {dtype: float32}", "deepspeed: {a: {b: 1, b: 1}}",
     "data: {toxic: {columns: {prompt: a, prompt: b}}}", "evaluate: {benchmarks: [{name: a, name: b}]}",
     "align:\n  epochs: 1\n  'epochs': 2"],
)  # fmt: skip
def test_a_key_that_is_there_twice_is_refused(refused, text):
    message = refused(text)
    assert "is here twice, first in line" in message and ", line " in message


def test_merge_keys_work_and_count_less_than_what_is_written(read):
    text = "refine: &a {max_steps: 7, lora: {rank: 3}}\nalign: {<<: {epochs: 2.0}, epochs: 3}\n"
    assert read(text).align.epochs == 3
    anchors = "deepspeed: {a: &x {k: 1, m: 1}, b: &y {k: 2}, c: {<<: [*y, *x]}}"
    assert read(anchors).deepspeed["c"] == {"k": 2, "m": 1}


BOMB = "a: &a [" + "1," * 10 + "]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [" + f"*{chr(97 + n)}," * 10 + "]\n" for n in range(12)
)  # fmt: skip
MERGE_BOMB = "deepspeed:\n  a: &a {x0: 1}\n" + "".join(
    f"  {chr(98 + n)}: &{chr(98 + n)} {{<<: [" + f"*{chr(97 + n)}," * 10 + f"], x{n}: 1}}\n" for n in range(12)
)
HOSTILE = {
    "alias bomb": BOMB,
    "bomb of merges": MERGE_BOMB,
    "recursive alias": "deepspeed: &a {b: [*a]}",
    "alias of itself": "&a [*a]",
    "deep lists": "deepspeed: {a: " + "[" * 5000 + "]" * 5000 + "}",
    "deep mappings": "deepspeed: " + "{a: " * 200 + "1" + "}" * 200,
    "only brackets": "[" * 500_000,
    "block nesting": "deepspeed:\n" + "".join(" " * n + "a:\n" for n in range(1, 300)),
    "megabytes": "name: " + "x" * 2_000_000,
    "python tag": "name: !!python/object/apply:os.system ['true']",
    "python tag of a mapping": "deepspeed: !!python/object:os.stat {a: 1}",
    "set": "stages: !!set {refine, align}",
    "key that is a list": "? [a, b]\n: 1",
    "digits": "seed: " + "9" * 20,
    "more digits": "seed: " + "9" * 5000,
    "digits in a mapping": "deepspeed: {a: " + "9" * 5000 + "}",
    "steps": "refine: {max_steps: 99999999999999999999}",
    "epochs": "align: {epochs: 1e300}",
    "two documents": "seed: 1\n---\nseed: 2\n",
    "hex": "seed: 0x" + "f" * 9000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_ends_with_one_message(refused, text):
    message = refused(text)
    assert "recipe.yaml" in message and "Traceback" not in message


@pytest.mark.parametrize("name", [row.name for row in field_rows()])
def test_numbers_without_end_are_refused_or_read(read, name):
    for text in ("9" * 20, "-" + "9" * 20, "9" * 5000, "1e999", "-1e999"):
        try:
            read("", (name, text))
        except UserError as error:
            assert len(str(error)) < 7000
    with pytest.raises(UserError):
        change_recipe(Recipe(), {"seed": 10**5000})


@pytest.mark.parametrize("again", ["a.yaml", "./a.yaml", "../{folder}/a.yaml", "link.yaml"])
def test_recipes_that_extend_each_other_are_refused(tmp_path, again):
    again = again.format(folder=tmp_path.name)
    (tmp_path / "link.yaml").symlink_to(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("extends: b.yaml")
    (tmp_path / "b.yaml").write_text(f"extends: {again}")
    with pytest.raises(UserError, match="extends itself"):
        load_recipe(str(tmp_path / "a.yaml"))


def test_a_chain_of_many_recipes_is_refused(tmp_path):
    for number in range(100):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml")
    with pytest.raises(UserError, match="extends"):
        load_recipe(str(tmp_path / "0.yaml"))
