"""The client for endpoints against a real server that answers, fails, delays, sends invalid replies or dies."""

import shutil
import ssl
import subprocess
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

import pytest
from chat_server import HangUp, Reply, failing_first, prompt_of, refuses, says, serving, user

from dcr_ds.errors import UserError
from dcr_ds.models import endpoint as module
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.models.replies import Completion

KEY = "sk-not-to-be-seen"


pytestmark = pytest.mark.usefixtures("quick_endpoint")


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
    first_may_reply = threading.Event()

    def silent_at_first(number, request):
        return says("late" if number == 0 and first_may_reply.wait(60) else "fine")

    with serving(silent_at_first) as server:
        assert Endpoint(server.url, "judge", timeout=0.5).complete(user("hi"), 9).text == "fine"
        first_may_reply.set()


def test_repeated_timeouts_are_an_error():
    expected = r"no data for 0.05 s; increase the timeout, or lower the concurrency; gave up after 3 attempts"
    with (
        serving(lambda number, request: time.sleep(0.3) or says("late")) as server,
        pytest.raises(UserError, match=expected),
    ):
        Endpoint(server.url, "judge", timeout=0.05, retries=2).complete(user("hi"), 9)


@pytest.mark.parametrize("header", [{"Retry_After": "0.3"}, {"Retry_After": "300ms"}, {"retry_after_ms": "300"}])
def test_retry_after_is_respected(header):
    with serving(failing_first(1, refuses(429, "busy", **header))) as server:
        start = time.monotonic()
        assert Endpoint(server.url, "judge").complete(user("hi"), 9).text == "fine"
        assert time.monotonic() - start >= 0.3


def test_a_long_wait_is_noted_once(monkeypatch, capsys):
    monkeypatch.setattr(module, "NOTED_WAIT_SECONDS", 0.2)
    with serving(failing_first(2, refuses(429, "busy", Retry_After="0.25"))) as server:
        endpoint = Endpoint(server.url, "judge")
        assert endpoint.complete(user("hi"), 9).text == "fine"
    note = f"{endpoint.url}: waiting 0 s before the same request is sent again: HTTP 429: busy\n"
    assert capsys.readouterr().err == note


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


def test_an_error_of_the_key_names_its_variable():
    with serving(lambda number, request: refuses(401, "no")) as server, pytest.raises(UserError, match="JUDGE_KEY"):
        Endpoint(server.url, "judge", key_env="JUDGE_KEY").complete(user("hi"), 9)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_names_the_address(monkeypatch, status):
    """A redirected request would lose its messages, or take the key and the prompts to another host."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda number, request: says("fine")) as other:
        moved = Reply("", status, {"Location": f"{other.url}/chat/completions"})
        with (
            serving(lambda number, request: moved) as server,
            pytest.raises(UserError, match=f"redirects to {other.url}; give that as the url"),
        ):
            Endpoint(server.url, "judge").complete(user("hi"), 9)
    assert len(server.requests) == 1 and not other.requests


@pytest.mark.parametrize("location", ["/v1/chat/completions/", "https://sso.example.com/login?next=v1", None])
def test_a_redirect_to_what_cannot_be_the_url_is_not_advised(location):
    """A slash at the end, a page to log in, no address: given as the url, it would be redirected again."""
    moved = Reply("", 307, {"Location": location} if location else {})
    with serving(lambda number, request: moved) as server, pytest.raises(UserError) as error:
        Endpoint(server.url, "judge").complete(user("hi"), 9)
    assert str(error.value).endswith(
        f"{location or '/v1/chat/completions'}; give a url at which it answers without a redirect"
    )


def test_a_reply_without_text_is_an_empty_string():
    with serving(lambda number, request: says(None, "content_filter")) as server:
        assert Endpoint(server.url, "judge").complete(user("hi"), 9) == Completion("", "content_filter", 7, 0)


def test_https_to_a_server_without_it_is_final():
    with serving(lambda number, request: says("fine")) as server, pytest.raises(UserError, match="write http:// in"):
        Endpoint(server.url.replace("http:", "https:"), "judge").complete(user("hi"), 9)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_certificate_that_is_not_trusted_is_final(tmp_path):
    pem = tmp_path / "server.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*command, "-keyout", pem, "-out", tmp_path / "cert.pem"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", pem)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="certificate of the server is not trusted .*SSL_CERT_FILE"):
            Endpoint(f"https://127.0.0.1:{server.server_port}/v1", "judge").complete(user("hi"), 9)
        server.shutdown()


def test_a_reply_that_is_cut_off_is_a_lost_connection():
    cut = Reply('{"choices": [{"mess', headers={"Content-Length": "1000"})

    def hangs_up(number, request):
        return cut

    with serving(hangs_up) as server, pytest.raises(UserError, match=r"closed after 19 bytes of a reply"):
        Endpoint(server.url, "judge", timeout=5, retries=0).complete(user("hi"), 9)


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


@pytest.mark.parametrize("reply", [refuses(500, "list index out of range"), Reply('{"choices": []}')])
def test_a_request_at_which_a_working_server_always_fails_is_recorded(reply):
    """Else one prompt would end the evaluation for good."""
    with serving(lambda number, request: reply if prompt_of(request) == "1" else says(prompt_of(request))) as server:
        endpoint = Endpoint(server.url, "judge", retries=3)
        replies = dict(endpoint.complete_all([user(str(i)) for i in range(6)], 9))
        assert [replies[i].text for i in range(6)] == ["0", "", "2", "3", "4", "5"]
        assert replies[1].finish == "error" and "gave up after 4 attempts" in replies[1].problem
        assert endpoint.complete(user("1"), 9).finish == "error"  # also if it is the last one


@pytest.mark.parametrize("status", [200, 429])
def test_a_busy_server_is_no_failure_of_the_prompt(status):
    """Also if it says so in the body, as OpenRouter does: the prompt is asked again later."""
    busy = Reply('{"error": {"code": 429, "message": "rate limit exceeded"}}', status)
    with serving(lambda number, request: busy if prompt_of(request) == "1" else says("a")) as server:
        endpoint = Endpoint(server.url, "judge", retries=1)
        with pytest.raises(UserError, match="rate limit exceeded; gave up after 2 attempts"):
            endpoint.complete(user("1"), 9)
    assert len(server.requests) == 2


def test_a_server_that_fails_at_everything_ends_it():
    with serving(lambda number, request: says("a") if number < 3 else refuses(500, "engine is dead")) as server:
        endpoint = Endpoint(server.url, "judge", concurrency=2, retries=2)
        with pytest.raises(UserError, match="engine is dead; gave up after .*are left"):
            list(endpoint.complete_all([user(str(i)) for i in range(50)], 9))
    assert len(server.requests) < 20


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


@pytest.mark.parametrize("seconds", ["0", formatdate(0, usegmt=True)])
def test_a_request_to_retry_at_once_backs_off_all_the_same(monkeypatch, seconds):
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 0.4)
    with serving(failing_first(1, refuses(429, "busy", Retry_After=seconds))) as server:
        start = time.monotonic()
        assert Endpoint(server.url, "judge").complete(user("hi"), 9).text == "fine"
        assert time.monotonic() - start >= 0.2
