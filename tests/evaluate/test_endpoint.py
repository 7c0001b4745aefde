"""The client for endpoints against a real server that answers, fails, delays, sends invalid replies or dies."""

import json
import math
import time
from email.message import Message
from email.utils import formatdate
from itertools import islice

import pytest
from chat_server import HangUp, Reply, prompt_of, refuses, says, serving

from dcr_ds.errors import UserError
from dcr_ds.models import endpoint as module
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.models.replies import Completion, requested_wait

KEY = "sk-not-to-be-seen"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Remove the developer's key from the environment, and wait only milliseconds."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 0.005)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def failing_first(times: int, reply: Reply):
    """A behaviour that returns `reply` a number of times and then answers."""
    return lambda number, request: reply if number < times else says("fine")


def test_a_reply_to_a_request():
    with serving(lambda number, request: says("two words", "length")) as server:
        endpoint = Endpoint(server.url + "/", "judge")
        assert endpoint.complete(user("hi"), max_tokens=9) == Completion("two words", "length", 7, 2)
    assert server.requests == [
        {
            "path": "/v1/chat/completions",
            "model": "judge",
            "messages": user("hi"),
            "max_tokens": 9,
            "temperature": 0.0,
            "seed": 0,
        }
    ]
    assert "Authorization" not in server.headers[0]


def test_the_key_is_sent_and_local_servers_bypass_the_proxy(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY + "\n")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(lambda number, request: says("fine")) as server:
        Endpoint(server.url + "/chat/completions", "judge", key_env="JUDGE_KEY").complete(user("hi"), 9)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_replies_arrive_as_completed_with_the_number_of_their_request():
    def slow_at_first(number, request):
        time.sleep(0.3 if prompt_of(request) == "0" else 0)
        return says(prompt_of(request))

    with serving(slow_at_first) as server:
        endpoint = Endpoint(server.url, "judge", concurrency=4)
        replies = [(index, reply.text) for index, reply in endpoint.complete_all([user(str(i)) for i in range(23)], 9)]
    assert sorted(replies) == [(i, str(i)) for i in range(23)] and replies[0] != (0, "0")
    assert 2 <= server.most_at_once <= 4
    assert (endpoint.spent.requests, endpoint.spent.prompt_tokens, endpoint.spent.completion_tokens) == (23, 161, 23)


def test_replies_are_yielded_before_later_requests_are_sent():
    with serving(lambda number, request: says(prompt_of(request))) as server:
        replies = Endpoint(server.url, "judge", concurrency=2).complete_all([user(str(i)) for i in range(50)], 9)
        assert len(list(islice(replies, 2))) == 2
        assert len(server.requests) <= 2 + 2 * 2
        replies.close()
        assert len(server.requests) <= 2 + 2 * 2


def test_no_requests_give_no_replies():
    assert list(Endpoint("http://127.0.0.1:9/v1", "judge").complete_all([], 9)) == []


@pytest.mark.parametrize(
    "reply",
    [
        refuses(500, "oops"),
        refuses(503, "loading"),
        refuses(429, "slow down"),
        Reply("<html>gateway</html>"),
        Reply("[]"),
        Reply('{"choices": []}'),
        Reply('{"choices": [{"message": {"content": ["a", "b"]}}]}'),
        Reply('{"choices": [{"message": {"content": "cut'),
        Reply("", headers={"Content_Length": "10"}),
    ],
)
def test_temporary_errors_are_retried(reply):
    with serving(failing_first(2, reply)) as server:
        assert Endpoint(server.url, "judge").complete(user("hi"), 9).text == "fine"
    assert len(server.requests) == 3


def test_closed_connections_are_retried():
    def hang_up_once(number, request):
        if number == 0:
            raise HangUp
        return says("fine")

    with serving(hang_up_once) as server:
        assert Endpoint(server.url, "judge").complete(user("hi"), 9).text == "fine"


def test_timeouts_are_retried():
    def slow_once(number, request):
        time.sleep(1 if number == 0 else 0)
        return says("fine")

    with serving(slow_once) as server:
        start = time.monotonic()
        assert Endpoint(server.url, "judge", timeout=0.1).complete(user("hi"), 9).text == "fine"
        assert time.monotonic() - start < 0.9


def test_repeated_timeouts_are_an_error():
    expected = r"no data for 0.05 s; increase the timeout, or lower the concurrency; gave up after 3 attempts"
    with (
        serving(lambda number, request: time.sleep(0.3) or says("late")) as server,
        pytest.raises(UserError, match=expected),
    ):
        Endpoint(server.url, "judge", timeout=0.05, retries=2).complete(user("hi"), 9)


@pytest.mark.parametrize("seconds_asked", ["1", None])
def test_retry_after_is_respected(seconds_asked):
    when = seconds_asked or formatdate(time.time() + 2, usegmt=True)  # dates are in whole seconds
    with serving(failing_first(1, refuses(429, "busy", Retry_After=when))) as server:
        start = time.monotonic()
        assert Endpoint(server.url, "judge").complete(user("hi"), 9).text == "fine"
        assert 0.9 < time.monotonic() - start < 3


def test_invalid_retry_after_is_ignored():
    with serving(failing_first(1, refuses(429, "busy", Retry_After="soon"))) as server:
        assert Endpoint(server.url, "judge").complete(user("hi"), 9).text == "fine"


def test_waiting_times_double_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 1.0)
    for attempt in range(20):
        assert min(2**attempt / 2, 300) <= module._wait_seconds(attempt, None) <= min(2**attempt, 300)
    assert module._wait_seconds(0, 1e9) == 300


@pytest.mark.parametrize(
    ("status", "hint"),
    [(400, "does not accept"), (401, "key is wrong"), (403, "may not"), (404, "/v1"), (422, "not accept")],
)
def test_client_errors_are_final_and_quote_the_server(status, hint):
    with serving(lambda number, request: refuses(status, "no such model, or some\nsuch thing")) as server:
        with pytest.raises(UserError) as error:
            Endpoint(server.url, "judge-7b").complete(user("hi"), 9)
        expected = [server.url, "judge-7b", f"HTTP {status}", "no such model, or some such thing", hint]
    assert all(word in str(error.value) for word in expected), error.value
    assert len(server.requests) == 1


@pytest.mark.parametrize("reply", [refuses(401, f"Bad key: {KEY}"), Reply(f"Bad key: {KEY}"), refuses(500, KEY)])
def test_a_key_in_the_servers_message_is_not_shown(monkeypatch, reply):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda number, request: reply) as server, pytest.raises(UserError) as error:
        Endpoint(server.url, "judge", retries=1).complete(user("hi"), 9)
    assert "..." in str(error.value) and KEY not in str(error.value)


def test_a_reply_without_text_is_an_empty_string():
    with serving(lambda number, request: says(None, "content_filter")) as server:
        assert Endpoint(server.url, "judge").complete(user("hi"), 9) == Completion("", "content_filter", 7, 0)


def test_server_that_is_not_running():
    with serving(lambda number, request: says("fine")) as server:
        pass
    with pytest.raises(UserError, match=r"model judge: no connection .*is the server up\?; gave up after 3 attempts"):
        Endpoint(server.url, "judge", retries=2).complete(user("hi"), 9)


def test_replies_before_a_server_failure_are_kept():
    def dies(number, request):
        if int(prompt_of(request)) >= 10:
            raise HangUp
        return says(prompt_of(request))

    done = []
    with serving(dies) as server, pytest.raises(UserError, match="15 of 25 are left, and the same command resumes"):
        for _, reply in Endpoint(server.url, "judge", retries=1).complete_all([user(str(i)) for i in range(25)], 9):
            done.append(reply.text)
    assert sorted(done, key=int) == [str(i) for i in range(10)]


def test_no_received_reply_is_lost_on_a_server_failure():
    """After a failure, running requests are waited for, and no further request is sent."""
    sent = []

    def dies(number, request):
        if number == 6:
            raise HangUp
        time.sleep(0.1 if number > 2 else 0)
        sent.append(prompt_of(request))
        return says(prompt_of(request))

    done = []
    with serving(dies) as server, pytest.raises(UserError, match="are left"):
        endpoint = Endpoint(server.url, "judge", concurrency=4, retries=0)
        for _, reply in endpoint.complete_all([user(str(i)) for i in range(40)], 9):
            done.append(reply.text)
    assert sorted(done) == sorted(sent) and len(server.requests) < 20


def test_a_failure_does_not_wait_for_the_retries_of_the_others(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 60.0)
    with serving(lambda number, request: refuses(401 if prompt_of(request) == "0" else 503, "no")) as server:
        start = time.monotonic()
        with pytest.raises(UserError, match="HTTP 401"):
            list(Endpoint(server.url, "judge").complete_all([user(str(i)) for i in range(4)], 9))
        assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000/v1",
        "ftp://host/v1",
        "http:///v1",
        "http://host:99999/v1",
        "http://host/v1?a=b",
        "",
        "http://[::1/",
    ],
)
def test_bad_addresses(url):
    with pytest.raises(UserError, match="url"):
        Endpoint(url, "judge")


def test_a_key_in_the_address_is_refused_and_not_shown():
    with pytest.raises(UserError, match="environment variable") as error:
        Endpoint(f"https://me:{KEY}@api.example.com/v1", "judge")
    assert KEY not in str(error.value)


@pytest.mark.parametrize("url", ["https://api.example.com/v1", "http://8.8.8.8:8000/v1"])
def test_a_server_that_is_not_local_needs_a_key(monkeypatch, capsys, url):
    with pytest.raises(UserError, match="no key; set the environment variable JUDGE_KEY"):
        Endpoint(url, "judge", key_env="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    Endpoint(url, "judge", key_env="JUDGE_KEY")
    message = capsys.readouterr().err
    assert ("sent unencrypted to a public host" in message) == url.startswith("http:") and KEY not in message


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "10.1.2.3", "node17"])
def test_a_local_server_needs_no_key(host):
    Endpoint(f"http://{host}:8000/v1", "judge")


def test_a_key_with_a_line_break_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n{KEY}")
    with pytest.raises(UserError, match="OPENAI_API_KEY contains characters") as error:
        Endpoint("http://localhost/v1", "judge")
    assert KEY not in str(error.value)


def test_impossible_host_names():
    with pytest.raises(UserError, match="no connection"):
        Endpoint("http://" + "a" * 70, "judge", retries=0).complete(user("hi"), 9)


# Prompts that a server refuses


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


# What replies contain


def message_of(content, finish="stop", **more):
    message = {"role": "assistant", "content": content, **more}
    return Reply(json.dumps({"choices": [{"message": message, "finish_reason": finish}]}))


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (message_of(None, refusal="I can't help with that."), "I can't help with that."),
        (message_of("Sure.", reasoning_content="Hm. I can't."), "Sure."),
        (message_of(None, "length", reasoning_content="Hm."), ""),
        (message_of([{"type": "text", "text": "Su"}, {"type": "text", "text": "re."}]), "Sure."),
        (message_of([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Sure."}]), "Sure."),
        (message_of([{"type": "refusal", "refusal": "No."}]), "No."),
        (message_of([{"type": "reasoning", "text": "Hm."}, {"type": "output_text", "text": "Sure."}]), "Sure."),
        (message_of({"type": "text", "text": "Sure."}), "Sure."),
        (message_of([{"type": "text", "text": {"value": "Sure."}}]), "Sure."),
        (message_of("", refusal="No."), "No."),
        (Reply(json.dumps({"choices": [{"message": {"role": "assistant", "refusal": "No."}}]})), "No."),
        (Reply(json.dumps({"choices": [{"message": {"role": "assistant"}, "finish_reason": "content_filter"}]})), ""),
        (Reply(json.dumps({"choices": [{"finish_reason": "content_filter"}]})), ""),
        (Reply('{"choices": [{"message": {"content": "a\\udc00b"}}]}'), "a\ufffdb"),
        (message_of("half \ud83d"), "half \ufffd"),
        (message_of("whole \U0001f600"), "whole \U0001f600"),
    ],
)
def test_the_text_of_a_message(reply, text):
    with serving(lambda number, request: reply) as server:
        assert Endpoint(server.url, "judge").complete(user("hi"), 9).text == text


def test_a_prompt_with_half_a_surrogate_pair_is_sent():
    with serving(lambda number, request: says("fine")) as server:
        assert Endpoint(server.url, "judge").complete(user("half \ud83d"), 9).text == "fine"


def test_a_server_that_fails_while_it_generates_is_asked_again_and_then_recorded():
    failed = Reply(
        json.dumps(
            {"choices": [{"message": {"content": "Su"}, "finish_reason": "error", "error": {"message": "upstream"}}]}
        )
    )
    with serving(failing_first(2, failed)) as server:
        assert Endpoint(server.url, "judge").complete(user("hi"), 9).text == "fine"
    with serving(lambda number, request: failed) as server:
        reply = Endpoint(server.url, "judge", retries=2).complete(user("hi"), 9)
    assert (reply.text, reply.finish, reply.problem, len(server.requests)) == ("Su", "error", "upstream", 3)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("1.5", 1.5),
        ("0", 0.0),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("Sat, 99 Nov 2026 10:00:00 GMT", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Thu Jan  1 00:00:00 1970", 0.0),
        ("9" * 400, math.inf),
    ],
)
def test_forms_of_retry_after(value, seconds):
    headers = Message()
    headers["Retry-After"] = value
    assert requested_wait(headers) == seconds
    assert 0 < module._wait_seconds(0, requested_wait(headers)) <= module.LONGEST_WAIT_SECONDS


@pytest.mark.parametrize("seconds", ["0", formatdate(0, usegmt=True)])
def test_a_request_to_retry_at_once_backs_off_all_the_same(monkeypatch, seconds):
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 0.4)
    with serving(failing_first(1, refuses(429, "busy", Retry_After=seconds))) as server:
        start = time.monotonic()
        assert Endpoint(server.url, "judge").complete(user("hi"), 9).text == "fine"
        assert time.monotonic() - start >= 0.2
