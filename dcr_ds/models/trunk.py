"""The trunk: a model cut after block ℓ.

Stage 1 trains blocks 1…ℓ and reads h, the output of block ℓ (`hidden_states[ℓ]` in transformers, 1 ≤ ℓ < L, before any
final norm). The tail (blocks above ℓ, final norm, head, and input embeddings tied to the head) is frozen and never
loaded: the trunk has ℓ blocks, and splice.py writes the trained tensors into a copy of the source checkpoint.
"""

from pathlib import Path

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from dcr_ds.models.checkpoint_files import check_layer
from dcr_ds.models.four_bit import finish_four_bit, loading_options
from dcr_ds.models.load import config_without_noise
from dcr_ds.models.packed_masks import separate_packed_rows
from dcr_ds.progress import heartbeat_while_moving

FINAL_NORMS = ("norm", "final_layernorm", "embedding_norm")  # names of the norm after the last block


def trunk_config(folder: Path, layer: int) -> PreTrainedConfig:
    """The config of the trunk: ℓ blocks, and no dropout or noise.

    Raises:
        UserError: `layer` is not in 1 … L − 1.
    """
    check_layer(folder, layer)
    config = config_without_noise(folder)
    if getattr(config, "layer_types", None):  # one entry per block: sliding or full attention
        config.layer_types = config.layer_types[:layer]
    config.num_hidden_layers = layer
    config.use_cache = False
    return config


def load_trunk(
    folder: Path,
    layer: int,
    dtype: torch.dtype,
    attention: str,
    quantize: str = "none",
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Load blocks 1…ℓ and the input embeddings; `model(...).last_hidden_state` is h [B, T, D].

    Under ZeRO-3 (a live HfDeepSpeedConfig) transformers partitions the parameters as it loads them.

    Args:
        quantize: `nf4` loads the linear layers in 4 bits; those of the tail are not read.
        device: where a quantised trunk is loaded; without quantisation it is not moved.
    """
    config = trunk_config(folder, layer)
    options = loading_options(folder, quantize, dtype, device)
    with heartbeat_while_moving(f"loading {folder}"):
        trunk = AutoModel.from_pretrained(
            folder, config=config, dtype=dtype, attn_implementation=attention, **options, trust_remote_code=False
        )
    trunk = freeze_tail(trunk if quantize == "none" else finish_four_bit(trunk, device or torch.device("cpu")))
    return separate_packed_rows(trunk)


def freeze_tail(trunk: PreTrainedModel) -> PreTrainedModel:
    """Drop the final norm, and freeze input embeddings that are tied to the head: they belong to the tail."""
    setattr(trunk, next((name for name in FINAL_NORMS if hasattr(trunk, name)), FINAL_NORMS[0]), torch.nn.Identity())
    if trunk.config.tie_word_embeddings:
        trunk.get_input_embeddings().weight.requires_grad_(False)
    return trunk
