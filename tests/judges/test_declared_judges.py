"""Judges as recipes declare them: by name or by kind, and errors for misspelt ones."""

import re
from pathlib import Path

import pytest
import yaml

from dcr_ds.errors import UserError
from dcr_ds.recipe import GuardJudge, LlmJudge, dump_recipe, json_schema, load_recipe

LLM = "{kind: llm, name: big, url: 'http://node1:8000/v1', model: big-70b}"
DOCS = Path(__file__).parents[2] / "docs" / "llm-judges.md"
GUARD = "{kind: guard, name: guard, guard: wildguard, judges: harm}"


def judges(text: str) -> list:
    return load_recipe(None, [("evaluate.judges", text)]).evaluate.judges


def test_judges_are_declared_by_name_or_with_fields(tmp_path):
    plain, llm, guard = judges(f"[xstest_strings, {LLM}, {GUARD}]")
    assert plain == "xstest_strings"
    assert isinstance(llm, LlmJudge) and (llm.judges, llm.key_env) == ("refusal", "OPENAI_API_KEY")
    assert isinstance(guard, GuardJudge) and (guard.judges, guard.source) == ("harm", None)


def test_a_saved_recipe_keeps_its_judges(tmp_path):
    recipe = load_recipe(None, [("evaluate.judges", f"[rules, {LLM}, {GUARD}]")])
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


def test_the_schema_contains_the_fields_of_judges():
    schema = json_schema()
    assert {"url", "model", "key_env"} <= schema["$defs"]["LlmJudge"]["properties"].keys()
    assert "guard" in schema["$defs"]["GuardJudge"]["properties"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[ruls]", "unknown judge: 'ruls'; did you mean rules?"),
        ("[gpt]", "unknown judge: 'gpt'; known: rules, xstest_strings"),
        ("[{kind: lm}]", "unknown kind of judge: 'lm'; did you mean llm?"),
        ("[{name: a}]", "unknown kind of judge: None; known: llm, guard"),
        ("[{kind: llm, ulr: x}]", "unknown field in a judge of kind llm: 'ulr'; did you mean url?"),
        ("[{kind: llm, name: a, url: x}]", "evaluate.judges.0.model: field required"),
        ("[{kind: guard, name: a, guard: b, judges: harms}]", "evaluate.judges.0.judges: input should be 'refusal' or"),
        ("[{kind: llm, name: a/b, url: x, model: y}]", "evaluate.judges.0.name"),
        ("[[3]]", "must be names of judges, or mappings with a kind (got [3])"),
        ("[rules, rules]", "two judges have the same name"),
        ("[]", "at least 1"),
        ("rules", "must be a list"),
    ],
)
def test_unknown_judges(text, expected):
    with pytest.raises(UserError) as error:
        judges(text)
    message = str(error.value)
    assert message.startswith("the command line: evaluate.judges") and expected in message and "\n" not in message


def test_the_judges_in_the_docs_can_be_declared():
    blocks = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    declared = [yaml.safe_load(block) for block in blocks]
    listed = [block if isinstance(block, list) else block["evaluate"]["judges"] for block in declared]
    assert [len(judges(yaml.safe_dump(block))) for block in listed] == [5, 1]
