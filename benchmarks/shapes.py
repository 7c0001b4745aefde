"""Shapes of published models, for random weights, and the FLOP of their steps.

Legend: D width, L blocks, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig


def _llama(blocks: int, width: int, heads: int, kv_heads: int, inner: int, vocabulary: int, tied: bool, **more) -> dict:
    """A configuration; the seven parameters are the columns of SHAPES."""
    shape = {"num_hidden_layers": blocks, "hidden_size": width, "num_attention_heads": heads}
    shape |= {"num_key_value_heads": kv_heads, "intermediate_size": inner, "vocab_size": vocabulary}
    return {"model_type": "llama", "head_dim": width // heads, "tie_word_embeddings": tied} | shape | more


def _qwen(*sizes) -> dict:
    shape = _llama(*sizes, model_type="qwen2", max_position_embeddings=32768, rope_theta=1e6)
    del shape["head_dim"]  # always width / heads
    return shape


SHAPES = {
    "tiny": _llama(4, 48, 3, 1, 128, 512, True),
    "smollm2-135m": _llama(30, 576, 9, 3, 1536, 49152, True),
    "qwen2.5-0.5b": _qwen(24, 896, 14, 2, 4864, 151936, True),
    "qwen2.5-1.5b": _qwen(28, 1536, 12, 2, 8960, 151936, True),
    "qwen2.5-3b": _qwen(36, 2048, 16, 2, 11008, 151936, True),
    "qwen2.5-7b": _qwen(28, 3584, 28, 4, 18944, 152064, False),
    "llama-3-8b": _llama(32, 4096, 32, 8, 14336, 128256, False, rope_theta=5e5),
}
TRAINED = 18  # bytes per parameter: bf16 weight and gradient, fp32 master weight, both moments, buckets
PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312}  # dense bf16, from the vendor's data sheets (SXM versions)


def config_of(name: str) -> PreTrainedConfig:
    shape = dict(SHAPES[name])
    return AutoConfig.for_model(shape.pop("model_type"), **shape, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def parameters(config: PreTrainedConfig) -> int:
    with torch.device("meta"):
        return sum(
            parameter.numel()
            for parameter in AutoModelForCausalLM.from_config(config, trust_remote_code=False).parameters()
        )


def largest_that_fits(family: str, memory_bytes: int) -> str:
    """The largest shape of a family whose training state leaves a tenth of the memory for the activations."""
    fitting = [name for name in SHAPES if name.startswith(family)]
    fitting = [name for name in fitting if TRAINED * parameters(config_of(name)) <= 0.9 * memory_bytes]
    if not fitting:
        raise SystemExit(f"no {family} shape fits {memory_bytes / 1e9:.0f} GB full-parameter")
    return fitting[-1]


def save_random(config: PreTrainedConfig, folder: Path, dtype: torch.dtype, device: str) -> None:
    """Save a checkpoint of a model with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).save_pretrained(folder)


def block_flop(config: PreTrainedConfig, lengths: Sequence[int]) -> int:
    """FLOP of one block's forward pass over sequences that attend only to themselves.

    Linear layers: 2 per weight and token. Attention scores and weighted sums: 2·T²·D per sequence, for the causal half.
    Norms, activations and rotations are not counted.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or width // heads
    attended, kv = heads * head_dim, config.num_key_value_heads * head_dim
    weights = 2 * width * attended + 2 * width * kv + 3 * width * config.intermediate_size
    return sum(2 * weights * length + 2 * length * length * attended for length in lengths)


def head_flop(config: PreTrainedConfig, tokens: int) -> int:
    """FLOP of the head's forward pass: 2·V·D per token."""
    return 2 * config.vocab_size * config.hidden_size * tokens


def mfu(flop: float, seconds: float, device: str) -> float | None:
    """Model FLOP utilisation, relative to the device's bfloat16 peak; None for an unknown device."""
    peak = next((tflops * 1e12 for name, tflops in PEAK_TFLOPS.items() if name in device), None)
    return flop / seconds / peak if peak else None
