"""The architectures that the tests cover, and what config.json alone says about whether a model can be trained.

An architecture is `model_type` of config.json. One that is not listed runs after a warning, if the checks of
`models/rehearsal.py` pass. Nothing here imports torch.
"""

from pathlib import Path
from typing import Any

from dcr_ds.errors import UserError

# tests/models/test_architectures.py trains, packs, splices and exports a tiny model of each; docs/models.md lists them
TESTED = (
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    "gemma2",
    "gemma3_text",
    "gemma4_text",
    "phi3",
    "olmo2",
    "olmo3",
    "olmoe",
    "smollm3",
    "granite",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt_oss",
)


def check_config(folder: Path, config: dict[str, Any]) -> None:
    """Raise UserError unless config.json describes a language model of one stack of blocks."""
    file, model_type, blocks = folder / "config.json", config.get("model_type"), config.get("num_hidden_layers")
    if not isinstance(model_type, str):
        raise UserError(f"{file}: model_type must be a name, not {model_type!r}; copy the model again")
    if any(isinstance(config.get(part), dict) for part in ("text_config", "vision_config", "audio_config")):
        raise UserError(
            f"{folder}: {model_type} is a model of text and images or sound; only a language model can be trained: "
            "load it with its architecture's class …ForCausalLM in transformers, and save that with save_pretrained"
        )
    both_ways = {"is_causal": (False,), "use_bidirectional_attention": (True, "all")}  # of transformers' masks
    if field := next((name for name, values in both_ways.items() if config.get(name) in values), None):
        raise UserError(
            f"{file}: {field}: {config[field]!r} lets tokens read later ones, as in embedding models; only a causal "
            "language model can be trained"
        )
    if blocks is None:
        raise UserError(
            f"{file}: has no num_hidden_layers, so {model_type} cannot be trained here: it is an architecture of "
            "another form, or a part of its config.json is missing"
        )
    if type(blocks) is not int or blocks < 1:
        raise UserError(f"{file}: num_hidden_layers must be a number above 0, not {blocks!r}")
    tokens = config.get("vocab_size", 1)
    if type(tokens) is not int or tokens < 1:
        raise UserError(f"{file}: vocab_size must be a number above 0, not {tokens!r}")


def check_can_be_cut(folder: Path, config: dict[str, Any]) -> None:
    """Raise UserError if the blocks of a model cannot be loaded without those above them, as stage 1 does."""
    if config.get("model_type") == "gemma4_text" and config.get("hidden_size_per_layer_input", 256):
        raise UserError(
            f"{folder}: stage 1 cannot cut a Gemma 4 with per-layer embeddings (E2B, E4B), whose one table holds the "
            "inputs of all blocks; use a Gemma 4 without them (hidden_size_per_layer_input: 0), or leave refine out of "
            "the stages"
        )
    if config.get("num_kv_shared_layers"):
        raise UserError(
            f"{folder}: stage 1 cannot cut a model whose last blocks read the keys and values of earlier ones "
            "(num_kv_shared_layers in its config.json); leave refine out of the stages"
        )


def untested_warning(config: dict[str, Any]) -> str:
    """The warning about an architecture that the tests do not cover; "" for one that they do."""
    model_type = config["model_type"]
    if model_type in TESTED:
        return ""
    return (
        f"WARNING: {model_type} is not among the tested architectures (docs/models.md). A small random model of this "
        "kind was cut and written back correctly, so the run continues; check its results with care"
    )
