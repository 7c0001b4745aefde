"""The layer of stage 1, chosen by the layer probe before training (docs/diagnose.md)."""

import gc
from pathlib import Path

import torch

from dcr_ds.data.load import RunData
from dcr_ds.data.records import Prompt
from dcr_ds.data.sampler import draw_prompts
from dcr_ds.diagnose.layers import choose_layer, hidden_by_layer, probe_layers
from dcr_ds.diagnose.prompts import labels_and_pairs
from dcr_ds.engine.distributed import Ranks
from dcr_ds.engine.machine import Machine
from dcr_ds.errors import UserError
from dcr_ds.models.checkpoint_files import weight_files
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.tokenizer import load_tokenizer
from dcr_ds.progress import heartbeat
from dcr_ds.recipe import Recipe
from dcr_ds.refine.prompts import split_prompts

MIN_PROMPTS = 40  # per set; with fewer the choice is mostly chance
MAX_PROMPTS = 200  # per set; more no longer change the choice
MEMORY_SHARE = 0.6  # of this device's memory, that the weights may take


def probe_layer(recipe: Recipe, source: Path, data: RunData, ranks: Ranks) -> tuple[int | None, str]:
    """The layer and the reason; None and why not if the probe cannot be run here. Rank 0, which loads the whole model.

    It reads the prompts that stage 1 trains on: held-out prompts decide when that stops, and long ones are left out.
    """
    tokenizer = load_tokenizer(source, recipe.model.template)
    ids, split = split_prompts(recipe, data, tokenizer, [])
    sets = [
        draw_prompts(rows, f"{recipe.seed}/layer probe", MAX_PROMPTS) for rows in (split.seemingly_toxic, split.toxic)
    ]
    if obstacle := _obstacle(recipe, source, sets, ranks):
        return None, obstacle
    heartbeat("refine, layer probe")
    tokens = [ids[label, row.id] for label, rows in enumerate(sets) for row in rows]
    labels, pairs = labels_and_pairs(*sets)
    dtype = torch.float32 if ranks.device.type == "cpu" else torch.bfloat16
    model = load_causal_lm(source, dtype, "eager", ranks.device)  # eager: supported by every model
    try:
        figures = probe_layers(hidden_by_layer(model, tokens, recipe.refine.pooling), labels, pairs)
    except UserError as error:  # states that are not finite: stage 1 reports it
        return None, str(error)
    finally:
        del model
        gc.collect()
        if ranks.device.type == "cuda":
            torch.cuda.empty_cache()
    return choose_layer(figures, len(figures) + 1)


def _obstacle(recipe: Recipe, source: Path, sets: list[list[Prompt]], ranks: Ranks) -> str | None:
    """Why the probe cannot be run, or None."""
    if (count := min(map(len, sets))) < MIN_PROMPTS:
        return f"{count} training prompts of a set, it needs {MIN_PROMPTS}"
    if recipe.model.quantize != "none":
        return f"model.quantize is {recipe.model.quantize}"
    weights = sum(file.stat().st_size for file in weight_files(source)) * (2 if ranks.device.type == "cpu" else 1)
    memory = Machine.detect(ranks).memory_bytes
    if weights > MEMORY_SHARE * memory:
        return f"the weights take {weights / 2**30:.1f} GiB, more than {MEMORY_SHARE:.0%} of {memory / 2**30:.1f} GiB"
    return None
