"""What a model can read, from its config.json: token ids below the rows of its embedding, and tokens up to its context.

Nothing here imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcr_ds.errors import UserError
from dcr_ds.models.checkpoint_files import model_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# rope types whose max_position_embeddings is that of the scaled model; as in vLLM, which also counts Gemma 3's so
SCALED_ALREADY = ("default", "llama3")
# rope types whose frequencies change, beyond the original context, with the longest row of a forward pass
BY_LONGEST_ROW = ("dynamic", "longrope", "su")
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # fields of the configurations
GEMMA3 = ("gemma3", "gemma3_text")


@dataclass(frozen=True)
class ModelLimits:
    """
    Attributes:
        rows: rows of the embedding; None: not known.
        context: longest input plus output in tokens; None: not known, or without a limit.
    """

    rows: int | None = None
    context: int | None = None


def model_limits(folder: Path) -> ModelLimits:
    """Limits of the model in a folder; without any in a folder without a model, such as that of an adapter."""
    if not (folder / "config.json").is_file():
        return ModelLimits()
    config = model_config(folder)
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    return ModelLimits(_positive(text.get("vocab_size")), context_of(text))


def context_of(config: dict[str, Any]) -> int | None:
    """Context in tokens: max_position_embeddings, multiplied where a rope scaling extends it.

    Where the scaling depends on the longest row of a batch (Phi-3 with 128k), it is the original context: beyond it, a
    row would have another result in each micro-batch. A sliding window is not a limit: it only bounds how far back a
    layer looks.
    """
    positions = _positive(config.get("max_position_embeddings"))
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if positions is None or not isinstance(scaling, dict) or config.get("model_type") in GEMMA3:
        return positions
    kind, factor = scaling.get("rope_type", scaling.get("type", "default")), scaling.get("factor")
    original = _positive(scaling.get("original_max_position_embeddings"))
    if kind in BY_LONGEST_ROW:
        return min(positions, _positive(config.get("original_max_position_embeddings")) or original or positions)
    if kind in SCALED_ALREADY or not isinstance(factor, int | float) or factor <= 1:
        return positions
    return max(positions, int((original or positions) * factor))


def limits_of(tokenizer: "PreTrainedTokenizerBase") -> ModelLimits:
    """Limits of the model that a tokenizer was loaded for."""
    return getattr(tokenizer, "model_limits", ModelLimits())


def row_limit(tokenizer: "PreTrainedTokenizerBase", field: str, max_length: int) -> tuple[int, str]:
    """The longest row in tokens, and how messages name it: `max_length` of the recipe, or less if the model reads less.

    Args:
        field: of the recipe, such as `align.max_length`.
    """
    context = limits_of(tokenizer).context
    if context is not None and context < max_length:
        return context, f"the {context} tokens of the model's context"
    return max_length, f"{field} = {max_length} tokens"


def ids_beyond(ids: Any, rows: int | None) -> list[int]:
    """The ids, of a list or a single one as in generation_config.json, that an embedding of so many rows lacks."""
    values = ids if isinstance(ids, list) else [ids]
    return [token for token in values if rows is not None and isinstance(token, int) and token >= rows]


def padding_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """An id for masked positions that the model's embedding has: that of the pad token, if it is one."""
    rows = limits_of(tokenizer).rows
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in candidates if token is not None and (rows is None or token < rows)), 0)


def check_ids(ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise UserError if the embedding of the model has no row for an id."""
    rows = limits_of(tokenizer).rows
    if rows is not None and (largest := max(ids, default=0)) >= rows:
        raise UserError(
            f"token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}) is not in the model's vocabulary, which "
            f"ends at {rows - 1} (vocab_size in its config.json): the tokenizer has tokens that the model lacks; use "
            "the model's own tokenizer, add the tokens to the model with resize_token_embeddings, or remove the text "
            "that contains them"
        )


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None
