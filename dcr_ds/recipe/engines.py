"""What generates the answers of an evaluation: this process, or a server that a command starts.

A command is split into words like a shell command, but no shell runs it. Placeholders stand for what is known when it
starts.
"""

import difflib
import re
import shlex
from collections.abc import Mapping

LOCAL, VLLM = "transformers", "vllm"
VLLM_COMMAND = (
    "vllm serve {model} --host {host} --port {port} --dtype {dtype} --max-model-len {max_length} "
    "--tensor-parallel-size {tensor_parallel} --data-parallel-size {data_parallel}"
)
REQUIRED = ("model", "host", "port")
PLACEHOLDERS = (*REQUIRED, "dtype", "max_length", "tensor_parallel", "data_parallel")
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


def checked_engine(engine: str) -> str:
    """Return an engine: transformers, vllm, or a command. Raises ValueError for a command that cannot be used."""
    if engine in (LOCAL, VLLM):
        return engine
    try:
        words = shlex.split(engine)
    except ValueError as error:
        raise ValueError(f"evaluate.engine: {engine!r} cannot be split into words ({error})") from None
    names = [name for word in words for name in _PLACEHOLDER.findall(word)]
    missing = [f"{{{name}}}" for name in REQUIRED if name not in names]
    if unknown := [name for name in names if name not in PLACEHOLDERS]:
        close = difflib.get_close_matches(unknown[0], PLACEHOLDERS, n=1)
        hint = f"did you mean {{{close[0]}}}?" if close else f"known: {', '.join(PLACEHOLDERS)}"
        raise ValueError(f"evaluate.engine: unknown placeholder {{{unknown[0]}}} in {engine!r}; {hint}")
    if missing:
        raise ValueError(
            f"evaluate.engine: {engine!r} is not {LOCAL} or {VLLM}, and as the command of a server it lacks "
            f"{', '.join(missing)}; example: transformers serve {{model}} --host {{host}} --port {{port}}"
        )
    return engine


def server_words(engine: str) -> list[str]:
    """The words of the command of an engine, with placeholders."""
    return shlex.split(VLLM_COMMAND if engine == VLLM else engine)


def fill(words: list[str], values: Mapping[str, object]) -> list[str]:
    """Replace the placeholders that have a value; other braces, as in JSON, stay."""

    def value(match: re.Match) -> str:
        return str(values[match[1]]) if match[1] in values else match[0]

    return [_PLACEHOLDER.sub(value, word) for word in words]
