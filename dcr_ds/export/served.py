"""Refusal log-odds of a model behind an endpoint that returns the log-probabilities of prompt tokens, such as vLLM.

The openings are sent behind the prompt, as token ids. vLLM's field `prompt_logprobs` asks for the log-probability of
each token of a prompt; other OpenAI-compatible servers have nothing like it.
"""

import math
from collections.abc import Sequence
from typing import Any

from dcr_ds.diagnose.openings import Openings
from dcr_ds.errors import UserError
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.progress import heartbeat

MIN_OTHER = 1e-12  # probability of other answers where the rounding of a server leaves none


def served_log_odds(endpoint: Endpoint, prompts: Sequence[Sequence[int]], openings: Openings) -> list[float]:
    """The refusal log-odds of prompts, given as token ids up to where the answer begins.

    Raises:
        UserError: the server fails, or does not return the log-probabilities of prompt tokens.
    """
    values = []
    for prompt in prompts:
        start = [*prompt, *openings.lead]
        sent = [[*start, *opening.tokens] for opening in openings.openings]
        request = {"prompt": sent, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        choices = _choices(endpoint, endpoint.request("/v1/completions", request), len(sent))
        pairs = zip(sent, choices, strict=True)
        values.append(_log_odds([_sum(endpoint, tokens, len(start), choice) for tokens, choice in pairs]))
        heartbeat("reading refusal log-odds")
    return values


def served_tokens(endpoint: Endpoint, messages: Sequence[dict[str, str]]) -> list[int]:
    """The token ids of a prompt by the server's own tokenizer and chat template.

    Raises:
        UserError: the server does not return them.
    """
    reply = endpoint.request("/tokenize", {"messages": list(messages), "add_generation_prompt": True})
    if not isinstance(tokens := reply.get("tokens"), list):
        raise UserError(f"{endpoint.url}: no token ids from /tokenize")
    return tokens


def _choices(endpoint: Endpoint, reply: dict[str, Any], number: int) -> list[dict[str, Any]]:
    choices = reply.get("choices")
    if not isinstance(choices, list) or len(choices) != number or not all(isinstance(row, dict) for row in choices):
        raise UserError(f"{endpoint.url}: {number} choices were expected, one for each prompt of a request")
    return sorted(choices, key=lambda row: row.get("index", 0))


def _sum(endpoint: Endpoint, tokens: Sequence[int], start: int, choice: dict[str, Any]) -> float:
    """The log-probability of tokens[start:] after the tokens before them."""
    try:
        by_token = choice["prompt_logprobs"]
        return sum(float(by_token[place][str(tokens[place])]["logprob"]) for place in range(start, len(tokens)))
    except (KeyError, IndexError, TypeError, ValueError):
        raise UserError(
            f"{endpoint.url}, model {endpoint.model}: no log-probabilities of prompt tokens, which vLLM returns for "
            "prompt_logprobs; serve the model with vLLM, or verify its folder or GGUF file"
        ) from None


def _log_odds(log_p: Sequence[float]) -> float:
    """log p_R − log(1 − p_R) from the log-probabilities of the openings, none of which is a prefix of another one."""
    largest = max(log_p)
    refusal = largest + math.log(sum(math.exp(value - largest) for value in log_p))
    refusal = min(refusal, -MIN_OTHER)
    return refusal - math.log(-math.expm1(refusal))
