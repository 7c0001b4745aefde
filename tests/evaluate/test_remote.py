"""Generation through an endpoint: a real server in this process, which may fail in between."""

from dataclasses import replace

import pytest
from chat_server import refuses, says, serving
from tiny_models import ONE_RANK, PROMPTS

from dcr_ds.data import Benchmark, PromptSet
from dcr_ds.errors import UserError
from dcr_ds.evaluate.cost import Cost
from dcr_ds.evaluate.remote import generate_remote, prepare_remote
from dcr_ds.evaluate.run import evaluate_endpoint
from dcr_ds.files import read_json, read_jsonl, write_json, write_jsonl
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.recipe import EvaluateSection
from dcr_ds.recipe.layout import ModelFolder

BENCHMARK = Benchmark("seeming", "comply", PromptSet("seeming", "test", PROMPTS, "0" * 64))


def answers(number: int, request: dict):
    """Answer with the prompt, truncated if it is long."""
    text = request["messages"][-1]["content"]
    return says(f" {text} ", finish="length" if "really" in text else "stop")


def endpoint(server, retries: int = 0) -> Endpoint:
    return Endpoint(server.url, "m", concurrency=2, retries=retries)


def test_rows_equal_those_of_a_local_model_without_a_template(tmp_path):
    with serving(answers) as server:
        generations = prepare_remote(BENCHMARK, tmp_path / "generations.jsonl", 8, endpoint(server))
        generate_remote(generations, endpoint(server), ONE_RANK)
    rows = read_jsonl(generations.file)
    assert generations.is_complete and [row["id"] for row in rows] == [prompt.id for prompt in PROMPTS]
    assert all(row["completion"] == row["prompt"] and row["template_hash"] is None for row in rows)
    assert {row["finish"] for row in rows} == {"length", "stop"}
    assert all(row["tokens"] == len(row["prompt"].split()) for row in rows)
    assert all(len(request["messages"]) == 1 and request["temperature"] == 0 for request in server.requests)
    assert all(request["max_tokens"] == 8 for request in server.requests)


def test_after_a_server_failure_only_the_rest_is_requested(tmp_path):
    with serving(lambda number, request: answers(number, request) if number < 6 else refuses(503, "down")) as server:
        generations = prepare_remote(BENCHMARK, tmp_path / "generations.jsonl", 8, endpoint(server))
        with pytest.raises(UserError, match="are left, and the same command resumes"):
            generate_remote(generations, endpoint(server), ONE_RANK)
        kept = read_jsonl(generations.file)
        assert 0 < len(kept) <= 6
        url = server.url
    with serving(answers) as server:
        again = endpoint(server)
        again.url = url + "/chat/completions"  # the same address for the hash of the settings
        generations = prepare_remote(BENCHMARK, generations.file, 8, again)
        generate_remote(generations, endpoint(server), ONE_RANK)
    assert len(server.requests) == len(PROMPTS) - len(kept)
    assert all(row in read_jsonl(generations.file) for row in kept) and generations.is_complete


def test_more_prompts_keep_the_answers_that_were_paid_for(tmp_path, capsys):
    """As with a larger --limit. Another text under the same id is another prompt."""
    file, changed = tmp_path / "generations.jsonl", replace(PROMPTS[2], prompt="something else?")
    with serving(answers) as server:
        for prompts in (PROMPTS[:5], [PROMPTS[0], PROMPTS[1], changed, *PROMPTS[3:9]], PROMPTS[:2]):
            benchmark = BENCHMARK._replace(prompts=replace(BENCHMARK.prompts, rows=prompts))
            generations = prepare_remote(benchmark, file, 8, endpoint(server))
            generate_remote(generations, endpoint(server), ONE_RANK)
            assert generations.is_complete
            assert [row["completion"] for row in read_jsonl(file)] == [prompt.prompt for prompt in prompts]
        assert len(server.requests) == 5 + 1 + 4
        generate_remote(prepare_remote(benchmark, file, 9, endpoint(server)), endpoint(server), ONE_RANK)
    assert len(server.requests) == 12 and capsys.readouterr().err.count("generating again") == 2


def test_an_endpoint_gets_scores_and_its_cost(tmp_path):
    settings = EvaluateSection(max_new_tokens=8, judges=["xstest_strings"])
    with serving(lambda number, request: says("I'm sorry, no." if number % 2 else "Press the key.")) as server:
        evaluate_endpoint(endpoint(server), ModelFolder(tmp_path), [BENCHMARK], settings, ONE_RANK)
        # no request is repeated
        evaluate_endpoint(endpoint(server), ModelFolder(tmp_path), [BENCHMARK], settings, ONE_RANK)
    assert len(server.requests) == len(PROMPTS)
    assert read_json(tmp_path / "seeming" / "scores.json")["n"] == len(PROMPTS)
    cost = read_json(tmp_path / "cost.json")
    assert cost["generated_tokens"] == 3 * len(PROMPTS) and cost["device"].startswith("endpoint http://")


@pytest.mark.parametrize("part", [{"seconds": "1"}, {"seconds": 1.0, "generated_tokens": "3"}, {"seconds": None}, 1.0])
def test_a_damaged_part_of_the_cost_starts_anew(tmp_path, part):
    part = {"settings_hash": "s"} | part if isinstance(part, dict) else part
    write_json(
        tmp_path / "cost.json", {"parts": {"xstest": part, "general loss": {"settings_hash": "s", "seconds": 3.0}}}
    )
    Cost(tmp_path / "cost.json", "cpu", 1).spend("xstest", "s", 2.0)
    cost = read_json(tmp_path / "cost.json")
    assert cost["seconds"] == 5.0 and cost["generated_tokens"] == 0


def test_a_refused_prompt_is_recorded_counted_and_named(tmp_path, capsys):
    def filters_one(number, request):
        refused = request["messages"][-1]["content"] == PROMPTS[1].prompt
        return refuses(400, "flagged by the content filter") if refused else says("Press the key.")

    settings = EvaluateSection(max_new_tokens=8, judges=["rules", "xstest_strings"])
    with serving(filters_one) as server:
        evaluate_endpoint(endpoint(server), ModelFolder(tmp_path), [BENCHMARK], settings, ONE_RANK)
        evaluate_endpoint(endpoint(server), ModelFolder(tmp_path), [BENCHMARK], settings, ONE_RANK)
    assert len(server.requests) == len(PROMPTS)  # a recorded prompt is not sent again
    row = read_jsonl(tmp_path / "seeming" / "generations.jsonl")[1]
    assert (row["id"], row["completion"], row["finish"]) == (PROMPTS[1].id, "", "filtered")
    scores = read_json(tmp_path / "seeming" / "scores.json")
    assert scores["unparsed"] == 1 and scores["by_judge"]["xstest_strings"]["unparsed"] == 1
    out = "".join(capsys.readouterr())
    assert PROMPTS[1].id in out and "flagged by the content filter" in out and "refused 1 of" in out
    assert "to ask them again, remove their rows" in out
    rows = read_jsonl(tmp_path / "seeming" / "generations.jsonl")
    write_jsonl(tmp_path / "seeming" / "generations.jsonl", rows[:1] + rows[2:])
    with serving(answers) as server:
        evaluate_endpoint(endpoint(server), ModelFolder(tmp_path), [BENCHMARK], settings, ONE_RANK)
    assert [request["messages"][-1]["content"] for request in server.requests] == [PROMPTS[1].prompt]
    assert read_json(tmp_path / "seeming" / "scores.json")["unparsed"] == 0


def test_another_address_of_the_same_model_keeps_the_answers(tmp_path):
    for _ in range(2):
        with serving(answers) as server:
            generations = prepare_remote(BENCHMARK, tmp_path / "generations.jsonl", 8, endpoint(server))
            if not generations.is_complete:
                generate_remote(generations, endpoint(server), ONE_RANK)
    assert server.requests == []


def test_answers_are_kept_after_a_field_was_left_out(tmp_path):
    def picky(number, request):
        return refuses(400, "'seed' is not supported") if "seed" in request else answers(number, request)

    with serving(picky) as server:
        generations = prepare_remote(BENCHMARK, tmp_path / "generations.jsonl", 8, endpoint(server))
        asked = endpoint(server)
        generate_remote(generations, asked, ONE_RANK)
        assert prepare_remote(BENCHMARK, generations.file, 8, asked).is_complete
        assert prepare_remote(BENCHMARK, generations.file, 8, endpoint(server)).is_complete


def test_the_name_of_the_limit_changes_no_answer(tmp_path):
    with serving(answers) as server:
        usual, other = endpoint(server), endpoint(server)
        other.fields = replace(other.fields, limit="max_completion_tokens")
        hashes = {prepare_remote(BENCHMARK, tmp_path / "g.jsonl", 8, asked).settings_hash for asked in (usual, other)}
    assert len(hashes) == 1


def test_reasoning_that_was_cut_off_is_noted(tmp_path, capsys):
    """Of the answers that begin to say something none is counted."""
    settings = EvaluateSection(max_new_tokens=8, judges=["xstest_strings"])

    def reasons(number: int, request: dict):
        return says("<think>Hm." if number % 3 else "Press", finish="length")

    with serving(reasons) as server:
        evaluate_endpoint(endpoint(server), ModelFolder(tmp_path), [BENCHMARK], settings, ONE_RANK)
    labels = read_json(tmp_path / "seeming" / "scores.json")["labels"]
    note = f"seeming: {labels['degenerate']} of {len(PROMPTS)} answers end at 8 tokens before they say anything"
    assert note in capsys.readouterr().err
