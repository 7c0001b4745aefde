"""A client of OpenAI-compatible chat endpoints: vLLM, llama.cpp, `transformers serve`, OpenAI and the like.

It keeps a bounded number of requests under way, gives each reply as soon as it is there, and retries what passes by
itself. It needs the standard library alone.
"""

import ipaddress
import json
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from itertools import islice
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

from dcr_ds.errors import UserError

Messages = list[dict[str, str]]
RETRIED = {408, 425, 429}  # and 500 and above; every other refusal stays one
WAY_OUT = {
    401: "the key is wrong or missing",
    403: "the key may not use it",
    404: "check the model's name, and that the url ends where /chat/completions follows (mostly in /v1)",
}
FIRST_WAIT_SECONDS = 1.0  # doubled from try to try
LONGEST_WAIT_SECONDS = 300.0  # also where a server asks for more
QUOTED_CHARACTERS = 300  # of what a server says
_jitter = random.Random()  # its own: the seeded global one belongs to training


class Completion(NamedTuple):
    """What the model wrote; `finish` is "stop", or "length" where it was cut off at max_tokens."""

    text: str
    finish: str | None
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Spent:
    """What an endpoint was asked so far: requests sent, retries among them, and tokens as the server counts them."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __str__(self) -> str:
        return f"{self.requests:,} requests, {self.prompt_tokens:,} tokens read, {self.completion_tokens:,} written"


class _Passing(Exception):
    """A failure that may pass; `wait_seconds` is what the server asks for, None if it does not."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class Endpoint:
    """One model behind one address. The key is read from the environment, and neither printed nor kept in a file.

    Args:
        url: base address; /chat/completions is added where it is missing.
        key_env: environment variable with the key; a local server may do without.
        concurrency: requests under way at once.
        timeout: seconds of silence after which a request has failed.
        retries: tries after the first.

    Raises:
        UserError: the url is none, or a server that is not local has no key.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_env: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 5,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.model = model
        self.concurrency = concurrency
        self.timeout = timeout
        self.retries = retries
        self.spent = Spent()
        self._counting = threading.Lock()
        local = _is_local(url)
        self._key = _read_key(key_env, url, needed=not local)
        self._opener = _opener(local)

    def complete(
        self,
        messages: Messages,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        abandoned: threading.Event | None = None,
    ) -> Completion:
        """One reply.

        Args:
            abandoned: once set, nothing is retried.

        Raises:
            UserError: the server refuses the request, or the last retry failed; says what the server said.
        """
        request = {
            "model": self.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        abandoned = abandoned or threading.Event()
        for attempt in range(self.retries + 1):
            try:
                return self._count(_read_completion(self._post(json.dumps(request).encode())))
            except _Passing as failure:
                reason, asked = str(failure), failure.wait_seconds
            if attempt == self.retries or abandoned.wait(_wait_seconds(attempt, asked)):
                break
        raise UserError(f"{self.url}, model {self.model}: {reason}; tried {attempt + 1} times")

    def complete_all(self, conversations: Sequence[Messages], max_tokens: int) -> Iterator[tuple[int, Completion]]:
        """Yield (index of a request, its reply), greedy, each as soon as it is there.

        After a failure nothing new is asked, and what was under way is waited for and yielded: no reply is paid in
        vain.

        Raises:
            UserError: as `complete`, after the last reply; also says how many replies are not there.
        """
        abandoned, failure, left = threading.Event(), None, len(conversations)
        todo, under_way = iter(enumerate(conversations)), dict[Future[Completion], int]()
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="endpoint")
        try:
            while True:
                # Twice as many as are asked at once, so that no thread waits for whoever reads the replies.
                for index, messages in islice(todo, 0 if failure else 2 * self.concurrency - len(under_way)):
                    under_way[pool.submit(self.complete, messages, max_tokens, abandoned=abandoned)] = index
                if not under_way:
                    break
                done = wait(under_way, return_when=FIRST_COMPLETED).done
                for future in sorted(done, key=under_way.__getitem__):
                    index = under_way.pop(future)
                    if isinstance(error := future.exception(), UserError):
                        failure = failure or error
                        abandoned.set()
                    else:
                        left -= 1
                        yield index, future.result()
                if failure:
                    under_way = {future: index for future, index in under_way.items() if not future.cancel()}
        finally:
            abandoned.set()
            pool.shutdown(cancel_futures=True)
        if failure:
            total = len(conversations)
            raise UserError(f"{failure}; {left} of {total} are left, and the same command goes on with them")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "dcr-ds"}
        request = Request(self.url, data=body, headers=headers, method="POST")
        if self._key:  # unredirected: it goes to no other host
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        with self._counting:
            self.spent.requests += 1
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return self._without_key(response.read())
        except HTTPError as error:
            said = f"HTTP {error.code}: {self._said(error)}"
            if error.code in RETRIED or error.code >= 500:
                raise _Passing(said, _asked_wait(error.headers)) from None
            way_out = WAY_OUT.get(error.code, "it will not take such requests")
            raise UserError(f"{self.url}, model {self.model}: {said}; {way_out}") from None
        except TimeoutError:
            raise _Passing(f"silent for {self.timeout:g} s; allow more, or lower the concurrency") from None
        except (OSError, HTTPException, UnicodeError) as error:  # UnicodeError: no host can be called so
            if isinstance(getattr(error, "reason", None), TimeoutError):
                raise _Passing(f"no connection within {self.timeout:g} s") from None
            raise _Passing(f"no connection ({getattr(error, 'reason', error)}); is the server up?") from None

    def _said(self, error: HTTPError) -> str:
        """The message in a server's refusal."""
        try:
            text = self._without_key(error.read()).decode(errors="replace")
        except (OSError, HTTPException):
            return str(error.reason)
        with suppress(ValueError, KeyError, TypeError):
            text = str(json.loads(text)["error"]["message"])
        return _start_of(text) or str(error.reason)

    def _without_key(self, body: bytes) -> bytes:
        """What a server sent, without the key should it quote it; a short word in its place is no secret."""
        return body.replace(self._key.encode(), b"...") if len(self._key) > len("any word") else body

    def _count(self, completion: Completion) -> Completion:
        with self._counting:
            self.spent.prompt_tokens += completion.prompt_tokens
            self.spent.completion_tokens += completion.completion_tokens
        return completion


def _start_of(text: str) -> str:
    return " ".join(text.split())[:QUOTED_CHARACTERS]


def _read_completion(body: bytes) -> Completion:
    try:
        reply = json.loads(body)
        choice, usage = reply["choices"][0], reply.get("usage") or {}
        text = choice["message"]["content"] or ""  # null where a filter or a reasoning limit left nothing
        if not isinstance(text, str):
            raise TypeError
        return Completion(
            text,
            choice.get("finish_reason"),
            int(usage.get("prompt_tokens") or 0),
            int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        start = _start_of(body.decode(errors="replace"))
        raise _Passing(f"its reply is no chat completion: {start!r}; is the url that of such an endpoint?") from None


def _is_local(url: str) -> bool:
    """Whether a url is of this machine or its own network: a private address, or a host name without a dot."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"{url!r} is no address ({error})") from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise UserError(f"{url!r} is no address of an endpoint; it looks like http://localhost:8000/v1")
    if parts.username is not None:
        raise UserError("the endpoint's url holds a user name; a key belongs into an environment variable")
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host


def _read_key(name: str, url: str, needed: bool) -> str:
    key = os.environ.get(name, "").strip()
    if needed and not key:
        raise UserError(
            f"{url}: no key; put it into the environment variable {name} (any word if the server wants none)"
        )
    if not (key.isascii() and key.isprintable()):  # http.client would print it whole in its error
        raise UserError(f"the environment variable {name} holds characters that no key has")
    return key


def _opener(local: bool) -> OpenerDirector:
    """Proxies are for the outside: a local server is asked directly, whatever the environment says."""
    return build_opener(ProxyHandler({})) if local else build_opener()


def _wait_seconds(attempt: int, asked: float | None) -> float:
    """As long as the server asks for, or twice as long from try to try; jitter keeps requests from coming in step."""
    wait = FIRST_WAIT_SECONDS * 2**attempt * _jitter.uniform(0.5, 1.0) if asked is None else asked
    return min(wait, LONGEST_WAIT_SECONDS)


def _asked_wait(headers: Message) -> float | None:
    """Seconds of a Retry-After header, which is a number of them or a date."""
    value = (headers.get("Retry-After") or "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
