"""Where to merge a QLoRA adapter: into the source's weights, or into the rounded ones that training saw.

    python train.py recipes/smollm2-135m-qlora.yaml --name merge --stages [align] --control none --align.epochs 0.4
    python benchmarks/qlora_merge.py runs/merge/align/adapter --csv benchmarks/results/qlora_merge.csv
    python benchmarks/qlora_merge.py --tiny --rows 30            trains a tiny random model first, in seconds

Compares each merged model with the trained one (the adapter over 4-bit weights) on the built-in pairs held out from
training: the KL divergence of the distribution of the first answer token, the refusal log-odds, and the AUC by which
these rank toxic prompts above their twins. And all of them on general conversations held out from training: −log π per
token of the answer. Merged weights are rounded to bfloat16; everything is computed in float32 on a CPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from log_odds import builtin, builtin_openings, held_out_twins
from peft import PeftModel
from record import ROOT, append, option_parser, provenance
from transformers import PreTrainedModel

from dcr_ds.diagnose.log_odds import refusal_log_odds
from dcr_ds.engine.distributed import Ranks
from dcr_ds.evaluate.general_loss import general_loss
from dcr_ds.files import read_json
from dcr_ds.models.chat import encode_conversation, encode_prompt
from dcr_ds.models.four_bit import import_bitsandbytes
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.merge import load_with_adapter
from dcr_ds.models.tokenizer import load_tokenizer

CPU = torch.device("cpu")


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as scratch:
        compare(tiny_adapter(Path(scratch)) if options.tiny else options.adapter, options)


def compare(adapter: Path, options: argparse.Namespace) -> None:
    """Print a row per model."""
    source = Path(read_json(adapter / "base.json")["source"])
    tokenizer = load_tokenizer(adapter)
    openings = builtin_openings(tokenizer)
    prompts = [encode_prompt(tokenizer, text) for text in held_out_twins()[: options.rows]]
    general = [
        encode_conversation(tokenizer, messages_of(row)) for row in builtin("general") if row["split"] != "train"
    ]
    trained = None
    for name, model in models(source, adapter):
        first, odds = first_tokens(model, prompts), refusal_log_odds(model, ids_of(prompts), prompts, openings, 16)
        loss = general_loss(model, general[: options.rows], 4, Ranks(0, 1, 0, CPU))["loss"]
        trained = trained or (first, odds)
        differences = [abs(row["log_odds"] - other["log_odds"]) for row, other in zip(odds, trained[1], strict=True)]
        row = provenance("torch", "transformers", "peft", "bitsandbytes") | {
            "model": name,
            "prompts": len(prompts),
            "kl_first_token": (trained[0].exp() * (trained[0] - first)).sum(-1).mean().item(),
            "log_odds_difference": statistics.mean(differences),
            "log_odds_mean": statistics.mean(row["log_odds"] for row in odds),
            "auc": auc([row["log_odds"] for row in odds]),
            "general_loss": loss,
        }
        print(json.dumps(row), flush=True)
        if options.csv:
            append(options.csv, row)


def parse() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument("adapter", type=Path, nargs="?", help="adapter of a stage that was trained over 4-bit weights")
    parser.add_argument("--rows", type=int, default=60, help="maximum number of prompts and of conversations")
    options = parser.parse_args()
    if not options.tiny and options.adapter is None:
        parser.error("name an adapter, or use --tiny")
    return options


def tiny_adapter(folder: Path) -> Path:
    """Align the tests' tiny random model over 4-bit weights, on a few sentences; returns its adapter."""
    sys.path.insert(0, str(ROOT / "tests"))
    from small_runs import write_recipe
    from tiny import make_model

    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "initializer_range": 0.08}
    recipe = write_recipe(folder, make_model(folder / "model", tied=False, dtype=torch.bfloat16, **sizes))
    fields = {"model.quantize": "nf4", "align.adapter": "lora", "align.epochs": 20, "align.learning_rate": 3e-3}
    options = [text for name, value in fields.items() for text in (f"--{name}", str(value))]
    subprocess.run(
        [sys.executable, "train.py", str(recipe), "--stages", "[align]", *options], cwd=ROOT, check=True, stdout=2
    )
    return folder / "runs" / "run" / "align" / "adapter"


def models(source: Path, adapter: Path) -> Iterator[tuple[str, PreTrainedModel]]:
    """The trained model first, then the merged ones, then the source without the adapter."""
    yield "adapter over 4-bit weights", PeftModel.from_pretrained(four_bit(source), adapter).eval()
    merged = PeftModel.from_pretrained(dequantised(four_bit(source)), adapter).merge_and_unload()
    yield "merged into the 4-bit weights, dequantised", rounded(merged)
    onto_source = load_with_adapter(source, adapter, torch.float32, "sdpa", CPU)
    yield "merged into the source's weights", rounded(onto_source)
    yield "source", load_causal_lm(source, torch.float32, "sdpa", CPU)
    yield "source in 4 bits", four_bit(source)


@torch.no_grad()
def rounded(model: PreTrainedModel) -> PreTrainedModel:
    """Round the weights to bfloat16, as in a checkpoint of that dtype."""
    for weight in model.parameters():
        weight.copy_(weight.to(torch.bfloat16))
    return model.eval()


def four_bit(source: Path) -> PreTrainedModel:
    return load_causal_lm(source, torch.float32, "sdpa", CPU, "nf4")


def dequantised(model: PreTrainedModel) -> PreTrainedModel:
    """Replace the 4-bit layers by ordinary ones with the same numbers."""
    functional = import_bitsandbytes("model.quantize").functional
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "Linear4bit":
                linear = torch.nn.Linear(child.in_features, child.out_features, bias=False)
                linear.weight.data = functional.dequantize_4bit(child.weight.data, child.weight.quant_state)
                setattr(module, name, linear)
    return model


@torch.no_grad()
def first_tokens(model: PreTrainedModel, prompts: list[list[int]]) -> torch.Tensor:
    """log p of the first token of an answer [prompts, V]."""
    rows = [model(torch.tensor([prompt]), logits_to_keep=1).logits[0, -1].log_softmax(-1) for prompt in prompts]
    return torch.stack(rows)


def auc(odds: list[float]) -> float:
    """How well log-odds of alternating seemingly toxic and toxic prompts rank the toxic ones higher."""
    pairs = [(toxic, other) for toxic in odds[1::2] for other in odds[::2]]
    return statistics.mean((toxic > other) + (toxic == other) / 2 for toxic, other in pairs)


def messages_of(row: dict) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]


def ids_of(prompts: list[list[int]]) -> list[str]:
    return [str(number) for number in range(len(prompts))]


if __name__ == "__main__":
    main()
