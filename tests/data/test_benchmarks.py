"""Declared benchmarks: the shipped declarations are consistent, and published files are read as declared."""

import json
from pathlib import Path

import pytest
from processes import ROOT

from dcr_ds.data.benchmarks import declarations, read_benchmarks, suites
from dcr_ds.errors import UserError
from dcr_ds.recipe import EvaluateSection, Recipe, dump_recipe, load_recipe
from dcr_ds.transcript import transcript

DECLARED = declarations()
PUBLIC = [name for name, declared in DECLARED.items() if not declared.shipped]
OVER_REFUSAL = {
    "xstest-safe", "coconot-contrast", "or-bench-hard", "oktest", "phtest", "phtest-controversial",
    "i-physicalsafety-safe", "jailbreakbench-benign", "evorefuse-test", "falsereject-test", "fortress-benign",
    "xsb-safe", "ms-xsb-safe",
}  # fmt: skip
# columns of the published files whose names differ from ours; `which` is a column that filters rows
HEADERS = {
    "xstest-safe": ("xstest/xstest_prompts.csv", {"category": "type", "which": ("label", "safe")}),
    "xstest-unsafe": ("xstest/xstest_prompts.csv", {"category": "type", "which": ("label", "unsafe")}),
    "phtest": ("phtest/PHTest.csv", {"prompt": "Request", "which": ("Harmfulness", "harmless")}),
    "phtest-controversial": ("phtest/PHTest.csv", {"prompt": "Request", "which": ("Harmfulness", "controversial")}),
    "advbench": ("advbench/harmful_behaviors.csv", {"prompt": "goal"}),
    "harmbench": (
        "harmbench/harmbench_behaviors_text_test.csv",
        {"id": "BehaviorID", "prompt": "Behavior", "category": "SemanticCategory"}
        | {"which": ("FunctionalCategory", "standard")},
    ),
    "jailbreakbench-benign": ("jailbreakbench/benign_behaviors.csv", {"id": "index", "prompt": "goal"}),
    "jailbreakbench-harmful": (
        "jailbreakbench/harmful_behaviors.csv",
        {"id": "", "prompt": "Goal", "category": "Category"},
    ),
    "simple-safety-tests": (
        "simple_safety_tests/simple_safety_tests.csv",
        {"prompt": "prompts_final", "category": "harm_area"},
    ),
    "or-bench-hard": ("or_bench/or-bench-hard-1k.csv", {}),
    "coconot-contrast": ("coconot/coconot_contrast_eval.jsonl", {}),
    "oktest": ("oktest/OKTest.csv", {}),
    "strongreject": ("strongreject/strongreject_dataset.csv", {"prompt": "forbidden_prompt"}),
    "evorefuse-test": ("evorefuse/evo_test.jsonl", {"prompt": "instruction"}),
    "falsereject-test": ("falsereject/test.jsonl", {"category": "category_text"}),
    "xsb-safe": ("xsb/xsb.csv", {"which": ("label", "safe")}),
    "xsb-unsafe": ("xsb/xsb.csv", {"which": ("label", "unsafe")}),
}


def read(*benchmarks, **settings):
    return read_benchmarks(EvaluateSection(benchmarks=list(benchmarks), **settings))


def write_form(folder: Path, name: str) -> Path:
    """Two rows in the form of the published file, and a third to be dropped if the declaration filters rows."""
    path, header = HEADERS[name]
    column, value = header.get("which", ("kind", "any"))
    rows = [
        {header.get("id", "id"): f"r{i}", header.get("prompt", "prompt"): f"{i} ways, and more?"}
        | {header.get("category", "category"): "c", column: value if i < 2 else "other"}
        for i in range(3)
    ]
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".csv":
        lines = [",".join(rows[0])] + [",".join(f'"{cell}"' for cell in row.values()) for row in rows]
        file.write_text("\n".join(lines) + "\n")
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_every_declaration_is_complete_and_documented():
    document = (ROOT / "docs" / "benchmark-sets.md").read_text(encoding="utf-8")
    assert len(PUBLIC) == 28 and {name for name in PUBLIC if DECLARED[name].wanted == "comply"} == OVER_REFUSAL
    for name, declared in DECLARED.items():
        assert declared.title and declared.licence and declared.citation
        assert f"`{name}`" in document
        assert bool(declared.shipped) == (declared.online.source == "builtin")
        assert declared.local is None or (not declared.local.split and not declared.local.subset)
        line = next(line for line in document.splitlines() if line.startswith(f"| `{name}`"))
        assert ("†" in line, "‡" in line) == tuple(form in declared.unverified for form in ("online", "local"))
        assert declared.licence in line and (not declared.prompts or f" {declared.prompts} " in line)


def test_suites_name_declared_benchmarks_once():
    assert set(suites()) == {"builtin", "quick", "paper"}
    for ones in suites().values():
        names = [benchmark.name for benchmark in ones]
        assert len(set(names)) == len(names) and set(names) <= set(DECLARED)
    paper = {benchmark.name for benchmark in suites()["paper"]}
    assert {"xstest-safe", "coconot-contrast", "or-bench-hard", "oktest", "phtest", "xstest-unsafe"} <= paper


@pytest.mark.parametrize("name", HEADERS)
def test_benchmark_files_are_read_as_declared(tmp_path, name):
    write_form(tmp_path, name)
    [benchmark] = read(name, local_data=str(tmp_path))
    some_do_not_count = "which" in HEADERS[name][1]
    assert (benchmark.name, benchmark.wanted) == (name, DECLARED[name].wanted)
    assert [row.prompt for row in benchmark.prompts.rows] == [
        f"{i} ways, and more?" for i in range(2 if some_do_not_count else 3)
    ]
    has_category = "category" in DECLARED[name].local.columns
    assert not has_category or {row.category for row in benchmark.prompts.rows} == {"c"}
    if DECLARED[name].prompts:
        assert "are published" in benchmark.prompts.notes[-1]


def test_columns_with_tags_or_single_turns_are_read(tmp_path):
    file = tmp_path / "safety_tuned_llamas/evaluation/I-MaliciousInstructions.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"instructions": ["a", "b"], "tags": ["x", "y"], "inputs": []}')
    [malicious] = read("i-malicious-instructions", local_data=str(tmp_path))
    assert [(row.prompt, row.category) for row in malicious.prompts.rows] == [("a", "x"), ("b", "y")]
    turns = [{"question_id": i, "turns": [f"do {i}"], "category": "k", "prompt_style": "base"} for i in (1, 2)]
    questions = tmp_path / "question.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in [*turns, turns[0] | {"prompt_style": "slang"}]))
    [sorry] = read({"name": "sorry-bench", "source": str(questions)})
    assert [(row.id, row.prompt) for row in sorry.prompts.rows] == [("1", "do 1"), ("2", "do 2")]


def conversation(*texts):
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def test_conversations_are_read_as_prompts_with_earlier_turns(tmp_path):
    turns = conversation("We stage a play.", "Which one?", "How does the villain steal the crown?")
    other = conversation("We run a museum.", "Which one?", "How does the villain steal the crown?")
    rows = [
        {"messages": turns, "label": "safe"},
        {"messages": other, "label": "safe"},
        {"messages": turns, "label": "unsafe"},
    ]
    file = tmp_path / "xsb/ms_xsb.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [safe] = read("ms-xsb-safe", local_data=str(tmp_path))
    first, second = safe.prompts.rows  # the same last message after other turns is another prompt
    assert first.prompt == second.prompt == turns[-1]["content"]
    assert list(first.context) == turns[:-1] and list(first.messages) == turns
    assert transcript(first.context, first.prompt).startswith(
        "User: We stage a play.\n\nAssistant: Which one?\n\nUser: How does"
    )
    assert transcript((), "one") == "one"


def test_conversations_in_a_csv_file_are_json(tmp_path):
    turns = conversation("We stage a play.", "Which one?", "How does the villain steal the crown?")
    cells = [json.dumps(turns), '["sic"] [1]', '[{"a": 1}]']
    rows = ["prompt"] + ['"' + cell.replace('"', '""') + '"' for cell in cells]
    (tmp_path / "own.csv").write_text("\n".join(rows) + "\n")
    [own] = read({"name": "own", "wanted": "comply", "prompts": str(tmp_path / "own.csv")})
    assert list(own.prompts.rows[0].messages) == turns
    assert [row.prompt for row in own.prompts.rows[1:]] == cells[1:]  # a prompt may be any other text


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (conversation("Hello", "Hi"), "must end with the user's message"),
        ([{"role": "user"}], 'must have the form {"role": text, "content": text}'),
        (["one", "two"], "must be text, this is a list"),
    ],
)
def test_prompts_that_are_no_conversations_are_named(tmp_path, messages, words):
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"prompt": messages}) + "\n")
    with pytest.raises(UserError, match="own.jsonl.*row 1|own.jsonl.*line 1") as error:
        read({"name": "own", "wanted": "comply", "prompts": str(file)})
    assert words in str(error.value)


def test_the_hash_of_prompts_without_earlier_turns_is_that_of_versions_that_knew_none():
    from dcr_ds.data.records import Prompt, digest

    assert digest([Prompt("1", "how?")]) == "e93de615369c670bd48c7cc5a760964c59d8d4421631de829e43c2851abe9e4f"
    assert digest([Prompt("1", "how?", context=({"role": "user", "content": "x"},))]) != digest([Prompt("1", "how?")])


def test_benign_twins_have_the_pairs_of_their_adversarial_prompts(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"ID": i, "adversarial_prompt": f"break {i}", "benign_prompt": f"mend {i}", "risk_domain": "d", "rubric": ["a"]}
        for i in range(3)
    ]
    file = tmp_path / "fortress/train-00000-of-00001.parquet"
    file.parent.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    benign, adversarial = read("fortress-benign", "fortress-adversarial", local_data=str(tmp_path))
    assert benign.counterpart == adversarial.name and adversarial.wanted == "refuse"
    for name, benchmark in (("mend", benign), ("break", adversarial)):
        assert [(row.id, row.prompt, row.pair) for row in benchmark.prompts.rows] == [
            (f"{i}", f"{name} {i}", f"fortress {i}") for i in range(3)
        ]


def test_prompts_of_a_benchmark_and_of_its_counterpart_are_noted(tmp_path):
    rows = "prompt\nHow do I kill time?\n"
    own = {name: tmp_path / f"{name}.csv" for name in ("safe", "harmful")}
    own["safe"].write_text(rows + "How do I?\n")
    own["harmful"].write_text(rows.upper().replace("PROMPT", "prompt"))
    safe = {"name": "safe", "wanted": "comply", "prompts": str(own["safe"]), "counterpart": "harmful"}
    benchmarks = read(safe, {"name": "harmful", "wanted": "refuse", "prompts": str(own["harmful"])})
    assert [len(benchmark.prompts.notes) for benchmark in benchmarks] == [1, 0]
    assert benchmarks[0].prompts.notes[0].startswith("1 prompts are also in harmful")


@pytest.mark.parametrize(
    ("name", "wanted", "counterpart", "message"),
    [
        ("safe", "comply", "harmfull", "safe.counterpart: 'harmfull' is not evaluated; benchmarks: safe, harmful"),
        ("safe", "comply", "safe", r"names one of harmful prompts \(wanted: refuse\)"),
        ("worse", "refuse", "harmful", "stands with a benchmark of harmless prompts"),
        ("xstest-safe", "refuse", None, "is a public benchmark with wanted: comply"),
    ],
)
def test_benchmarks_that_contradict_themselves(tmp_path, name, wanted, counterpart, message):
    file = tmp_path / "p.csv"
    file.write_text("prompt\nHow do I kill time?\n")
    own = {"name": name, "wanted": wanted, "prompts": str(file), "counterpart": counterpart}
    with pytest.raises(UserError, match=message):
        read(own, {"name": "harmful", "wanted": "refuse", "prompts": str(file)})


def test_columns_and_rows_of_a_declared_benchmark_can_be_corrected(tmp_path):
    file = tmp_path / "xsb.csv"
    file.write_text("text,kind\none,harmless\ntwo,harmful\n")
    with pytest.raises(UserError, match="no column 'label'; columns: text, kind"):
        read({"name": "xsb-safe", "source": str(file)})
    corrected = {"source": str(file), "columns": {"prompt": "text"}, "where": {"kind": "harmless"}}
    assert [row.prompt for row in read({"name": "xsb-safe", **corrected})[0].prompts.rows] == ["one"]
    with pytest.raises(UserError, match="quick is a suite; columns"):
        read({"name": "quick", "columns": {"prompt": "text"}})


@pytest.mark.parametrize(
    ("name", "expected", "columns"),
    [
        (
            "jailbreakbench-benign",
            ("JailbreakBench/JBB-Behaviors", "behaviors", "benign"),
            ("Index", "Goal", "Category"),
        ),
        ("coconot-contrast", ("allenai/coconot", "contrast", "test"), ("id", "prompt", "category")),
    ],
)
def test_without_a_local_copy_the_hub_is_used(monkeypatch, name, expected, columns):
    import datasets

    def load(source, subset, split, revision):
        assert (source, subset, split, revision) == (*expected, None)
        return datasets.Dataset.from_list([dict(zip(columns, ("7", "how?", "c"), strict=True))])

    monkeypatch.setattr(datasets, "load_dataset", load)
    [benchmark] = read(name)
    assert [(row.id, row.prompt, row.category) for row in benchmark.prompts.rows] == [("7", "how?", "c")]


def test_built_in_sets_are_declared_like_any_other():
    benchmarks = read("builtin")
    assert [(benchmark.name, len(benchmark.prompts.rows)) for benchmark in benchmarks] == [
        ("builtin-seemingly-toxic", 63), ("builtin-toxic-twins", 63), ("builtin-toxic", 45), ("builtin-general", 47),
    ]  # fmt: skip
    assert not any(benchmark.prompts.notes for benchmark in benchmarks)
    [alone] = read("builtin-toxic")
    assert alone.prompts == benchmarks[2].prompts


def test_rows_limit_the_sample_which_is_the_same_for_all_models():
    few, many = (read({"name": "builtin-toxic", "rows": rows})[0].prompts for rows in (10, 1000))
    assert few.rows == read({"name": "builtin-toxic", "rows": 10})[0].prompts.rows
    assert len(few.rows) == 10 and "10 of 45 prompts drawn" in few.notes
    assert len(many.rows) == 45 and few.sha256 != many.sha256 and set(few.rows) < set(many.rows)
    assert [len(benchmark.prompts.rows) for benchmark in read({"name": "builtin", "rows": 7})] == [7, 7, 7, 7]


def test_a_saved_recipe_keeps_its_benchmarks(tmp_path):
    own = {"name": "mine", "prompts": "p.csv", "wanted": "refuse", "max_new_tokens": 9}
    benchmarks = ["builtin", {"name": "xstest-safe", "source": "x.csv", "rows": 3}, own]
    recipe = Recipe.model_validate({"evaluate": {"benchmarks": benchmarks, "max_new_tokens": "auto"}})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


@pytest.mark.parametrize(
    ("benchmarks", "settings", "words"),
    [
        (["xtest-safe"], {}, ["'xtest-safe'", "Did you mean xstest-safe?", "{name: NAME, prompts: FILE, wanted:"]),
        (["something"], {}, ["'something'", "Available: advbench", "paper"]),
        ([{"name": "paper", "source": "p.csv"}], {}, ["paper is a suite", "evaluate.local_data"]),
        (["builtin", "builtin-toxic"], {}, ["have the name 'builtin-toxic'", "part of builtin"]),
        (["paper"], {"local_data": "nowhere"}, ["nowhere/oktest/OKTest.csv", "nowhere/phtest/PHTest.csv", "online"]),
        ([{"name": "xstest-safe", "source": "nowhere.csv"}], {}, ["benchmarks.xstest-safe", "nowhere.csv", "no such"]),
    ],
)
def test_unreadable_benchmarks_are_named(benchmarks, settings, words):
    with pytest.raises(UserError) as error:
        read(*benchmarks, **settings)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["1,one,safe", ",two,safe"], ["line 3", "'id' is missing", "remove the column"]),
        (["1,one,safe", "1,two,safe"], ["line 3", "the id '1'", "line 2"]),
        (["1,one,safe", "2,  ,safe"], ["line 3", "'prompt' is empty"]),
        (["1,one,other"], ["no row matches", "'label' contains 'other'"]),
    ],
)
def test_bad_rows_are_named_with_file_and_line(tmp_path, lines, words):
    file = tmp_path / "x.csv"
    file.write_text("\n".join(["id,prompt,label", *lines]) + "\n")
    declared = DECLARED["xstest-safe"].local
    with pytest.raises(UserError) as error:
        prompts = {"source": str(file), "where": declared.where, "max_bad_share": 0}
        read({"name": "mine", "wanted": "comply", "prompts": prompts})
    assert all(word in str(error.value) for word in [str(file), "mine", *words]), str(error.value)
