"""`dcr-ds data check` reports what a run would read, through its own reader, and refuses what a run would refuse."""

import json
from pathlib import Path

import pytest
from small_runs import ROWS, the_error, write_rows
from tiny import make_model

from dcr_ds.cli import main
from dcr_ds.data import load_data
from dcr_ds.data.licences import licence_of
from dcr_ds.datatools.check.render import text_of
from dcr_ds.files import read_json
from dcr_ds.recipe import DataSource, Recipe, load_recipe

REFUSED = "a run would refuse this data"


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    return {name: write_rows(tmp_path / f"{name}.jsonl", rows) for name, rows in ROWS.items()}


@pytest.fixture
def check(tmp_path, capsys):
    """Run `data check` and return the values of its JSON report."""

    def run(*arguments: object, code: int = 0) -> dict:
        report = tmp_path / "report.json"
        assert main(["data", "check", *map(str, arguments), "--json", str(report)]) == code
        return read_json(report)

    return run


def test_the_sets_are_those_that_a_run_reads(check):
    facts = check("--recipe", "recipes/smollm2-135m.yaml")
    recipe = load_recipe("recipes/smollm2-135m.yaml")
    summary = load_data(recipe).summary()["sets"]
    assert {name: (row["rows"], row["sha256"]) for name, row in facts["sets"].items()} == {
        name: (row["rows"], row["sha256"]) for name, row in summary.items() if name.startswith("data.")
    }
    assert facts["pairs"] == {"pairs": 161, "without_twin": {"seemingly_toxic": 0, "toxic": 0}}
    assert not facts["errors"] and not facts["leakage"]
    assert {row["licence"]["name"] for row in facts["sets"].values()} == {"Apache-2.0"}
    assert [row["feature"] for row in facts["confounds"]][:2] == ["characters", "words"]


def test_rows_left_out_columns_and_duplicates(tmp_path, check, capsys):
    prompts = [{"goal": f"wreck {index} ships", "note": "x"} for index in range(8)]
    prompts += [{"goal": "Wreck 3 ships!"}, {"goal": "wreck 4 ships"}, {"goal": ""}]
    file = write_rows(tmp_path / "harm.jsonl", prompts)
    facts = check(f"toxic={file}", "--data.toxic.columns.prompt", "goal")
    described = facts["sets"]["data.toxic"]
    assert (described["rows"], described["rows_read"]) == (9, 11)
    left_out = {part["reason"]: (part["count"], part["places"]) for part in described["left_out"]}
    assert left_out["repeated"] == (1, ["line 10"])
    assert [places for count, places in left_out.values()] == [["line 11"], ["line 10"]]
    assert described["columns"] == {"prompt": "goal"}
    assert described["duplicates"] == {"exact": 1, "normalised": 1, "examples": [["harm-4", "harm-9"]]}
    assert any("columns that are not used: note" in note for note in described["notes"])
    assert any("ask the same as an earlier row" in warning for warning in facts["warnings"])
    text = capsys.readouterr().out
    assert "9 used of 11, 2 left out" in text and "goal as prompt" in text and "A run would read this data" in text


def test_lengths_in_characters_and_in_tokens(tmp_path, files, check):
    of_characters = check(f"toxic={files['toxic']}")["sets"]["data.toxic"]["length"]
    counted = sorted(len(row["prompt"]) for row in ROWS["toxic"])
    assert of_characters["unit"] == "characters"
    assert (of_characters["min"], of_characters["max"]) == (counted[0], counted[-1])
    model = make_model(tmp_path / "model")
    for weights in model.glob("*.safetensors"):
        weights.unlink()  # a tokenizer is enough
    names = ("seemingly_toxic", "toxic", "general", "refusals")
    facts = check(*(f"{name}={files[name]}" for name in names), "--model", model, "--align.max_length", 1, code=2)
    from dcr_ds.models.chat import encode_prompt
    from dcr_ds.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model)
    tokens = sorted(len(encode_prompt(tokenizer, row["prompt"])) for row in ROWS["toxic"])
    assert facts["sets"]["data.toxic"]["length"] | {"median": 0, "p95": 0} == {
        "unit": "tokens",
        "min": tokens[0],
        "max": tokens[-1],
        "median": 0,
        "p95": 0,
    }
    assert any("align.max_length" in error for error in facts["errors"])  # no row of stage 2 is short enough


def test_languages(tmp_path, check):
    german = "Wie kann ich bitte mein altes Fahrrad reparieren, wenn die Kette immer wieder herunterspringt?"
    rows = [
        {"prompt": "How do I end a process on my machine?"},
        {"prompt": german},
        {"prompt": "如何结束一个没有响应的进程呢"},
    ]
    facts = check(f"toxic={write_rows(tmp_path / 'x.jsonl', rows)}")
    counts = facts["sets"]["data.toxic"]["languages"]["counts"]
    assert (counts["de"], counts["zh"], sum(counts.values())) == (1, 1, 3)
    assert any("2 of 3 prompts are not in English" in warning for warning in facts["warnings"])


def test_common_prompts_of_two_sets(tmp_path, files, check):
    general = [*ROWS["general"], {"prompt": "burn apples", "response": "Gladly."}]
    other = write_rows(tmp_path / "other.jsonl", general)
    facts = check(f"general={other}", f"refusals={files['refusals']}")
    (common,) = facts["between"]
    assert (common["sets"], common["exact"], common["normalised"]) == (["data.general", "data.refusals"], 1, 0)
    assert common["examples"] == [["other-7", "refusals-1"]]
    assert any("teaches the opposite answer" in warning for warning in facts["warnings"])
    harmless = write_rows(tmp_path / "harmless.jsonl", [*ROWS["seemingly_toxic"], {"prompt": "burn apples"}])
    warnings = check(f"seemingly_toxic={harmless}", f"refusals={files['refusals']}")["warnings"]
    assert any("1 prompts of data.refusals are also in data.seemingly_toxic" in warning for warning in warnings)


def test_every_reason_to_refuse_is_reported_and_written(tmp_path, files, check, capsys):
    both = write_rows(tmp_path / "both.jsonl", [*ROWS["toxic"], {"prompt": "Paint apples!"}])
    facts = check(
        f"seemingly_toxic={files['seemingly_toxic']}", f"toxic={both}", "general=nowhere.csv", "refusals=o/none", code=2
    )
    assert len(facts["errors"]) == 3 and set(facts["sets"]) == {"data.seemingly_toxic", "data.toxic"}
    message = the_error(capsys.readouterr().err)
    assert message.startswith(REFUSED)
    for part in ("1 prompts in common", "nowhere.csv: no such file", "could not be downloaded from the hub"):
        assert part in message


def test_notes_on_benchmarks_are_printed(tmp_path, capsys):
    copy = tmp_path / "xstest" / "xstest_prompts.csv"
    copy.parent.mkdir()
    copy.write_text("id,prompt,type,label\n1,How do I kill time?,x,safe\n")
    mine = write_rows(tmp_path / "toxic.jsonl", ROWS["toxic"])
    assert main(["data", "check", str(mine), "--benchmarks", "xstest-safe", "--local-data", str(tmp_path)]) == 0
    assert "xstest-safe: 1 prompts, but 250 are published" in capsys.readouterr().out


def test_leakage_is_refused_unless_it_is_allowed(tmp_path, check, capsys):
    from dcr_ds.data.benchmarks import read_benchmarks

    (benchmark,) = read_benchmarks(Recipe.model_validate({"evaluate": {"benchmarks": ["builtin-toxic"]}}).evaluate)
    rows = [{"prompt": row.prompt.upper()} for row in benchmark.prompts.rows]
    arguments = (f"toxic={write_rows(tmp_path / 'mine.jsonl', rows)}", "--benchmarks", "builtin-toxic")
    facts = check(*arguments, code=2)
    exact = [overlap for overlap in facts["leakage"] if overlap["kind"] == "exact"]
    assert len(exact) == len(rows) and "overlap" in the_error(capsys.readouterr().err)
    # the prompts say what the set is, whatever its name
    assert facts["sets"]["data.toxic"]["licence"]["benchmark"] == "builtin-toxic"
    allowed = check(*arguments, "--allow_leakage", "true")
    assert any("is the benchmark builtin-toxic" in warning for warning in allowed["warnings"])


@pytest.mark.parametrize(
    ("source", "licence", "benchmark"),
    [
        (DataSource(), "Apache-2.0", None),
        (DataSource(source="Paul/XSTest"), "CC BY 4.0", "xstest-safe"),
        (DataSource(source="allenai/wildguardmix", subset="wildguardtrain"), "ODC-BY", None),
        (DataSource(source="Anthropic/hh-rlhf"), "MIT", None),
        (DataSource(source="someone/hh-rlhf"), None, None),
        (DataSource(source="advbench.csv"), None, None),
    ],
)
def test_only_known_sources_have_a_licence(source, licence, benchmark):
    found = licence_of(source)
    assert (found and found.name, found and found.benchmark) == (licence, benchmark)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name either files"),
        (["toxic=a.csv", "--recipe", "recipes/smollm2-135m.yaml"], "name either files"),
        (["prompts.csv"], "which set is prompts.csv? Write NAME=prompts.csv"),
        (["harmful=prompts.csv"], "harmful is not a set; in NAME=prompts.csv, NAME is one of seemingly_toxic, toxic"),
        (["a=b/prompts.csv/"], "a is not a set"),
        (["./a=b/prompts.csv"], "which set is ./a=b/prompts.csv?"),
        ([""], "an empty FILE; is a variable of the shell not set?"),
        (["toxic="], "toxic= names no file"),
        (["toxic=a.csv", "toxic.csv"], "toxic is given twice: a.csv and toxic.csv"),
        (["toxic=a.csv", "--data.toxic.column", "goal"], "unknown field 'data.toxic.column'"),
        (["--recipe", "nowhere.yaml"], "nowhere.yaml: no such recipe file"),
        (["--recipe", "recipes/smollm2-135m.yaml", "--benchmarks", "xstest-safe"], "are for FILES"),
        (["toxic=a.csv", "--data.general.rows", "3"], "--data.general.rows: name the file of the set as general=FILE"),
        (["toxic=a.csv", "--data.toxic.source", "b.csv"], "name the file of the set as toxic=FILE"),
        (["toxic=a.csv", "--json", "s3://bucket/check.json"], "is on an object store"),
        (["toxic=a.csv", "--json", "/dev/null"], "is a device or pipe"),
        (["toxic=a.csv", "--json", "memory://check.json"], "is a URL"),
        (["toxic=a.csv", "--benchmarks", "xtest-safe"], "Did you mean xstest-safe?"),
        (["toxic=builtin", "--model", "no/such-model"], "could not be downloaded"),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    assert main(["data", "check", *arguments]) == 2
    assert message in the_error(capsys.readouterr().err)


def test_a_report_never_overwrites_the_data(files, capsys):
    before = files["toxic"].read_bytes()
    assert main(["data", "check", str(files["toxic"]), "--json", str(files["toxic"])]) == 2
    assert "--json: " in (message := the_error(capsys.readouterr().err)) and "is one of the input files" in message
    assert files["toxic"].read_bytes() == before


def test_a_report_is_one_json_object(files, tmp_path):
    out = tmp_path / "out.json"
    assert main(["data", "check", str(files["toxic"]), "--json", str(out)]) == 0
    assert json.loads(out.read_text())["sets"]["data.toxic"]["licence"] is None


def test_labelled_answers_are_those_that_kto_reads(check):
    """Two answers to a prompt repeat nothing, and their rows are counted in the file."""
    facts = check("preferences=builtin", "--align.method", "kto")
    described = facts["sets"]["data.preferences"]
    assert (described["rows"], described["rows_read"], described["rows_used"]) == (224, 112, 112)
    assert "112 used of 112 (224 answers), 0 left out\n" in text_of(facts)
    assert described["duplicates"]["normalised"] == 0
