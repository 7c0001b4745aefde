"""Load a GGUF file with transformers."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from dcr_ds.errors import UserError


def load_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a GGUF file, dequantised to float32, and its tokenizer with the chat template of the file.

    Raises:
        UserError: transformers cannot read it: it is damaged, or of an architecture that transformers does not convert.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            trust_remote_code=False,
        )
    except Exception as error:  # what a damaged file raises depends on where the damage is
        raise UserError(f"{file}: transformers cannot read it ({str(error)[:200]}); copy it again") from None
    return model, tokenizer
