"""Prompts and fields that a real server refuses: recorded or left out, and the other prompts are answered."""

import json
import threading
import time

import pytest
from chat_server import Reply, failing_first, prompt_of, refuses, says, serving, user

from dcr_ds.errors import UserError
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.models.replies import error_of, is_about_the_prompt
from dcr_ds.models.request_fields import refused_field

pytestmark = pytest.mark.usefixtures("quick_endpoint")


def filters(status: int = 400, message: str = "The response was filtered by the content management policy", **error):
    return Reply(json.dumps({"error": {"message": message, **error}}), status)


CONTEXT = "'max_tokens' is too large: 512. This model's maximum context length is 4096 tokens; your request has 5000"


@pytest.mark.parametrize(
    "refusal",
    [
        filters(),
        filters(message="no", code="content_filter"),
        filters(message=CONTEXT),
        filters(message="prompt is too long: 9000 tokens", status=413),
        filters(message="data_inspection_failed"),
        filters(message="bad request"),  # about the prompt, because others are answered
        filters(422, "cannot be processed"),
        filters(451, "unavailable for legal reasons"),
        Reply(json.dumps({"object": "error", "message": CONTEXT, "code": 400}), 400),
        Reply(json.dumps([{"error": {"code": 400, "message": "The input token count exceeds the maximum"}}]), 400),
        Reply(json.dumps({"detail": [{"loc": ["body", "messages"], "msg": "no"}]}), 422),
        Reply(json.dumps({"error": None}), 400),
        Reply("<html>Bad Request</html>", 400),
        Reply("", 400),
        Reply('{"error": {"message": "half \\ud83d"}}', 400),
    ],
)
def test_a_refused_prompt_is_recorded_and_the_others_are_answered(refusal):
    with serving(lambda number, request: refusal if prompt_of(request) == "3" else says(prompt_of(request))) as server:
        endpoint = Endpoint(server.url, "judge", concurrency=2)
        replies = dict(endpoint.complete_all([user(str(i)) for i in range(8)], 9))
    assert [replies[i].text for i in range(8)] == ["0", "1", "2", "", "4", "5", "6", "7"]
    assert replies[3].finish == "filtered" and "HTTP 4" in replies[3].problem
    assert len(server.requests) == 8


def test_refused_prompts_before_the_first_answer_are_recorded_too():
    with serving(lambda number, request: filters(400, "no") if int(prompt_of(request)) < 5 else says("fine")) as server:
        endpoint = Endpoint(server.url, "judge", concurrency=1)
        replies = dict(endpoint.complete_all([user(str(i)) for i in range(8)], 9))
    assert [replies[i].text for i in range(8)] == [""] * 5 + ["fine"] * 3


@pytest.mark.parametrize("rows", [1, 5, 200])
def test_an_endpoint_that_refuses_every_request_is_an_error(rows):
    with serving(lambda number, request: filters(400, "no such field")) as server:
        endpoint = Endpoint(server.url, "judge", concurrency=2)
        with pytest.raises(UserError, match=f"HTTP 400: no such field.*{rows} of {rows} are left"):
            list(endpoint.complete_all([user(str(i)) for i in range(rows)], 9))
    assert len(server.requests) <= 30


def test_a_filter_that_answers_with_the_status_of_success():
    refusal = Reply(json.dumps({"error": {"code": 400, "message": "blocked by the content filter"}}))
    with serving(lambda number, request: refusal if prompt_of(request) == "1" else says("fine")) as server:
        replies = dict(Endpoint(server.url, "judge").complete_all([user(str(i)) for i in range(3)], 9))
    assert (replies[1].finish, replies[1].text) == ("filtered", "") and len(server.requests) == 3
    assert "blocked by the content filter" in replies[1].problem


def test_an_error_with_the_status_of_success_is_retried():
    with serving(failing_first(1, Reply(json.dumps({"error": {"message": "overloaded"}})))) as server:
        assert Endpoint(server.url, "judge").complete(user("hi"), 9).text == "fine"


def test_prompts_that_are_all_filtered_are_all_recorded():
    with serving(lambda number, request: filters()) as server:
        replies = dict(Endpoint(server.url, "judge").complete_all([user("a"), user("b")], 9))
    assert {reply.finish for reply in replies.values()} == {"filtered"}


@pytest.mark.parametrize("status", [401, 403, 404])
def test_errors_of_key_and_model_end_it(status):
    with (
        serving(lambda number, request: says("a") if number == 0 else refuses(status, "no")) as server,
        pytest.raises(UserError, match=f"HTTP {status}"),
    ):
        list(Endpoint(server.url, "judge", concurrency=1).complete_all([user(str(i)) for i in range(50)], 9))
    assert len(server.requests) < 10


def test_a_moderation_with_the_status_of_a_wrong_key_is_about_one_prompt():
    moderation = Reply(json.dumps({"error": {"code": 403, "message": "your input was flagged by the moderation"}}), 403)
    with serving(lambda number, request: moderation if prompt_of(request) == "1" else says("a")) as server:
        replies = dict(Endpoint(server.url, "judge").complete_all([user(str(i)) for i in range(4)], 9))
    assert [replies[i].finish for i in range(4)] == ["stop", "filtered", "stop", "stop"]


INPUTS = "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 and 512"


@pytest.mark.parametrize(
    "error",
    [
        {"object": "error", "message": "max_tokens must be at least 1, got -904.", "code": 400},  # vLLM
        {"error": {"message": "the request exceeds the available context size", "type": "exceed_context_size_error"}},
        {"error": {"message": "the input length exceeds the context length", "code": None}},  # Ollama
        {"error": "the input length exceeds the context length"},
        {"error": INPUTS, "error_type": "validation"},  # TGI
        {"error": {"message": "bad", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},  # Azure
        {"error": {"message": "no", "code": "invalid_prompt", "type": "your prompt was flagged"}},
        {"error": {"message": "Content Exists Risk", "code": "invalid_request_error"}},
        {"error": {"code": "1301", "message": "\u5305\u542b\u654f\u611f\u5185\u5bb9"}},
    ],
)
def test_errors_of_servers_about_a_prompt(error):
    assert is_about_the_prompt(error_of(json.dumps(error).encode()))


def test_a_prompt_that_is_too_long_is_recorded_whatever_the_status():
    """Older versions of llama.cpp answer it with the status of a failure."""
    too_long = refuses(500, "the request exceeds the available context size. try increasing the context size")
    with serving(lambda number, request: too_long if prompt_of(request) == "1" else says("fine")) as server:
        replies = dict(Endpoint(server.url, "judge").complete_all([user(str(i)) for i in range(3)], 9))
    assert [replies[i].finish for i in range(3)] == ["stop", "filtered", "stop"] and len(server.requests) == 3


@pytest.mark.parametrize("room", [1, 3])
def test_requests_that_outgrow_the_context_together_are_sent_again_fewer_at_a_time(room, capsys):
    """As llama.cpp's server does, whose slots share one context: requests fail while it holds too many."""
    lock, running = threading.Lock(), 0

    def reply(number, request):
        nonlocal running
        with lock:
            running += 1
        time.sleep(0.02)
        with lock:
            is_full, running = running > room, running - 1
        return refuses(500, "Context size has been exceeded.") if is_full else says(prompt_of(request))

    with serving(reply) as server:
        replies = dict(Endpoint(server.url, "judge", retries=2).complete_all([user(str(i)) for i in range(20)], 9))
    assert {i: reply.text for i, reply in replies.items()} == {i: str(i) for i in range(20)}
    assert "for 8 requests at the same time; 4 from now on" in capsys.readouterr().err


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens is too large: 9. This model supports at most 8 completion tokens, whereas you provided 9.",
        "`max_tokens` must be less than or equal to `8`, the maximum value is less than the `context_window`",
        "'max_tokens' is too large: 9. This model's maximum context length is 9 tokens; your request has 2",
    ],
)
def test_a_limit_that_a_model_does_not_allow_is_not_about_the_prompts(message):
    with serving(lambda number, request: refuses(400, message)) as server:
        endpoint = Endpoint(server.url, "judge", concurrency=1)
        with pytest.raises(UserError, match=r"ask for shorter answers .*3 of 3 are left"):
            list(endpoint.complete_all([user(str(i)) for i in range(3)], 9))
    assert {request["max_tokens"] for request in server.requests} == {9}


# Fields that a server does not accept


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("max_tokens", "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."),
        ("temperature", "Unsupported value: 'temperature' does not support 0.0. Only the default (1) is supported."),
        ("seed", "Unrecognized request argument supplied: seed"),
        ("seed", "seed: Extra inputs are not permitted"),
    ],
)
def test_a_field_that_the_server_names_is_left_out(field, message, capsys):
    def picky(number, request):
        return refuses(400, message) if field in request else says("fine")

    with serving(picky) as server:
        endpoint = Endpoint(server.url, "judge", concurrency=1)
        replies = dict(endpoint.complete_all([user(str(i)) for i in range(5)], 9))
    assert [reply.text for reply in replies.values()] == ["fine"] * 5 and len(server.requests) == 6
    assert all(request.get("max_tokens", request.get("max_completion_tokens")) == 9 for request in server.requests)
    assert f"does not accept {field}" in capsys.readouterr().err


def test_several_fields_are_left_out_one_after_the_other():
    def picky(number, request):
        wrong = next((name for name in ("max_tokens", "temperature", "seed") if name in request), None)
        return refuses(400, f"{wrong} is not supported") if wrong else says("fine")

    with serving(picky) as server:
        assert Endpoint(server.url, "judge").complete(user("hi"), 9).text == "fine"
    assert set(server.requests[-1]) == {"path", "model", "messages", "max_completion_tokens"}


@pytest.mark.parametrize(
    ("error", "field"),
    [
        (
            {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]},
            "seed",
        ),
        ({"error": {"message": "bad value", "param": "seed", "code": "unsupported_parameter"}}, "seed"),
        ({"error": {"message": "seed is an invalid parameter"}}, "seed"),
        ({"error": "Input validation error: `temperature` must be strictly positive"}, "temperature"),
        ({"error": {"message": "invalid", "param": "messages"}}, None),
    ],
)
def test_the_field_in_an_error(error, field):
    sent = {"max_tokens": 9, "temperature": 0.0, "seed": 0}
    assert refused_field(error_of(json.dumps(error).encode()), sent) == field
