"""Any recipe or command line gives a recipe or a single message; never a stack trace, and no file is changed."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from strategies import changed, damaged, examples, scalars, values

from dcr_ds.errors import UserError
from dcr_ds.recipe import Recipe, dump_recipe, field_rows, load_recipe
from dcr_ds.recipe.arguments import parse_train

VALID = Recipe().model_dump(mode="json")
VALID["evaluate"]["benchmarks"] = [
    {"name": "own", "prompts": {"source": "p.csv", "columns": {"prompt": "q"}}, "wanted": "comply"},
    {"name": "xstest-safe", "rows": 3},
]
VALID["evaluate"]["judges"] = [
    "rules",
    {"kind": "llm", "name": "one", "url": "http://localhost:1/v1", "model": "m"},
    {"kind": "guard", "name": "two", "guard": "wildguard", "judges": "harm"},
]
FIELDS = [row[0] for row in field_rows()]


def is_read_or_refused(read):
    try:
        recipe = read()
    except UserError as error:
        assert str(error).strip() and "Traceback" not in str(error)
    else:
        assert isinstance(recipe, Recipe)
        assert Recipe.model_validate(yaml.safe_load(dump_recipe(recipe))) == recipe


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "recipe.yaml"
    assert {file.name for file in tmp_path.iterdir()} <= {"recipe.yaml"}


@examples(150)
@given(values=changed(VALID))
def test_recipes_with_random_values(path, values):
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    is_read_or_refused(lambda: load_recipe(str(path)))


@examples(150)
@given(content=damaged(dump_recipe(Recipe.model_validate(VALID)).encode()) | st.binary(max_size=60))
def test_damaged_recipe_files(path, content):
    path.write_bytes(content)
    is_read_or_refused(lambda: load_recipe(str(path)))


@examples(150)
@given(content=st.text(max_size=60) | values.map(lambda value: yaml.safe_dump(value, allow_unicode=True)))
def test_recipes_of_random_text(path, content):
    path.write_text(content, encoding="utf-8", errors="surrogatepass")
    is_read_or_refused(lambda: load_recipe(str(path)))


NAMES = st.sampled_from(FIELDS) | st.text(max_size=12) | st.builds(
    lambda field, more: f"{field}.{more}", st.sampled_from([*FIELDS, "refine", "data"]), st.text(max_size=6)
)  # fmt: skip
TEXTS = st.text(max_size=20) | scalars.map(str) | values.map(lambda value: yaml.safe_dump(value, allow_unicode=True))


@examples(150)
@given(overrides=st.lists(st.tuples(NAMES, TEXTS), min_size=1, max_size=4))
def test_overrides(overrides):
    is_read_or_refused(lambda: load_recipe(None, overrides))


@examples(150)
@given(words=st.lists(NAMES.map("--{}".format) | TEXTS | st.sampled_from(["--redo", "--dry-run", "--="]), max_size=6))
def test_command_lines(words):
    def read():
        return load_recipe(None, parse_train(words).overrides)

    is_read_or_refused(read)
