"""A client of OpenAI-compatible chat endpoints: vLLM, llama.cpp, `transformers serve`, OpenAI and the like.

It sends a limited number of requests concurrently, yields replies as they arrive, and retries temporary failures. It
needs only the standard library.
"""

import json
import random
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from http.client import HTTPException
from itertools import islice
from typing import Any, NoReturn
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request

from dcr_ds.errors import UserError
from dcr_ds.models.endpoint_url import is_local_endpoint, read_key
from dcr_ds.models.http_replies import REDIRECTS, Unreadable, opener, read_body, redirect_problem, tls_problem
from dcr_ds.models.places import Places
from dcr_ds.models.replies import (
    FAILED,
    FILTERED,
    INPUT,
    REFUSED,
    Completion,
    PromptRefused,
    error_message,
    error_of,
    is_about_length,
    is_about_the_limit,
    is_about_the_prompt,
    is_error,
    is_full,
    other_model,
    read_completion,
)
from dcr_ds.models.request_errors import Failed, FieldRefused, FullContext, Temporary
from dcr_ds.models.request_fields import RequestFields, refused_field
from dcr_ds.recipe.urls import expand_variables
from dcr_ds.retries import requested_wait

Messages = list[dict[str, str]]
RETRIED = {408, 425, 429}  # and 500 and above; other errors are final
HINTS = {
    401: "the key is wrong or missing (environment variable {key_env})",
    403: "the key (environment variable {key_env}) may not use it",
    404: "check the model's name, and that the url is the part before /chat/completions (usually ending in /v1)",
}
FIRST_WAIT_SECONDS = 1.0  # doubled after each attempt
LONGEST_WAIT_SECONDS = 300.0  # even if a server asks for more
NOTED_WAIT_SECONDS = 20.0
OTHER_PROMPT = [{"role": "user", "content": "Hello"}]
MOST_HELD = 20  # refused prompts before the first answer; then the request is at fault
_jitter = random.Random()  # separate from the global generator, which is seeded for training


@dataclass
class Spent:
    """Usage of an endpoint so far: requests including retries, and tokens as counted by the server."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __str__(self) -> str:
        return f"{self.requests:,} requests, {self.prompt_tokens:,} tokens read, {self.completion_tokens:,} written"


class Endpoint:
    """One model at one URL. The key is read from the environment, and neither printed nor written to a file.

    Args:
        url: base URL; /chat/completions is added if it is missing.
        key_env: environment variable with the key; optional for local servers.
        concurrency: maximum number of concurrent requests.
        timeout: seconds without data after which a request fails.
        retries: attempts after the first.

    Raises:
        UserError: the url is invalid, or a server that is not local has no key.
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
        url = expand_variables(url, "url of the endpoint")
        self.url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.model = model
        self.key_env = key_env
        self.concurrency = concurrency
        self.timeout = timeout
        self.retries = retries
        self.fields = RequestFields()
        self._accepted: RequestFields | None = None  # once the server has refused a field
        self.spent = Spent()
        self._noted: set[str] = set()
        self._places = Places(concurrency)
        self._counting = threading.Lock()
        local = is_local_endpoint(url)
        self._key = read_key(key_env, url, needed=not local)
        if urlsplit(url).scheme == "http" and not local and len(self._key) > len("any word"):
            print(
                f"{url}: warning: the key in {key_env} is sent unencrypted to a public host; use https, or reach the "
                "server through a tunnel to localhost",
                file=sys.stderr,
            )
        self._opener = opener(local)

    def complete(self, messages: Messages, max_tokens: int, abandoned: threading.Event | None = None) -> Completion:
        """Request one reply; a field that the server refuses by name is left out, also of later requests.

        If the server fails at every attempt and then answers another request, the reply has the finish FAILED.

        Args:
            abandoned: once set, nothing is retried.

        Raises:
            PromptRefused: the server refuses the request, perhaps because of its prompt.
            UserError: the server refuses every request, or the last retry failed; quotes the server.
        """
        abandoned = abandoned or threading.Event()
        for attempt in range(self.retries + 1):
            try:
                return self._count(self._with_room(messages, max_tokens, abandoned))
            except Temporary as temporary:
                failure = temporary
            seconds = _wait_seconds(attempt, failure.wait_seconds)
            if seconds >= NOTED_WAIT_SECONDS and attempt < self.retries:
                self._note("a wait", f"waiting {seconds:.0f} s before the same request is sent again: {failure}")
            if attempt == self.retries or abandoned.wait(seconds):
                break
        reason = f"{self.url}, model {self.model}: {failure}; gave up after {attempt + 1} attempts"
        if isinstance(failure, Failed):
            if failure.reply:
                return failure.reply
            if not abandoned.is_set() and self._answers_others(max_tokens):  # so this prompt is at fault
                return Completion("", FAILED, problem=reason)
        raise UserError(reason)

    def _answers_others(self, max_tokens: int) -> bool:
        """Whether the server answers another prompt."""
        try:
            self._count(self._request(OTHER_PROMPT, max_tokens))
        except (Temporary, UserError):
            return False
        return True

    def _with_room(self, messages: Messages, max_tokens: int, abandoned: threading.Event) -> Completion:
        """Request one reply once, or again among fewer requests at a time where the server has no room for so many."""
        while True:
            with self._places.take() as number:
                try:
                    return self._request(messages, max_tokens)
                except FullContext:
                    if number == 1 or abandoned.is_set():
                        raise
            if self._places.lower(number):
                print(
                    f"{self.url}: the server's context is too small for {number} requests at the same time; "
                    f"{self._places.number} from now on (start the server with a larger context, or lower the "
                    "concurrency)",
                    file=sys.stderr,
                )

    def _request(self, messages: Messages, max_tokens: int) -> Completion:
        """Request one reply once, or again without the fields that the server refuses."""
        while True:
            fields = self._accepted or self.fields
            sent = {"model": self.model, "messages": messages, **fields.of(max_tokens)}
            try:
                body = self._post(sent)
            except FieldRefused as refused:
                field = str(refused)
                with self._counting:
                    if (self._accepted or self.fields) is fields:
                        self._accepted = fields.without(field)
                        print(f"{self.url}: the server does not accept {field}; not sent again", file=sys.stderr)
                continue
            if is_error(body):  # with the status of success
                error = error_of(body)
                message = f"{self.url}, model {self.model}: {error_message(error)}"
                if is_about_the_prompt(error):
                    raise PromptRefused(message, is_certain=True)
                kind = _kind_of(error.get("code"), error)
                raise kind(f"an error in place of a reply: {error_message(error)}")
            try:
                reply = read_completion(body)
            except ValueError as problem:
                raise Failed(str(problem)) from None
            if reply.finish == FAILED:
                raise Failed(f"the server failed while it generated: {reply.problem}", reply=reply)
            self._note_other_model(body)
            return reply

    def _note_other_model(self, body: bytes) -> None:
        """Say once if a reply is of another model: some servers answer with the one that they have loaded."""
        if named := other_model(body, self.model):
            self._note(named, f"asked for {self.model}, and the reply is of {named!r}; is it this model?")

    def _note(self, about: str, text: str) -> None:
        """Print a note, once on each matter."""
        with self._counting:
            if about not in self._noted:
                self._noted.add(about)
                print(f"{self.url}: {text}", file=sys.stderr, flush=True)

    def complete_all(
        self, conversations: Sequence[Messages], max_tokens: int, has_answered: bool = False
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index of a request, its reply) as replies arrive; greedy decoding.

        A prompt that the server refuses, for its content or its length, gets an empty reply with the finish FILTERED.
        If no prompt is answered, the error is not one of the prompts, unless the server says so. After any other
        failure no request is sent; replies to earlier requests are awaited and yielded, so that no paid reply is lost.

        Args:
            has_answered: whether the endpoint has answered other prompts before.

        Raises:
            UserError: as `complete`, after the last reply; also says how many replies are missing.
        """
        abandoned, failure, left = threading.Event(), None, len(conversations)
        todo, pending = iter(enumerate(conversations)), dict[Future[Completion], int]()
        held: dict[int, PromptRefused] = {}  # until it is known whether the prompt or the request is at fault
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="endpoint")
        try:
            while True:
                # Twice the concurrency, so that no thread waits for the consumer of the replies.
                for index, messages in islice(todo, 0 if failure else 2 * self.concurrency - len(pending)):
                    pending[pool.submit(self.complete, messages, max_tokens, abandoned=abandoned)] = index
                if not pending:
                    break
                replies: dict[int, Completion] = {}
                done = wait(pending, return_when=FIRST_COMPLETED).done
                for future in sorted(done, key=pending.__getitem__):
                    index, error = pending.pop(future), future.exception()
                    if isinstance(error, PromptRefused):
                        held[index] = error
                    elif isinstance(error, UserError):
                        failure = failure or error
                    else:
                        replies[index] = future.result()
                has_answered = has_answered or bool(replies)
                sure = [index for index, refusal in held.items() if has_answered or refusal.is_certain]
                replies |= {index: Completion("", FILTERED, problem=str(held.pop(index))) for index in sure}
                left -= len(replies)
                yield from sorted(replies.items())
                if len(held) >= MOST_HELD:
                    failure = failure or next(iter(held.values()))
                if failure:
                    abandoned.set()
                    pending = {future: index for future, index in pending.items() if not future.cancel()}
        finally:
            abandoned.set()
            pool.shutdown(cancel_futures=True)
        if failure := failure or next(iter(held.values()), None):
            total = len(conversations)
            raise UserError(f"{failure}; {left} of {total} are left, and the same command resumes with them")

    def request(self, path: str, sent: dict[str, Any]) -> dict[str, Any]:
        """Post to another path of the server once; the object in the reply. Raises UserError without one."""
        url = self.url.removesuffix("/chat/completions").removesuffix("/v1") + path
        try:
            reply = json.loads(self._post({"model": self.model, **sent}, url))
        except (Temporary, FieldRefused, UserError, ValueError) as error:
            raise UserError(f"{url}: {error}") from None
        return reply if isinstance(reply, dict) else {}

    def _post(self, sent: dict[str, Any], url: str = "") -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "dcr-ds"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = Request(url or self.url, data=json.dumps(sent).encode(), headers=headers, method="POST")
        with self._counting:
            self.spent.requests += 1
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return self._without_key(read_body(response))
        except HTTPError as error:
            self._raise_for(error, sent)
        except Unreadable as problem:
            raise UserError(f"{self.url}, model {self.model}: {problem}") from None
        except TimeoutError:
            raise Temporary(f"no data for {self.timeout:g} s; increase the timeout, or lower the concurrency") from None
        except (OSError, HTTPException, UnicodeError) as error:  # UnicodeError: an invalid host name
            reason = getattr(error, "reason", error)
            if tls := tls_problem(reason):
                raise UserError(f"{self.url}, model {self.model}: {tls}") from None
            if isinstance(reason, TimeoutError):
                raise Temporary(f"no connection within {self.timeout:g} s") from None
            raise Temporary(f"no connection ({reason}); is the server up?") from None

    def _raise_for(self, failed: HTTPError, sent: dict[str, Any]) -> NoReturn:
        """Raise for a failed request: temporary, about a field or the prompt, or final."""
        try:
            error = error_of(self._without_key(read_body(failed)))
        except (OSError, HTTPException, Unreadable):
            error = {"message": ""}
        if failed.code in REDIRECTS:
            raise UserError(f"{self.url}: {redirect_problem(self.url, failed.headers)}") from None
        message = f"HTTP {failed.code}: {error_message(error) or failed.reason}"
        if failed.code == 500 and is_about_length(error):  # as from older versions of llama.cpp
            raise PromptRefused(f"{self.url}, model {self.model}: {message}", is_certain=True) from None
        if failed.code in RETRIED or failed.code >= 500:
            raise _kind_of(failed.code, error)(message, requested_wait(failed.headers)) from None
        if failed.code in REFUSED and is_about_the_limit(error, sent):
            hint = "ask for shorter answers (--max-new-tokens, max_new_tokens of a recipe, max_tokens of a judge)"
            raise UserError(f"{self.url}, model {self.model}: {message}; {hint}") from None
        is_certain = is_about_the_prompt(error)
        if failed.code in REFUSED and not is_certain and (field := refused_field(error, sent)):
            raise FieldRefused(field) from None
        hint = HINTS.get(failed.code, "the server does not accept such requests").format(key_env=self.key_env)
        message = f"{self.url}, model {self.model}: {message}; {hint}"
        is_moderation = failed.code == 403 and is_certain and INPUT.search(message)  # the key is not refused
        if failed.code in REFUSED or is_moderation:
            raise PromptRefused(message, is_certain) from None
        raise UserError(message) from None

    def _without_key(self, body: bytes) -> bytes:
        """A response with the key removed, in case the server quotes it; a short placeholder is not a secret."""
        return body.replace(self._key.encode(), b"...") if len(self._key) > len("any word") else body

    def _count(self, completion: Completion) -> Completion:
        with self._counting:
            self.spent.prompt_tokens += completion.prompt_tokens
            self.spent.completion_tokens += completion.completion_tokens
        return completion


def _kind_of(code: Any, error: dict[str, Any]) -> type[Temporary]:
    """The failure of a request that is sent again; `code`: its HTTP status, or what the server writes in the body."""
    if is_full(error):
        return FullContext
    is_of_the_server = isinstance(code, int) and (code in RETRIED or code > 500)  # busy or down, whatever the prompt
    return Temporary if is_of_the_server else Failed


def _wait_seconds(attempt: int, requested: float | None) -> float:
    """The wait that the server requests, or exponential backoff with jitter, so that retries are spread out.

    A request to come back at once, or in the past, is none: the server has just failed.
    """
    wait = requested or FIRST_WAIT_SECONDS * 2**attempt * _jitter.uniform(0.5, 1.0)
    return min(wait, LONGEST_WAIT_SECONDS)
