"""Fields of a request that not every OpenAI-compatible server accepts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

FIELDS = ("max_tokens", "temperature", "seed", "chat_template_kwargs")  # that some servers do not know
_NOT_ACCEPTED = re.compile(
    r"support|unrecogni[sz]ed|invalid (?:parameter|argument)|strictly positive|"
    r"unknown|unexpected|not permitted|not allowed|extra|deprecated|only the default|instead",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class RequestFields:
    """Fields of requests that not every model accepts; None: not sent."""

    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: float | None = 0.0
    seed: int | None = 0
    chat_template_kwargs: Mapping[str, Any] | None = None

    def of(self, max_tokens: int) -> dict[str, Any]:
        variables = dict(self.chat_template_kwargs) if self.chat_template_kwargs else None
        optional = {"temperature": self.temperature, "seed": self.seed, "chat_template_kwargs": variables}
        return {self.limit: max_tokens} | {name: value for name, value in optional.items() if value is not None}

    def without(self, field: str) -> "RequestFields":
        """What is sent instead once a server has refused a field."""
        changed: dict[str, Any] = {"limit": "max_completion_tokens"} if field == "max_tokens" else {field: None}
        return replace(self, **changed)


def refused_field(error: dict[str, Any], sent: dict[str, Any]) -> str | None:
    """The field of a request that the server does not accept, by the server's own words."""
    message = f"{error.get('message', '')} {error.get('code', '')} {error.get('param', '')}"
    if not _NOT_ACCEPTED.search(message):
        return None
    named = [name for name in FIELDS if name in sent and re.search(rf"\b{name}\b", message)]
    return next((name for name in named if error.get("param") == name), named[0] if named else None)
