"""Tiny models with the hook of a baseline folder, and slow generation without a cache or padding."""

import shutil
from pathlib import Path

import torch
from tiny import make_model

from dcr_ds.diagnose.openings import Opening, Openings
from dcr_ds.models.hooks.load import load_model
from dcr_ds.models.hooks.record import BaselineRecord, content_hash, write_baseline
from dcr_ds.models.tokenizer import load_tokenizer, template_hash
from dcr_ds.recipe import OWN_TEMPLATE

CPU = torch.device("cpu")
SEQUENCES = ((7, 8), (7, 9, 10), (7, 9, 11, 12), (20,), (21, 7, 8), (21, 22))


def openings(sequences=SEQUENCES):
    return Openings(tuple(Opening(str(tokens), tokens, "data", 0.1, 0.0) for tokens in sequences), (), (), 0.6, 0.0)


def make_prompts(count=6, longest=24):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(3, 300, (length,), generator=generator).tolist() for length in lengths]


def write_hook(folder: Path, source: Path, name: str, settings: dict, vectors: dict | None = None) -> Path:
    """A baseline folder of a model."""
    record = BaselineRecord(
        name, str(source), content_hash(source, None), template_hash(load_tokenizer(source)), settings, {}
    )
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier test
    write_baseline(folder, record, [], vectors or {}, source, OWN_TEMPLATE)
    return folder


def load(source: Path, hook: Path | None = None, dtype=torch.float64, attention="sdpa"):
    return load_model(source, None, hook, dtype, attention, CPU)


def tiny_source(folder: Path, model_type="llama", **options) -> Path:
    return make_model(folder, model_type, **options)


def left_padded(prompts):
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": tokens, "attention_mask": mask}


@torch.no_grad()
def slow_answer(next_logits, prompt, new_tokens):
    """Greedy tokens and the logits they were chosen from; `next_logits(ids)` recomputes everything for each token."""
    ids, seen = list(prompt), []
    for _ in range(new_tokens):
        seen.append(next_logits(ids))
        ids.append(int(seen[-1].argmax()))
    return ids[len(prompt) :], torch.stack(seen)


@torch.inference_mode()
def fast_answers(model, prompts, new_tokens):
    """Tokens, logits [B, new_tokens, V] and the cache of generation in one left-padded batch."""
    output = model.generate(
        **left_padded(prompts), do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens,
        return_dict_in_generate=True, output_logits=True, pad_token_id=0,
    )  # fmt: skip
    cache = output.cache if hasattr(output, "cache") else output.past_key_values
    width = max(map(len, prompts))
    return output.sequences[:, width:].tolist(), torch.stack(output.logits, dim=1), cache
