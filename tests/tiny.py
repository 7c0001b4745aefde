"""Tiny random models with a real tokenizer and chat template, built in seconds and saved like any model."""

import os
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = "<think>\n{% if enable_thinking is defined and enable_thinking is false %}\n</think>\n\n{% endif %}"
REASONING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}" + THINKING + "{% endif %}{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n" + THINKING + "{% endif %}"
)
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LINEAR_ATTENTION = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
}
OF_TYPE = {
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 24},
    "qwen3_moe": EXPERTS | {"mlp_only_layers": []},
    "qwen3_5_text": LINEAR_ATTENTION,
    "qwen3_5_moe_text": EXPERTS | LINEAR_ATTENTION | {"shared_expert_intermediate_size": 24},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma4_text": {"sliding_window": 8, "hidden_size_per_layer_input": 0, "global_head_dim": 8},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "olmo3": {"sliding_window": 8},
    "olmoe": EXPERTS,
    "glm4_moe": EXPERTS | {"n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with ChatML, so that any text can be encoded and lengths vary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(special + alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
    )


def make_model(
    folder: Path,
    model_type: str = "llama",
    layers: int = 4,
    tied: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **sizes,
) -> Path:
    """Save a random model of the given type and its tokenizer to a folder, and return the folder."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        model_type,
        **{**SIZES, **OF_TYPE.get(model_type, {}), "num_hidden_layers": layers, "tie_word_embeddings": tied, **sizes},
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_reasoning_model(folder: Path) -> Path:
    """A model whose chat template opens a block of reasoning, and closes it where `enable_thinking` is false."""
    make_model(folder)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = REASONING_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def one_thread_environment(**more: str) -> dict[str, str]:
    """The environment of a test's subprocess: one OpenMP thread, no hub, one cache."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **more}
