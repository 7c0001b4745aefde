"""Recipes: overrides, defaults, saving and loading, and the shipped recipes."""

import json

import pytest
from processes import ROOT
from pydantic import BaseModel

from dcr_ds.cli import main
from dcr_ds.engine.config import read_config, resolve_config
from dcr_ds.engine.zero3 import resolve_partition
from dcr_ds.errors import UserError
from dcr_ds.recipe import DataSource, Recipe, dump_recipe, field_rows, json_schema, load_recipe, section_rows
from dcr_ds.recipe.reading import kept_fields
from dcr_ds.recipe.unused import unused_fields

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
CONFIGS = sorted((ROOT / "ds_configs").glob("*.json"))

OVERRIDES = {
    "a number": ("refine.layer", "14", lambda recipe: recipe.refine.layer == 14),
    "auto": ("refine.layer", "auto", lambda recipe: recipe.refine.layer == "auto"),
    "a float with an exponent": ("align.learning_rate", "1e-4", lambda recipe: recipe.align.learning_rate == 1e-4),
    "a list": ("stages", "[refine]", lambda recipe: recipe.stages == ["refine"]),
    "a truth": ("allow_leakage", "true", lambda recipe: recipe.allow_leakage is True),
    "a plain data source": ("data.toxic", "p.csv", lambda recipe: recipe.data.toxic == DataSource(source="p.csv")),
    "a field of a data set": ("data.toxic.rows", "5", lambda recipe: recipe.data.toxic.rows == 5),
    "a column": ("data.toxic.columns.prompt", "goal", lambda recipe: recipe.data.toxic.columns == {"prompt": "goal"}),
    "a condition": ("data.toxic.where.kind", "[a, b]", lambda r: r.data.toxic.where == {"kind": ["a", "b"]}),
    "a condition on true": ("data.toxic.where.safe", "true", lambda r: r.data.toxic.where == {"safe": "true"}),
    "an inner section": ("align.lora.rank", "4", lambda recipe: recipe.align.lora.rank == 4),
    "a file": ("deepspeed", "ds_configs/zero3.json", lambda recipe: recipe.deepspeed == "ds_configs/zero3.json"),
    "a mapping": ("deepspeed", "{bf16: {}}", lambda recipe: recipe.deepspeed == {"bf16": {}}),
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_override(case):
    name, text, holds = OVERRIDES[case]
    assert holds(load_recipe(None, [(name, text)]))


@pytest.mark.parametrize(
    ("name", "text", "switch"),
    [
        ("align.lora.rank", "64", "align.adapter: lora"),
        ("refine.packed_length", "2048", "refine.packing: true"),
        ("refine.temperature", "0.2", "refine.loss: supcon or infonce or ntxent"),
        ("align.dpo.beta", "0.3", "align.method: dpo"),
        ("data.preferences", "pairs.jsonl", "align.method: dpo or kto or orpo or simpo"),
    ],
)
def test_a_field_that_another_one_would_turn_on_is_a_warning(name, text, switch):
    recipe = load_recipe(None, [(name, text)])
    (warning,) = unused_fields(recipe)
    assert warning.startswith(f"WARNING: {'.'.join(name.split('.')[:2])} is set") and warning.endswith(switch)
    assert not unused_fields(Recipe(stages=["evaluate"], refine={"temperature": 0.2}))


def test_an_option_of_another_loss_than_the_recipe_s_is_a_warning():
    assert len(unused_fields(Recipe(refine={"loss": "infonce", "margin": 0.1, "scale": 32, "temperature": 0.2}))) == 2
    assert not unused_fields(Recipe(refine={"loss": "triplet", "margin": 0.1}))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_set_no_field_without_effect(path):
    assert not unused_fields(load_recipe(str(path)))


@pytest.fixture
def written(tmp_path):
    def write(text):
        (tmp_path / "recipe.yaml").write_text(text)
        return str(tmp_path / "recipe.yaml")

    return write


def test_command_line_wins_over_the_file_and_the_last_over_the_first(written):
    path = written("refine: {layer: 3, margin: 0.2}\n")
    recipe = load_recipe(path, [("refine.layer", "4"), ("refine.layer", "5")])
    assert (recipe.refine.layer, recipe.refine.margin) == (5, 0.2)


def test_data_source_override_keeps_the_other_fields_of_the_file(written):
    path = written("data: {toxic: {source: a.csv, rows: 3}}\n")
    assert load_recipe(path, [("data.toxic", "b.csv")]).data.toxic == DataSource(source="b.csv", rows=3)


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "a field"])
@pytest.mark.parametrize("from_file", [True, False], ids=["in a recipe", "on the command line"])
def test_another_source_keeps_the_columns_and_says_so(written, tmp_path, plain, from_file):
    """A plain source in a recipe dropped `where` and `columns` of the one before; on the command line it kept them."""
    (tmp_path / "base.yaml").write_text("data: {toxic: {source: a.csv, columns: {prompt: goal}, skip: 0}}\n")
    source = "b.csv" if plain else "{source: b.csv}"
    path = written(f"extends: base.yaml\ndata: {{toxic: {source}}}\n" if from_file else "extends: base.yaml")
    overrides = [] if from_file else [("data.toxic" if plain else "data.toxic.source", "b.csv")]
    assert load_recipe(path, overrides).data.toxic == DataSource(source="b.csv", columns={"prompt": "goal"})
    (note,) = kept_fields(path, overrides)
    assert "data.toxic: b.csv is read with columns: {'prompt': 'goal'}, which " in note


def test_an_empty_mapping_removes_the_columns_of_the_recipe_that_it_extends(written, tmp_path):
    (tmp_path / "base.yaml").write_text("data: {toxic: {source: a.csv, columns: {prompt: goal}}}\n")
    path = written("extends: base.yaml\ndata: {toxic: {source: b.csv, columns: {}}}\n")
    assert load_recipe(path).data.toxic == DataSource(source="b.csv")
    assert not kept_fields(path, [])


def test_a_whole_mapping_on_the_command_line_replaces_a_data_set(written):
    path = written("data: {toxic: {source: a.csv, rows: 3}}\n")
    overrides = [("data.toxic", "{rows: 3}")]
    assert load_recipe(path, overrides).data.toxic == DataSource(rows=3)
    assert len(kept_fields(path, overrides)) == 1


def test_a_field_before_the_source_on_the_command_line_is_kept(written):
    """`--data.preferences.rows 5000 --data.preferences FILE`, as docs/preferences.md writes it, read all rows."""
    recipe = load_recipe(written(""), [("data.toxic.rows", "3"), ("data.toxic", "b.csv")])
    assert recipe.data.toxic == DataSource(source="b.csv", rows=3)


def test_a_section_on_the_command_line_keeps_its_other_fields(written):
    """As in a recipe; they became the defaults."""
    recipe = load_recipe(written("refine: {layer: 3, margin: 0.2}\n"), [("refine", "{layer: 4}")])
    assert (recipe.refine.layer, recipe.refine.margin) == (4, 0.2)


def test_data_set_field_override_keeps_the_source_of_the_file(written):
    path = written("data: {toxic: a.csv}\n")
    assert load_recipe(path, [("data.toxic.rows", "3")]).data.toxic == DataSource(source="a.csv", rows=3)


def test_a_field_of_a_deepspeed_file_cannot_be_set(written):
    path = written("deepspeed: ds_configs/zero1.json\n")
    with pytest.raises(UserError, match="deepspeed is the file ds_configs/zero1.json; name another file"):
        load_recipe(path, [("deepspeed.zero_optimization.stage", "3")])


def test_empty_recipe_has_the_defaults(written):
    assert load_recipe(written("# nothing\n")) == load_recipe(None) == Recipe()


def test_recipe_that_extends_another(written, tmp_path):
    (tmp_path / "base.yaml").write_text("refine: {layer: 3, margin: 0.2}\nseed: 1\n")
    recipe = load_recipe(written("extends: base.yaml\nrefine: {layer: 4}\n"))
    assert (recipe.refine.layer, recipe.refine.margin, recipe.seed) == (4, 0.2, 1)


def test_a_recipe_that_sets_a_field_of_a_data_set_keeps_its_source(written, tmp_path):
    """A plain source in the recipe that it extends; it became the built-in data."""
    (tmp_path / "base.yaml").write_text("data: {toxic: a.csv}\ndeepspeed: ds_configs/zero1.json\n")
    recipe = load_recipe(written("extends: base.yaml\ndata: {toxic: {rows: 3}}\ndeepspeed: {bf16: {}}\n"))
    assert recipe.data.toxic == DataSource(source="a.csv", rows=3)
    assert recipe.deepspeed == {"bf16": {}}


@pytest.mark.parametrize("path", [None, *RECIPES], ids=lambda path: path.name if path else "defaults")
def test_saved_recipe_loads_unchanged(written, path):
    recipe = load_recipe(path and str(path), [("data.toxic", "höhle.csv"), ("data.toxic.where.label", "yes")])
    assert load_recipe(written(dump_recipe(recipe))) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipe(path):
    recipe = load_recipe(str(path))
    read_config(recipe)
    assert path.read_text().startswith("#"), "a recipe opens with what it is for and its launch command"


def test_shipped_recipes_write_into_different_folders():
    names = [load_recipe(str(path)).name for path in RECIPES]
    assert len(names) == len(set(names)) > 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shipped_deepspeed_config(path, dtype):
    recipe = load_recipe(None, [("deepspeed", f"ds_configs/{path.name}"), ("model.dtype", dtype)])
    config = read_config(recipe)
    if zero := config.get("zero_optimization"):
        config["zero_optimization"], _ = resolve_partition(zero, 2, 2, on_gpu=True)
    resolved = resolve_config(config, recipe.refine, 2, dtype, on_gpu=False)
    assert "auto" not in json.dumps(resolved)
    assert resolved["bf16"] == {"enabled": dtype == "bfloat16"}
    assert resolved["train_batch_size"] == 2  # DeepSpeed's product of ranks, micro-batch and accumulation


def leaves(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every field of the schema, through an instance of its defaults."""
    names = []
    for name, value in model():
        is_section = isinstance(value, BaseModel) and not isinstance(value, DataSource)
        names += leaves(type(value), f"{prefix}{name}.") if is_section else [prefix + name]
    return names


def test_field_rows_list_every_field_with_its_description():
    rows = field_rows()
    assert [row.name for row in rows] == leaves(Recipe)
    for row in rows:
        assert row.type and row.description, row.name


def test_sections_have_descriptions():
    sections = section_rows()
    assert {row.name.rpartition(".")[0] for row in field_rows()} == {"", *(section.name for section in sections)}
    assert all(section.description for section in sections)


def test_schema_is_json_with_every_field(capsys):
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == {*Recipe.model_fields, "extends"}
    assert schema["additionalProperties"] is False
    assert all("description" in field for field in schema["$defs"]["RefineSection"]["properties"].values())


def test_schema_accepts_a_data_source_as_a_string():
    sections = json_schema()["$defs"]
    for section, name in (("DataSection", "toxic"), ("EvaluateSection", "general"), ("OwnBenchmark", "prompts")):
        kinds = sections[section]["properties"][name]["anyOf"]
        assert {"type": "string"} in kinds and {"$ref": "#/$defs/DataSource"} in kinds
