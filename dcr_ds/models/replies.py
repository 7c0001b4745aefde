"""What an OpenAI-compatible server sends back: replies, and refused prompts."""

import json
import math
import re
from contextlib import suppress
from typing import Any, NamedTuple

from dcr_ds.errors import UserError
from dcr_ds.files import parse_json

QUOTED_CHARACTERS = 300  # of a server's message
REFUSED = {400, 413, 422, 451}  # may be about this prompt alone
FILTERED = "filtered"  # the finish of a prompt that the server does not pass to the model
FAILED = "error"  # the finish of an answer during which the server failed
ABOUT_CONTENT = re.compile(
    r"content[_ -]?(?:filter|policy|management|moderation)|moderation|safety|inspection|prohibited|blocked|flagged|"
    r"responsible ?ai|usage polic|content exists risk|high risk|敏感",
    re.IGNORECASE,
)
ABOUT_LENGTH = re.compile(
    r"context[_ -]?(?:length|window)|too (?:long|large|many tokens)|"
    r"maximum (?:\w+ )?(?:length|tokens)|max_model_len|`inputs`|token count|"
    r"must be at least 1, got -|exceeds? (?:the )?(?:\w+ ){0,3}(?:limit|length|tokens|context)",
    re.IGNORECASE,
)
# The most tokens of an answer that a model allows; with a word about the prompt, the prompt may be too long for it.
ABOUT_LIMIT = re.compile(r"\bmax\w*_tokens\b.*(?:too large|less than or equal|at most)", re.IGNORECASE | re.DOTALL)
ABOUT_PROMPT = re.compile(r"\b(?:inputs?|prompts?|messages?|your request|context length)\b", re.IGNORECASE)
CONTEXT = re.compile(r"maximum context length is (\d+)", re.IGNORECASE)  # vLLM and OpenAI
# llama.cpp's slots share one context. When the requests in it outgrow it together, it fails all of them.
FULL_CONTEXT = re.compile(r"context size has been exceeded", re.IGNORECASE)
INPUT = re.compile(r"\b(?:input|prompt)\b", re.IGNORECASE)
MAY_LACK_CONTENT = ("refusal", "reasoning_content", "reasoning", "tool_calls")  # a message with one of these

FINISHES = {  # other names of finish reasons, in lower case
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_length"), "length"),
    **dict.fromkeys(("safety", "prohibited_content", "blocklist", "recitation", "sensitive"), "content_filter"),
}


class Completion(NamedTuple):
    """A reply of the model.

    `finish` is "stop", "length" if it was cut off, "content_filter" if the server withheld the rest, "error" if the
    server failed while it generated, and FILTERED if it refused the prompt; `problem` is its message then.
    `has_reasoning`: the server returned reasoning apart from the text.
    """

    text: str
    finish: str | None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    problem: str = ""
    has_reasoning: bool = False


class PromptRefused(UserError):
    """The server refuses a request, perhaps because of its prompt; `is_certain`: its message says so."""

    def __init__(self, message: str, is_certain: bool) -> None:
        super().__init__(message)
        self.is_certain = is_certain


def read_completion(body: bytes) -> Completion:
    """Read a chat completion.

    The text is that of the message, or its `refusal`. Reasoning that a server returns apart is not part of it.

    Raises:
        ValueError: not a chat completion; quotes its start.
    """
    try:
        reply = parse_json(body.decode("utf-8-sig", "replace"))
        choice, usage = reply["choices"][0], reply.get("usage")
        finish = FAILED if choice.get("error") else finish_of(choice.get("finish_reason"))
        # a filter, or reasoning up to the limit, may leave no content and even no message
        message = choice.get("message") or {} if finish == "content_filter" else choice["message"]
        has_no_content = finish in ("content_filter", "length") or not message.keys().isdisjoint(MAY_LACK_CONTENT)
        content = message.get("content") if has_no_content else message["content"]
        text = _text(content) or _text(message.get("refusal"))
        problem = error_message(choice.get("error")) if finish == FAILED else ""
        prompt_tokens, completion_tokens = (_count(usage, f"{kind}_tokens") for kind in ("prompt", "completion"))
        has_reasoning = bool(message.get("reasoning_content") or message.get("reasoning"))
        return Completion(text, finish, prompt_tokens, completion_tokens, problem, has_reasoning)
    except (ValueError, LookupError, TypeError, AttributeError):
        start = start_of(body.decode(errors="replace"))
        raise ValueError(
            f"the reply is not a chat completion: {start!r}; is the url that of a chat endpoint?"
        ) from None


def other_model(body: bytes, asked: str) -> str | None:
    """The model that a reply names, if it is another one than was asked for.

    A version or date after the name, and the owner or folder before it, make no other model.
    """
    with suppress(ValueError):
        reply = parse_json(body)
        named = reply.get("model") if isinstance(reply, dict) else None
        if isinstance(named, str) and named.strip():
            short, long = sorted((named.lower(), asked.lower()), key=len)
            return start_of(named) if short not in long else None
    return None


def finish_of(reason: Any) -> Any:
    """A server's finish reason by its usual name: "length", "content_filter"; others as they are."""
    name = str(reason).lower()
    return "content_filter" if name.startswith("content_filter") else FINISHES.get(name, reason)


def error_of(body: bytes) -> dict[str, Any]:
    """The error in the body of a failed request; its `message` is the body if the server says nothing more.

    Servers write {"error": {"message", …}}, {"error": text}, a list with one of them, or {"message"} or {"detail"}.
    """
    text = body.decode(errors="replace")
    with suppress(ValueError):
        reply = parse_json(text)
        reply = reply[0] if isinstance(reply, list) and len(reply) == 1 else reply
        error = reply.get("error", reply) if isinstance(reply, dict) else None
        if isinstance(error, dict):
            message = next((error[key] for key in ("message", "detail") if error.get(key)), None)
            return error | {"message": message if isinstance(message, str) else json.dumps(message or error)}
        if isinstance(reply, dict):
            return {"message": str(error or "")}
    return {"message": text}


def is_error(body: bytes) -> bool:
    """Whether a body with the status of success says that the request failed."""
    with suppress(ValueError):
        reply = parse_json(body)
        return isinstance(reply, dict) and bool(reply.get("error")) and not reply.get("choices")
    return False


def error_message(error: Any) -> str:
    return start_of(str(error.get("message", error) if isinstance(error, dict) else error or ""))


def is_about_the_prompt(error: dict[str, Any]) -> bool:
    """Whether the server refuses this prompt: its content, or its length."""
    return bool(ABOUT_CONTENT.search(_words(error))) or is_about_length(error)


def is_about_length(error: dict[str, Any]) -> bool:
    """Whether the server refuses this prompt for its length."""
    return bool(ABOUT_LENGTH.search(_words(error)))


def is_about_the_limit(error: dict[str, Any], sent: dict[str, Any]) -> bool:
    """Whether the server refuses every request for answers of this length, perhaps that of the whole context."""
    words = _words(error)
    max_tokens = sent.get("max_tokens") or sent.get("max_completion_tokens") or 0
    if (context := CONTEXT.search(words)) and max_tokens >= int(context[1]):
        return True
    return bool(ABOUT_LIMIT.search(words)) and not ABOUT_PROMPT.search(words)


def is_full(error: dict[str, Any]) -> bool:
    """Whether the requests that a server answered at the same time were too many for its context."""
    return bool(FULL_CONTEXT.search(_words(error)))


def _words(error: dict[str, Any]) -> str:
    return " ".join(str(error.get(key) or "") for key in ("code", "type", "message", "innererror"))


def start_of(text: str) -> str:
    return _whole_characters(" ".join(text.split())[:QUOTED_CHARACTERS])


def _text(content: Any) -> str:
    """The text of a content, also in parts; null if a filter or a limit on reasoning left nothing."""
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list):
        content = "".join(_text_of_part(part) for part in content)
    if not isinstance(content, str | None):
        raise TypeError
    return _whole_characters(content or "")


def _count(usage: Any, name: str) -> int:
    """A count of tokens; 0 if the server gives none."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else 0


def _whole_characters(text: str) -> str:
    """A text that files can store: servers that cut one within a character send half of a surrogate pair."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text_of_part(part: dict) -> str:
    kind = part.get("type", "text")
    value = part.get("refusal" if kind == "refusal" else "text") if kind in ("text", "output_text", "refusal") else ""
    if isinstance(value, dict):
        value = value.get("value")
    if not isinstance(value, str | None):
        raise TypeError
    return value or ""
