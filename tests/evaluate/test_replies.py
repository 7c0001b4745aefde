"""What a server's replies contain: text, finish reason, counts, and the wait that it asks for."""

import gzip
import json
import math
import zlib
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime

import pytest
from chat_server import Reply, failing_first, says, serving, user

from dcr_ds.errors import UserError
from dcr_ds.models import endpoint as module
from dcr_ds.models import http_replies
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.models.replies import read_completion
from dcr_ds.retries import requested_wait

pytestmark = pytest.mark.usefixtures("quick_endpoint")


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


@pytest.mark.parametrize(
    ("reply", "text", "finish"),
    [
        (message_of("Su", "MAX_TOKENS"), "Su", "length"),
        (message_of("Su", "LENGTH"), "Su", "length"),
        (message_of("Su", "model_length"), "Su", "length"),
        (message_of("", "sensitive"), "", "content_filter"),
        (message_of("Su", "content_filter: SAFETY"), "Su", "content_filter"),
        (Reply('{"choices": [{"finish_reason": "PROHIBITED_CONTENT"}]}'), "", "content_filter"),
        (Reply('{"choices": [{"message": {"reasoning_content": "Hm."}, "finish_reason": "stop"}]}'), "", "stop"),
        (Reply('{"choices": [{"message": {"tool_calls": []}, "finish_reason": "tool_calls"}]}'), "", "tool_calls"),
        (Reply('{"choices": [{"message": {"content": ""}, "error": {"message": "upstream"}}]}'), "", "error"),
        (Reply('\ufeff{"choices": [{"message": {"content": "Su"}}], "usage": {"prompt_tokens": NaN}}'), "Su", None),
        (Reply('{"choices": [{"message": {"content": "Su"}}], "usage": {"prompt_tokens": "many"}}'), "Su", None),
    ],
)
def test_finish_reasons_and_counts_of_servers(reply, text, finish):
    completion = read_completion(reply.body.encode())
    assert (completion.text, completion.finish, completion.prompt_tokens) == (text, finish, 0)


@pytest.mark.parametrize(("pack", "encoding"), [(gzip.compress, "gzip"), (zlib.compress, "deflate")])
@pytest.mark.parametrize("status", [200, 400])
def test_packed_replies_are_unpacked(pack, encoding, status):
    """Some proxies pack everything, also errors."""
    packed = {"Content-Encoding": encoding}
    body = pack(b'{"error": {"message": "seed is not supported"}}' if status == 400 else says("Sure.").body.encode())
    with serving(failing_first(1, Reply(body, status, packed))) as server:
        text = Endpoint(server.url, "judge").complete(user("hi"), 9).text
    assert text == ("fine" if status == 400 else "Sure.") and len(server.requests) == 1 + (status == 400)


@pytest.mark.parametrize(
    ("body", "encoding", "problem"),
    [
        (b"no", "gzip", "not valid gzip"),
        (b"no", "br", "packed with 'br'"),
        (gzip.compress(bytes(http_replies.MAX_BYTES + 1)), "gzip", "more than 67,108,864 bytes"),
    ],
)
def test_replies_that_cannot_be_unpacked(body, encoding, problem):
    reply = Reply(body, headers={"Content-Encoding": encoding})
    with serving(lambda number, request: reply) as server, pytest.raises(UserError, match=problem):
        Endpoint(server.url, "judge").complete(user("hi"), 9)
    assert len(server.requests) == 1


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
        ("3s", 3.0),
        ("250ms", 0.25),
        ("1m30s", 90.0),
        ("3 sheep", None),
        ("2000-01-01T00:00:00Z", 0.0),
        ("2000-13-01T00:00:00Z", None),
    ],
)
def test_forms_of_retry_after(value, seconds):
    headers = Message()
    headers["Retry-After"] = value
    assert requested_wait(headers) == seconds
    assert 0 < module._wait_seconds(0, requested_wait(headers)) <= module.LONGEST_WAIT_SECONDS


def test_a_date_in_the_future_is_a_wait_in_either_form():
    for form in (format_datetime, datetime.isoformat):
        headers = Message()
        headers["Retry-After"] = form(datetime.now(UTC) + timedelta(seconds=60))
        assert 50 < requested_wait(headers) <= 60


def test_milliseconds_are_more_exact_than_seconds():
    headers = Message()
    headers["Retry-After"], headers["retry-after-ms"] = "1", "20"
    assert requested_wait(headers) == 0.02


@pytest.mark.parametrize(
    ("asked", "named", "is_noted"),
    [
        ("big", "small", True),
        ("gpt-x", "gpt-x-2026-01-31", False),
        ("owner/Model", "model", False),
        ("model", "/models/model.gguf", False),
        ("model", None, False),
    ],
)
def test_a_reply_of_another_model_is_noted_once(asked, named, is_noted, capsys):
    body = json.loads(says("fine").body) | {"model": named}
    with serving(lambda number, request: Reply(json.dumps(body))) as server:
        endpoint = Endpoint(server.url, asked)
        for _ in range(2):
            assert endpoint.complete(user("hi"), 9).text == "fine"
    note = f"{endpoint.url}: asked for {asked}, and the reply is of {named!r}; is it this model?\n"
    assert capsys.readouterr().err == (note if is_noted else "")
