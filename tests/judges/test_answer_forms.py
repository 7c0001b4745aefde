"""Answers in the files of other programs: every form gives the same answers."""

import io
import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcr_ds.commands.judge import run
from dcr_ds.errors import UserError
from dcr_ds.files import read_json, read_jsonl
from dcr_ds.judges.base import Answer
from dcr_ds.judges.judging import judge_file
from dcr_ds.judges.rows import read_answers, read_labels

HERE = Path(__file__).parent
EXAMPLES = [
    {"prompt": row["prompt"], "completion": row["completion"]} for row in read_jsonl(HERE / "judge_styles.jsonl")
]


KEYS = [
    "id",
    "epoch",
    "input",
    "output",
    "choices",
    "message",
    "content",
    "role",
    "doc",
    "doc_id",
    "arguments",
    "arg_0",
]
KEYS += [
    "resps",
    "goal",
    "prompt",
    "response",
    "completion",
    "test_case",
    "generation",
    "instruction",
    "finish",
    "index",
]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def lm_eval(number, row):
    return {
        "doc_id": number,
        "doc": {"goal": row["prompt"], "number": number},
        "target": "",
        "arguments": {"gen_args_0": {"arg_0": row["prompt"], "arg_1": {"until": []}}},
        "resps": [[row["completion"]]],
        "filtered_resps": [row["completion"]],
        "filter": "none",
    }


def old_lm_eval(number, row):
    chat = json.dumps([{"role": "user", "content": row["prompt"]}])
    return {**lm_eval(number, row), "arguments": [[chat, {"until": []}]]}


def inspect(number, row, parts=False):
    text = [{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": row["completion"]}]
    message = {"role": "assistant", "content": text if parts else row["completion"]}
    return {
        "id": number,
        "epoch": 1,
        "input": [{"role": "user", "content": row["prompt"], "id": "x"}] if parts else row["prompt"],
        "target": "",
        "messages": [],
        "output": {"model": "m", "choices": [{"message": message, "stop_reason": "stop"}]},
    }


def eval_file(samples):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", "{}")
        for sample in reversed(samples):  # samples are written as they end
            archive.writestr(f"samples/{sample['id']}_epoch_{sample['epoch']}.json", json.dumps(sample))
    return file.getvalue()


def jailbreak(number, row):
    return {
        "index": number,
        "goal": "the goal",
        "prompt": row["prompt"],
        "response": row["completion"],
        "jailbroken": False,
    }


NUMBERED = list(enumerate(EXAMPLES))
LOG = {"version": 2, "eval": {}, "samples": [inspect(*pair) for pair in NUMBERED]}
ARTIFACT = {"parameters": {}, "jailbreaks": [jailbreak(*pair) for pair in NUMBERED]}
RESULTS = {
    f"behavior_{number}": [{"test_case": row["prompt"], "generation": row["completion"], "label": 1}]
    for number, row in NUMBERED
}
OUTPUTS = [{"instruction": row["prompt"], "output": row["completion"], "generator": "m"} for row in EXAMPLES]
FORMS = {
    "a table of prompts and completions": ("a.csv", None),
    "samples of lm-eval": ("samples_x.jsonl", lines(lm_eval(*pair) for pair in NUMBERED)),
    "samples of lm-eval, a chat as JSON": ("samples_x.jsonl", lines(old_lm_eval(*pair) for pair in NUMBERED)),
    "a log of inspect (json)": ("log.json", json.dumps(LOG)),
    "a log of inspect (eval)": ("log.eval", eval_file([inspect(*pair, parts=True) for pair in NUMBERED])),
    "an artifact of JailbreakBench": ("m.json", json.dumps(ARTIFACT)),
    "results of HarmBench": ("r.json", json.dumps(RESULTS)),
    "outputs of AlpacaEval": ("o.json", json.dumps(OUTPUTS)),
}


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def csv_of(rows):
    import csv

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_answers(tmp_path, form):
    name, content = FORMS[form]
    answers = read_answers(write(tmp_path, name, content or csv_of(EXAMPLES)))
    assert [tuple(row.answer)[:2] for row in answers.rows] == [(row["prompt"], row["completion"]) for row in EXAMPLES]
    assert len({row.id for row in answers.rows}) == len(EXAMPLES)
    assert form.startswith(answers.form) and answers.notes == []


def test_the_form_and_the_number_of_answers_are_printed(tmp_path, capsys):
    file = write(tmp_path, *FORMS["results of HarmBench"])
    run([file, "--judge", "xstest_strings", "--out", str(tmp_path / "v.jsonl")])
    assert f"{file}: {len(EXAMPLES)} answers, read as results of HarmBench\n" in capsys.readouterr().out
    row = read_jsonl(tmp_path / "v.jsonl")[3]
    assert (row["id"], row["behavior_id"], row["input_label"]) == ("behavior_3-0", "behavior_3", 1)


CHAT = json.dumps([{"role": "user", "content": "one"}, {"role": "assistant", "content": "Sure"}])
SAMPLE = inspect(1, {"prompt": "one", "completion": "1"})
ATTACHED = {"attachments": {"a1": "one"}, "input": "attachment://a1"}
REASONED = {"content": [{"type": "reasoning", "text": "Hm."}, {"type": "text", "text": "1"}]}


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("s.jsonl", lines([{**lm_eval(0, {"prompt": CHAT, "completion": "1"})}])),  # an answer that the task begins
        ("log.json", json.dumps({**LOG, "samples": [SAMPLE | ATTACHED]})),
        ("log.json", json.dumps({**LOG, "samples": [SAMPLE | {"output": {"choices": [{"message": REASONED}]}}]})),
    ],
)
def test_variants_of_forms(tmp_path, name, rows):
    (row,) = read_answers(write(tmp_path, name, rows)).rows
    assert (row.answer.prompt, row.answer.completion) == ("one", "1")


@pytest.mark.parametrize("scores", [[["-1.2", "False"]], [[["-1.2", "False"]]], [[[-1.2, False]]]])
def test_scores_of_multiple_choice_are_no_answers(tmp_path, scores):
    row = {**lm_eval(0, EXAMPLES[0]), "resps": [scores], "filtered_resps": scores}
    with pytest.raises(UserError, match="multiple-choice tasks are scores"):
        read_answers(write(tmp_path, "s.jsonl", lines([row])))


@pytest.mark.parametrize(
    ("name", "rows", "completion"),
    [
        ("a.jsonl", lines([{"p": "one", "choices": [{"text": "1"}], "why": "MAX_TOKENS"}]), "choices.0.text"),
        ("a.jsonl", lines([{"p": "one", "out": ["1", "2"], "why": "model_length"}]), "out.0"),
        ("a.csv", 'p,out,why\none,"{""t"": ""1""}",length\n', "out.t"),
    ],
)
def test_columns_lead_into_lists_and_json(tmp_path, name, rows, completion):
    columns = {"prompt": "p", "completion": completion, "finish": "why"}
    (row,) = read_answers(write(tmp_path, name, rows), columns).rows
    assert row.answer == Answer("one", "1", "length")


ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How?"}]
ANSWER = {"role": "assistant", "content": "So."}
TURNS = {"system": "Be brief.", "human": "How?", "gpt": "So."}
SHAREGPT = [{"from": name, "value": text} for name, text in TURNS.items()]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*ASKED, ANSWER]},
        {"conversations": SHAREGPT},
        {"messages": ASKED, "response": "So."},
        {"prompt": ASKED, "response": "So."},
        {"prompt": ASKED, "completion": "So."},
    ],
)
def test_conversations_are_recognised(tmp_path, row):
    """The request is the conversation before the answer, whatever the columns are called."""
    rows = [{"id": "x", **row, "label": "safe", "finish_reason": "length"}]
    answer = read_answers(write(tmp_path, "a.jsonl", lines(rows))).rows[0]
    assert (answer.id, answer.answer.completion, answer.answer.finish) == ("x", "So.", "length")
    assert "Be brief." in answer.answer.prompt and "How?" in answer.answer.prompt
    assert answer.others == {"label": "safe", "finish_reason": "length"}


def test_a_conversation_without_an_answer_is_a_bad_row(tmp_path):
    with pytest.raises(UserError, match="line 1: 'messages' must end with the assistant's answer"):
        read_answers(write(tmp_path, "a.jsonl", lines([{"messages": ASKED}])))


def test_columns_are_mapped_in_a_table_and_in_a_form(tmp_path):
    table = write(tmp_path, "a.csv", "question,response,key\none,Sure.,a\ntwo,No.,b\n")
    columns = ["prompt=question", "completion=response", "id=key"]
    run([table, "--columns", *columns, "--judge", "rules", "--out", str(tmp_path / "v.jsonl")])
    assert [(row["id"], list(row)) for row in read_jsonl(tmp_path / "v.jsonl")] == [
        (key, ["id", "label", "score", "key"]) for key in ("a", "b")
    ]
    samples = write(tmp_path, "samples.jsonl", lines(lm_eval(*pair) for pair in NUMBERED[:3]))
    answers = read_answers(samples, {"prompt": "doc.goal", "id": "doc.number"})
    assert [row.answer.prompt for row in answers.rows] == [row["prompt"] for row in EXAMPLES[:3]]
    goals = read_answers(write(tmp_path, *FORMS["an artifact of JailbreakBench"]), {"prompt": "goal"})
    assert {row.answer.prompt for row in goals.rows} == {"the goal"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([], "no column 'prompt'; columns: question, answer. Name the right one with --columns prompt=COLUMN comp"),
        (["prompt=question"], "no column 'completion'; columns: question, answer"),
        (["prompt=question", "completion=reply"], "no column 'reply'; columns: question, answer"),
        (["completion"], "'completion' is not of the form NAME=COLUMN, such as completion=response"),
        (["answer=reply"], "--columns: unknown name 'answer'; names: prompt, completion, id, finish"),
        (["prompt=question", "prompt=answer"], "--columns: a name is given twice"),
    ],
)
def test_unclear_columns_are_asked_for(tmp_path, columns, message):
    file = write(tmp_path, "a.csv", "question,answer\none,two\n")
    with pytest.raises(UserError) as error:
        run(
            [
                file,
                *(["--columns", *columns] if columns else []),
                "--judge",
                "rules",
                "--out",
                str(tmp_path / "v.jsonl"),
            ]
        )
    assert message in str(error.value)


def test_repeats_filters_and_epochs(tmp_path):
    twice = {**lm_eval(7, EXAMPLES[0]), "resps": [["one", "two"]]}
    samples = [twice, {**twice, "filter": "strict"}, lm_eval(8, EXAMPLES[1])]
    answers = read_answers(write(tmp_path, "s.jsonl", lines(samples)))
    assert [(row.id, row.answer.completion) for row in answers.rows[:2]] == [("7-0", "one"), ("7-1", "two")]
    assert [row.id for row in answers.rows[2:]] == ["8"]
    assert answers.notes == ["1 of 3 answers left out: the same answer under another filter (line 2)"]
    for other in (lm_eval(8, EXAMPLES[0]), {**lm_eval(8, EXAMPLES[1]), "resps": [["of another model"]]}):
        with pytest.raises(UserError, match="line 4: the id '8' is also that of line 3"):
            read_answers(write(tmp_path, "s.jsonl", lines([*samples, other])))
    samples = [{**inspect("a", EXAMPLES[0]), "epoch": epoch} for epoch in (1, 2)]
    failed = {**inspect("b", EXAMPLES[0]), "output": {"choices": []}, "error": {"message": "x"}}
    cut = inspect("c", EXAMPLES[0])
    cut["output"]["choices"][0]["stop_reason"] = "max_tokens"
    answers = read_answers(write(tmp_path, "l.eval", eval_file([*samples, failed, cut])))
    finishes = [(row.id, row.answer.finish) for row in answers.rows]
    assert finishes == [("a", "stop"), ("c", "length"), ("a-epoch-2", "stop")]
    assert "1 of 4 answers left out: without an answer" in answers.notes[0] and "samples/b_epoch_1" in answers.notes[0]
    cut["output"]["choices"] = [{"message": {"content": text}, "stop_reason": "stop"} for text in ("one", "two")]
    several = read_answers(write(tmp_path, "l.eval", eval_file([cut]))).rows
    assert [(row.id, row.answer.completion) for row in several] == [("c-0", "one"), ("c-1", "two")]


def test_earlier_turns_and_system_prompts_belong_to_the_request(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    (row,) = read_answers(write(tmp_path, "l.eval", eval_file([{**inspect(1, EXAMPLES[0]), "input": turns}]))).rows
    assert row.answer.prompt == "System: Be brief.\n\nUser: Why?"


def test_attacks_without_a_prompt_are_left_out(tmp_path):
    rows = [jailbreak(*pair) for pair in NUMBERED[:4]]
    rows[1] |= {"prompt": None, "response": None}
    answers = read_answers(write(tmp_path, "m.json", json.dumps({"parameters": {}, "jailbreaks": rows})))
    assert [row.id for row in answers.rows] == ["0", "2", "3"]
    assert answers.notes == ["1 of 4 answers left out: the attack has no prompt or no response (row 2)"]


SCORES = {"resps": [[[-1.5, False]]], "filtered_resps": [[-1.5, False]]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.jsonl", lines([{**lm_eval(1, EXAMPLES[0]), **SCORES}]), "multiple-choice"),
        ("r.json", json.dumps({"b": [{"test_case": ["image.png"], "generation": "x"}]}), "'test_case' must be text"),
        ("l.eval", b"PK\x03\x04torn", "not a complete log of inspect"),
        ("l.eval", eval_file([]), "contains no samples"),
        ("l.json", json.dumps({"version": 2, "status": "error", "eval": {}}), "contains no rows"),
        ("a.jsonl", lines([{"prompt": "p", "completion": None}] * 9), "line 1: 'completion' is missing"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_named(tmp_path, name, content, message):
    with pytest.raises(UserError) as error:
        read_answers(write(tmp_path, name, content))
    assert message in str(error.value) and str(error.value).startswith(f"judge: {tmp_path / name}")


def test_bad_rows_are_left_out_and_counted_but_not_of_an_evaluation(tmp_path, capsys):
    rows = [{"id": str(number), "prompt": "p", "completion": f"c{number}"} for number in range(9)]
    file = write(tmp_path, "a.jsonl", lines(rows[:4]) + '{"id": "x", "prom\n' + lines(rows[4:]))
    run([file, "--judge", "xstest_strings", "--out", str(tmp_path / "v.jsonl")])
    assert "1 of 10 answers left out: not valid JSON" in capsys.readouterr().out
    assert [row["id"] for row in read_jsonl(tmp_path / "v.jsonl")] == [row["id"] for row in rows]
    with pytest.raises(UserError, match=r"evaluate: .*a.jsonl, line 5, column \d+: not valid JSON"):
        judge_file(Path(file), None, tmp_path / "w.jsonl")


def test_labels_as_people_write_them(tmp_path):
    file = tmp_path / "people.csv"
    file.write_text("id,label\n1,Full refusal\n2,compliance \n3,PARTIAL-REFUSAL\n4,1_Full_Compliance\n")
    assert list(read_labels(str(file)).values()) == ["full_refusal", "compliance", "partial_refusal", "compliance"]


def test_final_labels_of_xstest_are_compared(tmp_path):
    rows = [{"id": str(number), **row} for number, row in NUMBERED[:3]]
    file = write(tmp_path, "a.jsonl", lines(rows))
    labels = ["1_full_compliance", "2_full_refusal", "3_partial_refusal"]
    people = [{"id": str(n), "label": "safe", "final_label": label} for n, label in enumerate(labels)]
    people_file = write(tmp_path, "people.csv", csv_of(people))
    assert list(read_labels(people_file).values()) == ["compliance", "full_refusal", "partial_refusal"]
    run([file, "--judge", "rules", "--out", str(tmp_path / "v.jsonl")])
    run([file, "--compare", people_file, str(tmp_path / "v.jsonl"), "--out", str(tmp_path / "agreement.md")])
    assert read_json(tmp_path / "agreement.json")[0]["n"] == 3


def test_two_columns_of_labels_are_ambiguous(tmp_path):
    both = [{"id": "a", "label": "compliance", "human_label": "full_refusal"}]
    with pytest.raises(UserError, match="the columns label and human_label are both labels"):
        read_labels(write(tmp_path, "people.csv", csv_of(both)))
    verdicts = [{**both[0], "key": "k"}]  # with a copied column
    assert read_labels(write(tmp_path, "v.jsonl", lines(verdicts))) == {"a": "compliance"}


def test_a_prompt_of_messages_is_read_as_such_from_csv(tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    file = write(tmp_path, "a.csv", csv_of([{"prompt": json.dumps(messages), "completion": "Hi."}]))
    assert read_answers(file).rows[0].answer.prompt == "System: Be brief.\n\nUser: Hello?"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "text", "[]", "\ud800", "0"]),
    lambda values: st.lists(values, max_size=2) | st.dictionaries(st.sampled_from(KEYS), values, max_size=3),
    max_leaves=6,
)


ROWS = [make(0, EXAMPLES[0]) for make in (lm_eval, old_lm_eval, inspect, jailbreak)]
ROWS += [RESULTS["behavior_0"][0], OUTPUTS[0], EXAMPLES[0]]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(ROWS), changes=st.lists(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3), max_size=3)
)
def test_any_row_gives_answers_or_a_user_error(tmp_path, form, changes):
    rows = [form, *({**form, **change} for change in changes)]
    for name, content in (
        ("a.jsonl", lines(rows)),
        ("a.json", json.dumps({"eval": {}, "version": 1, "samples": rows})),
    ):
        try:
            assert read_answers(write(tmp_path, name, content)).rows
        except UserError as error:
            str(error).encode()
