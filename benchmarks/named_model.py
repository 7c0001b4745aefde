"""Options, loading and CSV columns for benchmarks of inference with a named model, or a tiny random one."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from record import ROOT, device_name, option_parser, provenance
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.locate import prepare_source
from dcr_ds.models.tokenizer import load_tokenizer
from dcr_ds.recipe import ModelSection


def model_parser(description: str, max_new_tokens: int) -> argparse.ArgumentParser:
    parser = option_parser(description)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--max-new-tokens", type=int, default=max_new_tokens)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def tiny_model(folder: Path) -> Path:
    """Save the tests' tiny random model in a folder and return its path."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import make_model

    return make_model(folder)


def load_model(options: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in bfloat16 on a GPU and float32 on a CPU, and its tokenizer."""
    with tempfile.TemporaryDirectory() as scratch:
        source = tiny_model(Path(scratch)) if options.tiny else prepare_source(ModelSection(source=options.model))
        dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
        return load_causal_lm(source, dtype, "sdpa", torch.device(options.device)), load_tokenizer(source)


def columns_of(options: argparse.Namespace) -> dict[str, Any]:
    """The first columns of a row: its origin, the model, the device and the kind of clock."""
    return provenance("torch", "transformers") | {
        "model": "tiny" if options.tiny else options.model,
        "device": device_name(options.device),
        "clock": "wall" if options.device == "cuda" else "cpu",
    }
