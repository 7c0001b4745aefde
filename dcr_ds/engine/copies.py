"""How many ranks hold one copy of an evaluated model: the rule behind `evaluate.ranks_per_copy: auto`."""

from dataclasses import dataclass

from transformers import PreTrainedConfig

from dcr_ds.engine.machine import Machine
from dcr_ds.errors import UserError
from dcr_ds.models.tensor_parallel import as_config, why_not_spread
from dcr_ds.recipe import EvaluateSection

GIB = 2**30
RESERVE = 0.2  # share of a GPU's memory for activations, logits, allocator and NCCL
PROMPT_TOKENS = 512  # of the longest prompts that the cache is sized for
ANSWER_TOKENS = 512  # with max_new_tokens: auto
CACHE_TOKENS = 2**14  # at least; the cache of a batch of refusal log-odds
FIELD = "evaluate.ranks_per_copy"
REMEDY = "evaluate behind a server (dcr-ds evaluate URL#MODEL), or leave evaluate out of the stages"


@dataclass(frozen=True)
class Footprint:
    """Bytes of one copy of a model during its evaluation."""

    weights: int
    cache: int

    def per_rank(self, size: int) -> int:
        """Bytes on each of `size` ranks that hold a copy together."""
        return (self.weights + self.cache) // size


def footprint(config: PreTrainedConfig, itemsize: int, evaluate: EvaluateSection) -> Footprint:
    """Estimate the memory of a copy.

    Args:
        itemsize: bytes per parameter.
    """
    answer = ANSWER_TOKENS if evaluate.max_new_tokens == "auto" else evaluate.max_new_tokens
    tokens = max(CACHE_TOKENS, evaluate.batch_size * (PROMPT_TOKENS + answer))
    heads, width = _key_value_heads(config), _head_width(config)
    per_token = 2 * config.num_hidden_layers * heads * width * itemsize
    return Footprint(parameters(config) * itemsize, tokens * per_token)


def parameters(config: PreTrainedConfig) -> int:
    """The parameters of a causal language model without its norms and biases, which are less than 0.1 % of it."""
    width, head = config.hidden_size, _head_width(config)
    attention = 2 * width * head * (config.num_attention_heads + _key_value_heads(config))
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    inner = (experts and getattr(config, "moe_intermediate_size", None)) or config.intermediate_size
    mlp = 3 * width * inner * (experts or 1) + width * (experts or 0)
    embeddings = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    return config.num_hidden_layers * (attention + mlp) + embeddings


def _key_value_heads(config: PreTrainedConfig) -> int:
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def _head_width(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def resolve_copies(evaluate: EvaluateSection, model_config: dict, machine: Machine, itemsize: int) -> tuple[int, str]:
    """The ranks per copy of an evaluated model, and the reason.

    `auto` is the smallest divisor of the ranks per node with which weights and cache fit in the memory of a GPU minus
    `RESERVE`; 1 on a CPU.

    Raises:
        UserError: the number asked for, or every number possible here, cannot work.
    """
    ranks, asked = machine.ranks_per_node, evaluate.ranks_per_copy
    divisors = [size for size in range(1, ranks + 1) if ranks % size == 0]
    if asked == 1:
        return 1, "as asked"
    if asked == "auto" and not machine.on_gpu:
        return 1, "on a CPU, each rank holds a whole copy"
    config = as_config(model_config)
    problems = {size: why_not_spread(config, size) for size in divisors if size > 1}
    possible = [1, *(size for size, problem in problems.items() if not problem)]
    if asked != "auto":
        problem = problems.get(asked, f"it does not divide the number of ranks per node, {ranks}")
        if problem:
            raise UserError(
                f"{FIELD}: {asked} is not possible: {problem}; set it to {' or '.join(map(str, possible))} or auto, "
                f"or {REMEDY}"
            )
        return asked, "as asked"
    return _smallest(possible, footprint(config, itemsize, evaluate), machine.memory_bytes, problems)


def _smallest(sizes: list[int], copy: Footprint, memory: int, problems: dict[int, str]) -> tuple[int, str]:
    """The smallest size with which a copy fits, or else the largest that holds its weights."""
    usable = (1 - RESERVE) * memory
    size = next((size for size in sizes if copy.per_rank(size) <= usable), sizes[-1])
    need = f"{copy.per_rank(size) / GIB:.1f} GiB of weights and cache on each rank"
    if copy.weights // size > memory:
        more = next((f" ({problem})" for larger, problem in problems.items() if larger > size and problem), "")
        raise UserError(
            f"{FIELD}: the model does not fit: {need}, a GPU has {memory / GIB:.1f} GiB, and a copy can be on at most "
            f"{size} rank{'s' if size > 1 else ''} of a node{more}; start more ranks per node (torchrun "
            f"--nproc_per_node), use larger GPUs, or {REMEDY}"
        )
    room = f"{usable / GIB:.1f} GiB, which leaves {RESERVE:.0%} of a GPU free"
    return size, f"{need}; {'at most' if copy.per_rank(size) <= usable else 'more than'} {room}"
