"""The command of an engine on this machine: whether it is installed, and the numbers in it. Does not import torch."""

import shutil
from collections.abc import Mapping
from typing import Any

from dcr_ds.errors import UserError
from dcr_ds.recipe.engines import LOCAL, VLLM, fill, server_words

HOST = "127.0.0.1"
CONCURRENCY = {VLLM: 64}  # requests in flight; other servers get as many as endpoints
OTHER_CONCURRENCY = 8


def check_engine(engine: str) -> None:
    """Raise UserError if the program of an engine is not on this machine."""
    if engine == LOCAL:
        return
    program = server_words(engine)[0]
    if shutil.which(program) is None:
        install = (
            "pip install vllm, in this environment or in one whose bin folder is in PATH" if engine == VLLM else ""
        )
        raise UserError(
            f"evaluate.engine: {program} was not found; {install or 'install it, or give its path'}; or use "
            f"evaluate.engine: {LOCAL}"
        )


def parallel_sizes(gpus: int, config: Mapping[str, Any]) -> tuple[int, int]:
    """Tensor-parallel and data-parallel size on the GPUs of a node.

    The tensor-parallel size is the largest divisor of the number of GPUs that also divides the attention heads, and
    that divides or is divided by the key-value heads; the other GPUs hold further copies of the model.
    """
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    heads = text.get("num_attention_heads") or 1
    kv_heads = text.get("num_key_value_heads") or heads

    def fits(size: int) -> bool:
        return gpus % size == 0 and heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)

    tensor = max(filter(fits, range(1, gpus + 1)), default=1)
    return tensor, max(1, gpus // tensor)


def requests_in_flight(engine: str, asked: int | str) -> int:
    return int(asked) if asked != "auto" else CONCURRENCY.get(engine, OTHER_CONCURRENCY)


def describe_engine(engine: str, gpus: int, config: Mapping[str, Any]) -> list[str]:
    """Lines of a dry run about a server that the evaluation starts."""
    if engine == LOCAL:
        return []
    tensor, data = parallel_sizes(gpus, config)
    place = f"the {gpus} GPUs that it sees" if gpus > 1 else "its GPU" if gpus else "the CPU"
    words = fill(server_words(engine), {"host": HOST, "tensor_parallel": tensor, "data_parallel": data})
    return [
        f"evaluate: rank 0 starts a server for each model, on {place}: {' '.join(words)}",
        "evaluate: the other ranks wait; log-odds, general loss and prefilled answers are computed without the server",
    ]
