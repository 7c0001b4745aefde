"""A chat endpoint in the process of the test, which answers, fails, delays or disconnects as the test specifies."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HangUp(Exception):
    """Close the connection without a reply."""


@dataclass
class Reply:
    body: str | bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def says(text: str | None, finish: str = "stop") -> Reply:
    """A completion as servers send it, with one token per word."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 7, "completion_tokens": len((text or "").split())}
    choices = [{"index": 0, "message": message, "finish_reason": finish}]
    return Reply(json.dumps({"object": "chat.completion", "choices": choices, "usage": usage}))


def refuses(status: int, message: str, **headers: str) -> Reply:
    return Reply(json.dumps({"error": {"message": message}}), status, headers)


@dataclass
class Received:
    """What the server received: requests in order of arrival, their headers, and the most requests at the same time."""

    url: str = ""
    requests: list[dict] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)
    most_at_once: int = 0


Behaviour = Callable[[int, dict], Reply]  # number of the request from 0, the request


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[Received]:
    """Serve on a free port while entered."""
    received, lock, under_way = Received(), threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal under_way
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(received.requests)
                received.requests.append({"path": self.path, **request})
                received.headers.append(dict(self.headers))
                under_way += 1
                received.most_at_once = max(received.most_at_once, under_way)
            try:
                try:
                    reply = behaviour(number, request)
                finally:
                    with lock:
                        under_way -= 1  # before the client gets the reply and may send another request
                self._send(reply)
            except (HangUp, BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def _send(self, reply: Reply) -> None:
            body = reply.body.encode() if isinstance(reply.body, str) else reply.body
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64  # with the default of 5 a connection may wait a second

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    received.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()


def prompt_of(request: dict) -> str:
    """The text of the last message of a request."""
    return request["messages"][-1]["content"]


def user(text: str) -> list[dict[str, str]]:
    """The messages of a prompt."""
    return [{"role": "user", "content": text}]


def failing_first(times: int, reply: Reply) -> Behaviour:
    """A behaviour that returns `reply` a number of times and then answers."""
    return lambda number, request: reply if number < times else says("fine")
