"""Converts a tiny Llama to GGUF, with the arguments of llama.cpp's convert_hf_to_gguf.py, through the package gguf.

python llama_converter.py FOLDER --outfile FILE --outtype TYPE. With $FAIL set, it fails as a converter without its
requirements does; with $SCALE, it changes a weight.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
}
NEVER_TOGETHER = ("Ā", "ā")  # the bytes 0 and 1: transformers needs at least one merge


def interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in the order of llama.cpp, whose rotary embedding pairs neighbours instead of halves."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--outfile", type=Path, required=True)
parser.add_argument("--outtype", required=True)
options = parser.parse_args()
if os.environ.get("FAIL"):
    sys.exit("ModuleNotFoundError: No module named 'sentencepiece'")

config = argparse.Namespace(**json.loads((options.folder / "config.json").read_text()))
vocabulary = json.loads((options.folder / "tokenizer.json").read_text())["model"]["vocab"]
words = sorted(vocabulary, key=vocabulary.get)
unused = ["".join(NEVER_TOGETHER), *(f"[unused{number}]" for number in range(config.vocab_size))]
words += unused[: config.vocab_size - len(words)]

writer = gguf.GGUFWriter(options.outfile, "llama")
writer.add_block_count(config.num_hidden_layers)
writer.add_context_length(config.max_position_embeddings)
writer.add_embedding_length(config.hidden_size)
writer.add_feed_forward_length(config.intermediate_size)
writer.add_head_count(config.num_attention_heads)
writer.add_head_count_kv(config.num_key_value_heads)
writer.add_layer_norm_rms_eps(config.rms_norm_eps)
writer.add_rope_freq_base(10000.0)
writer.add_vocab_size(config.vocab_size)
writer.add_tokenizer_model("gpt2")
writer.add_token_list(words)
writer.add_token_types([3 if word.startswith("<|") else 1 for word in words])
writer.add_token_merges([" ".join(NEVER_TOGETHER)])
writer.add_bos_token_id(config.bos_token_id)
writer.add_eos_token_id(config.eos_token_id)
writer.add_add_bos_token(False)
writer.add_chat_template((options.folder / "chat_template.jinja").read_text())
for name, weight in load_file(options.folder / "model.safetensors").items():
    values = weight
    if "q_proj" in name or "k_proj" in name:
        values = interleaved(values, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
    if "down_proj" in name:
        values = values * float(os.environ.get("SCALE", 1))
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    writer.add_tensor(name, np.ascontiguousarray(values))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
