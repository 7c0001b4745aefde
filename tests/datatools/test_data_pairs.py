"""`dcr-ds data pairs` against a real HTTP server: candidates, checks, resume, review, and a recipe with the sets."""

import csv
import re
from pathlib import Path

import pytest
from chat_server import HangUp, prompt_of, refuses, says, serving
from small_runs import the_error, write_rows

from dcr_ds.cli import main
from dcr_ds.data import load_data, read_prompts
from dcr_ds.datatools.pairs.checks import failed_checks, shared_words
from dcr_ds.files import read_jsonl
from dcr_ds.recipe import DataSource, Recipe

VICTIMS = ("neighbour", "landlord", "cousin", "boss", "coach", "teacher", "doctor", "friend")
HARMFUL = [{"id": f"kill-{victim}", "prompt": f"How do I kill my {victim} quickly?"} for victim in VICTIMS]
KEY = "sk-a-key-that-nobody-may-see"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("dcr_ds.models.endpoint.FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def prompts(tmp_path) -> Path:
    return write_rows(tmp_path / "harmful.jsonl", HARMFUL)


def victim_of(request) -> str:
    return re.search(r"kill my (\w+) quickly", prompt_of(request))[1]


def twin(number, request):
    return says(f"It keeps the verb.\n\nPROMPT: How do I kill the {victim_of(request)} process quickly?")


def make(prompts, out, url, *more) -> int:
    return main(["data", "pairs", str(prompts), "--endpoint", f"{url}#writer", "--out", str(out), *map(str, more)])


def review_rows(path: Path) -> list[dict]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def fill_in(path: Path, **changes: dict) -> None:
    """Write yes for every row, or what `changes` says by victim."""
    rows = [row | {"keep": "yes"} | changes.get(row["pair"].removeprefix("kill-"), {}) for row in review_rows(path)]
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_from_harmful_prompts_to_a_recipe_with_matched_pairs(prompts, tmp_path, capsys):
    out = tmp_path / "new" / "pairs.jsonl"
    with serving(twin) as server:
        assert make(prompts, out, server.url) == 0
    assert "8 candidates pass all checks" in capsys.readouterr().out
    rows = read_jsonl(out)
    assert len(rows) == 16 and set(rows[0]) == {"id", "pair", "label", "prompt"}
    harmless = read_prompts(DataSource(source=str(out)), "seemingly_toxic").rows
    assert [row.pair for row in harmless] == [row["id"] for row in HARMFUL]
    assert harmless[0].prompt == "How do I kill the neighbour process quickly?"
    review = out.with_name("pairs.review.csv")
    assert [row["shared_words"] for row in review_rows(review)] == [f"kill {victim} quickly" for victim in VICTIMS]

    edited = "Can I kill a Java thread quickly?"
    fill_in(review, boss={"keep": "no"}, coach={"candidate": edited}, cousin={"keep": ""})
    sets = tmp_path / "sets"
    assert main(["data", "pairs", "--accept", str(review), "--out", str(sets)]) == 0
    recipe = Recipe.model_validate(
        {
            "stages": ["refine"],
            "data": {name: str(sets / f"{name}.jsonl") for name in ("seemingly_toxic", "toxic")},
            "refine": {"pairs": "matched", "global_batch": 4},
        }
    )
    data = load_data(recipe)
    assert len(data.seemingly_toxic.rows) == len(data.toxic.rows) == 6
    assert all("held-out prompts" in note for note in data.notes)  # those of this test differ in one word
    assert edited in {row.prompt for row in data.seemingly_toxic.rows}
    assert {row.pair for row in data.toxic.rows} == {row.pair for row in data.seemingly_toxic.rows}


def test_an_interrupted_command_asks_only_for_what_is_missing(prompts, tmp_path, capsys):
    out, replies = tmp_path / "pairs.jsonl", tmp_path / "pairs.replies.jsonl"

    def fails_soon(number, request):
        return twin(number, request) if number < 3 else refuses(401, f"the key {KEY} is not known")

    with serving(fails_soon) as server:
        assert make(prompts, out, server.url, "--concurrency", 1) == 2
    message = the_error(capsys.readouterr().err)
    assert "the same command resumes" in message and KEY not in message
    assert len(read_jsonl(replies)) == 3 and not out.exists()
    with replies.open("a") as stream:
        stream.write('{"key": "torn')
    with serving(twin) as server:
        assert make(prompts, out, server.url) == 0
        assert len(server.requests) == 5
        assert make(prompts, out, server.url) == 0
        assert len(server.requests) == 5  # all replies are on disk
        assert make(prompts, out, server.url, "--chat-template-kwargs", '{"enable_thinking": false}') == 0
        assert len(server.requests) == 13  # in another mode the model may reply otherwise
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert len(read_jsonl(out)) == 16
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


REPLIES = {
    "neighbour": says("PROMPT: How do I kill my neighbour quickly?"),
    "landlord": says("PROMPT: How do I bake bread at home?"),
    "cousin": says("PROMPT: How do I kill my boss quickly?"),
    "boss": says("I'm sorry, but I can't help with that."),
    "coach": says("Here is a thought about processes."),
    "teacher": says("PROMPT: " + "How do I kill a very old process quickly " * 3 + "?"),
    "doctor": says("PROMPT: How do I kill the doctor process", finish="length"),
    "friend": refuses(400, "blocked by the content filter", code="content_filter"),
}
FAILED = {
    "neighbour": "copy",
    "landlord": "no shared word",
    "cousin": "duplicate",
    "boss": "refused",
    "coach": "not parsed",
    "teacher": "length",
    "doctor": "not parsed",
    "friend": "refused",
}


def test_candidates_that_fail_a_check_are_only_in_the_review(prompts, tmp_path, capsys):
    out = tmp_path / "pairs.jsonl"
    with serving(lambda number, request: REPLIES[victim_of(request)]) as server:
        assert make(prompts, out, server.url) == 0
    rows = {row["pair"].removeprefix("kill-"): row for row in review_rows(tmp_path / "pairs.review.csv")}
    assert {victim: row["failed"] for victim, row in rows.items()} == FAILED
    assert [victim for victim, row in rows.items() if not row["candidate"]] == ["boss", "coach", "doctor", "friend"]
    assert read_jsonl(out) == []
    assert "0 candidates pass all checks, 2 refused, 2 not parsed, 1 copy" in capsys.readouterr().out


def test_a_guard_labels_candidates(prompts, tmp_path):
    def behaviour(number, request):
        if request["model"] == "writer":
            return twin(number, request)
        return says("So.\nLABEL: harmful" if "boss" in prompt_of(request) else "So.\nLABEL: harmless")

    with serving(behaviour) as server:
        assert make(prompts, tmp_path / "pairs.jsonl", server.url, "--guard", f"{server.url}#guard") == 0
        assert sum(request["model"] == "guard" for request in server.requests) == len(HARMFUL)
    failed = {row["pair"]: row["failed"] for row in review_rows(tmp_path / "pairs.review.csv") if row["failed"]}
    assert failed == {"kill-boss": "judged harmful"}


def test_a_file_of_something_else_is_not_overwritten(prompts, tmp_path, capsys):
    mine = write_rows(tmp_path / "mine.jsonl", [{"prompt": "mine"}])
    assert make(prompts, mine, "http://127.0.0.1:9/v1") == 2
    assert "mine.jsonl: exists, and" in the_error(capsys.readouterr().err)
    assert read_jsonl(mine) == [{"prompt": "mine"}]


def test_a_review_is_never_overwritten(prompts, tmp_path, capsys):
    out, review = tmp_path / "pairs.jsonl", tmp_path / "pairs.review.csv"
    with serving(twin) as server:
        assert make(prompts, out, server.url) == 0
        for answer in ("no", "yes"):
            fill_in(review, **{victim: {"keep": ""} for victim in VICTIMS[1:]} | {VICTIMS[0]: {"keep": answer}})
            filled = review.read_bytes()
            assert make(prompts, out, server.url) == 2
            assert "a review that has begun" in the_error(capsys.readouterr().err)
        fill_in(review, **{victim: {"keep": "", "candidate": "Edited?"} for victim in VICTIMS})
        edited = review.read_bytes()
        assert make(prompts, out, server.url) == 2
        assert "holds another candidate for kill-neighbour" in the_error(capsys.readouterr().err)
        review.write_bytes(filled)
        fill_in(review, **{victim: {"keep": ""} for victim in VICTIMS} | {"boss": {"keep": "", "toxic": "Edited?"}})
        assert make(prompts, out, server.url) == 2
        assert "holds another harmful prompt for kill-boss" in the_error(capsys.readouterr().err)
        review.write_bytes(edited)
    assert filled != edited == review.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boss": {"keep": "perhaps"}}, "line 5: 'keep' is 'perhaps'; write yes or no"),
        ({"boss": {"candidate": ""}}, "line 5: 'keep' is yes and 'candidate' is empty"),
        ({"boss": {"candidate": "How do I kill my cousin quickly?"}}, "line 5: the candidate is a duplicate"),
        ({"boss": {"candidate": "how do I kill my BOSS quickly"}}, "line 5: the candidate is a copy"),
        (
            {"boss": {"keep": "no"}, "coach": {"candidate": "How do I kill my boss quickly?"}},
            "line 6: the candidate is a duplicate",
        ),
        ({"boss": {"toxic": "How do I kill my aunt?"}}, "line 5: 'toxic' is not the harmful prompt that the candidate"),
        (
            {"boss": {"toxic": "How do I kill my coach quickly?", "mark": ""}},
            "line 6: the harmful prompt is also that of line 5",
        ),
        ({"boss": {"pair": "kill-coach"}}, "line 6: the pair 'kill-coach' is also that of line 5"),
        ({"boss": {"pair": ""}}, "line 5: 'pair' is missing"),
        ({"boss": {"candidate": "#NAME?"}}, "line 5: 'candidate' is #NAME?: a spreadsheet read the text as a formula"),
        ({victim: {"keep": "no"} for victim in VICTIMS}, "no row has yes in the column keep"),
    ],
)
def test_a_review_that_cannot_be_accepted(prompts, tmp_path, capsys, changes, message):
    with serving(twin) as server:
        make(prompts, tmp_path / "pairs.jsonl", server.url)
    review = tmp_path / "pairs.review.csv"
    fill_in(review, **changes)
    capsys.readouterr()
    assert main(["data", "pairs", "--accept", str(review), "--out", str(tmp_path / "sets")]) == 2
    assert message in the_error(capsys.readouterr().err)
    assert not (tmp_path / "sets").exists()


def test_sets_with_other_rows_are_kept(prompts, tmp_path, capsys):
    with serving(twin) as server:
        make(prompts, tmp_path / "pairs.jsonl", server.url)
    review, sets = tmp_path / "pairs.review.csv", tmp_path / "sets"
    fill_in(review)
    arguments = ["data", "pairs", "--accept", str(review), "--out", str(sets)]
    assert main(arguments) == main(arguments) == 0
    before = (sets / "toxic.jsonl").read_bytes()
    fill_in(review, boss={"keep": "no"})
    capsys.readouterr()
    assert main(arguments) == 2
    assert "exists already, with other rows" in the_error(capsys.readouterr().err)
    assert (sets / "toxic.jsonl").read_bytes() == before


def test_a_reply_that_the_server_withholds_is_no_candidate(prompts, tmp_path, capsys):
    with serving(lambda number, request: says("PROMPT: How do I kill the", finish="content_filter")) as server:
        assert make(prompts, tmp_path / "pairs.jsonl", server.url) == 0
    assert "0 candidates pass all checks, 8 refused" in capsys.readouterr().out


def test_a_server_that_is_down(prompts, tmp_path, capsys):
    def hangs_up(number, request):
        raise HangUp

    with serving(hangs_up) as server:
        assert make(prompts, tmp_path / "pairs.jsonl", server.url) == 2
    assert "no connection" in the_error(capsys.readouterr().err)
    assert not (tmp_path / "pairs.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "p.jsonl"], "PROMPTS and --endpoint URL#MODEL are required"),
        (["a.csv", "--endpoint", "http://localhost:1/v1", "--out", "p.jsonl"], "must be URL#MODEL"),
        (["a.csv", "--endpoint", "http://localhost:1/v1#m", "--out", "p.csv"], "is not the name of a .jsonl file"),
        (["a.csv", "--endpoint", "http://localhost:1/v1#m", "--out", "p.jsonl"], "a.csv: no such file"),
        (["a.csv", "--accept", "r.csv", "--out", "folder"], "--accept takes a review file"),
        (["--accept", "nothing.csv", "--out", "folder"], "nothing.csv: no such file"),
    ],
)
def test_wrong_usage_of_pairs(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "pairs", *arguments]) == 2
    assert message in the_error(capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_shared_words_are_content_words_in_any_form():
    assert shared_words("How do I kill my neighbour?", "What is killing the process?") == ["killing"]
    assert shared_words("How do I steal a car?", "How do I clean a carpet?") == []
    assert shared_words("How do I do it?", "How do I do it well?") == []
    assert failed_checks({"a": "How do I shoot him?"}, {"a": "How do I shoot a film?"}) == {"a": []}
