"""The forward passes of the training stages, as one rank computes them: their models, inputs and losses.

The models are those of transformers without weights, on the meta device; the losses those of the training loops.

Legend: B rows, T tokens per row, ℓ blocks of the trunk, L blocks of the model.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dcr_ds.engine.build import checkpoint_activations
from dcr_ds.models.adapters import add_lora
from dcr_ds.models.checkpoint_files import BLOCK
from dcr_ds.models.experts import freeze_routers
from dcr_ds.models.likelihood import Likelihood
from dcr_ds.models.load import DTYPES
from dcr_ds.models.trunk import freeze_tail, trunk_config
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.layout import TrainingStage
from dcr_ds.refine.retain import relative_distance_squared

Kind = Literal["refine", "retain", "whole", "align", "dpo", "kto"]
STAGE_2: tuple[Kind, ...] = ("align", "dpo", "kto")


def kind_of(recipe: Recipe, stage: TrainingStage) -> Kind:
    """The passes of a training stage: of stage 2, those of its method."""
    if stage == "refine" or recipe.align.method == "sft":
        return stage
    return "dpo" if recipe.align.is_paired else "kto"


@dataclass(frozen=True)
class Work:
    """One forward pass of one rank.

    `refine` and `retain` are the two passes of stage 1, on the trunk. `whole` is the contrastive pass without the cut:
    the whole model with its head, the tail frozen, h taken from its hidden states, with an attention mask for padding,
    which this project's batches do not need. Stage 2 is `align` with SFT, `dpo` on pairs, which are two rows, or `kto`.
    """

    kind: Kind
    rows: int
    tokens: int

    def inputs(self) -> dict[str, torch.Tensor]:
        ids = torch.zeros(self.rows, self.tokens, dtype=torch.long)
        return {"input_ids": ids} | ({"attention_mask": torch.ones_like(ids)} if self.kind == "whole" else {})


def build_model(recipe: Recipe, folder: Path, kind: Kind, trunk: int, tail: int) -> torch.nn.Module:
    """The model of a stage in training mode on the meta device, with `trunk` + `tail` blocks."""
    options = {"dtype": DTYPES[recipe.model.dtype], "attn_implementation": recipe.model.attention}
    on_trunk = kind in ("refine", "retain")
    with torch.device("meta"):
        if on_trunk:
            model = freeze_tail(AutoModel.from_config(trunk_config(folder, trunk), **options, trust_remote_code=False))
        else:
            config = _with_blocks(AutoConfig.from_pretrained(folder, trust_remote_code=False), trunk + tail)
            model = AutoModelForCausalLM.from_config(config, **options, trust_remote_code=False)
    model.config.use_cache = False
    if recipe.model.freeze_router:
        freeze_routers(model)
    if kind == "whole":
        freeze_above(model, trunk)
    elif (stage := recipe.refine if on_trunk else recipe.align).adapter == "lora":
        model = add_lora(model, stage.lora, "refine.lora" if on_trunk else "align.lora")
    model.train()
    if recipe.model.activation_checkpointing:
        checkpoint_activations(model)
    return Likelihood(model, "chunked") if kind in STAGE_2 else model


def _with_blocks(config: PreTrainedConfig, blocks: int) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:blocks]
    config.num_hidden_layers = blocks
    return config


def freeze_above(model: PreTrainedModel, layer: int) -> None:
    """Freeze what stage 1 does not train: blocks above ℓ, final norm, head, and embeddings tied to the head."""
    for name, parameter in model.named_parameters():
        match = BLOCK.search(name)
        in_trunk = int(match[1]) < layer if match else parameter is model.get_input_embeddings().weight
        parameter.requires_grad_(in_trunk)
    if model.config.tie_word_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)


def _contrastive_pass(model: PreTrainedModel, recipe: Recipe, work: Work) -> torch.Tensor:
    """The pass of stage 1 that takes the gradient of h through a micro-batch."""
    hidden = _without_padding(model(**work.inputs()).last_hidden_state).view(work.rows, work.tokens, -1)
    return _at_pooled(hidden, recipe)


def _whole_pass(model: PreTrainedModel, recipe: Recipe, work: Work) -> torch.Tensor:
    hidden = model(**work.inputs(), output_hidden_states=True).hidden_states[_num_trained(model)]
    return _at_pooled(hidden, recipe)


def _at_pooled(hidden: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    h = hidden[:, -1] if recipe.refine.pooling == "last" else hidden.float().mean(1)
    return (h * torch.zeros_like(h)).float().sum()


def _num_trained(model: PreTrainedModel) -> int:
    """ℓ: the number of blocks that are trained."""
    return sum(next(block.parameters()).requires_grad for block in model.get_decoder().layers)


def _retain_pass(model: PreTrainedModel, recipe: Recipe, work: Work) -> torch.Tensor:
    hidden = _without_padding(model(**work.inputs()).last_hidden_state)
    return (relative_distance_squared(hidden, torch.zeros_like(hidden)) * torch.zeros(len(hidden))).sum()


def _align_pass(model: Likelihood, recipe: Recipe, work: Work) -> torch.Tensor:
    """With every token supervised, which is the largest number of logits."""
    where = torch.zeros(work.rows * work.tokens, dtype=torch.long)
    reduction = "sum" if work.kind == "align" else "none"
    return model(where=where, targets=torch.zeros_like(where), reduction=reduction, **work.inputs()).sum()


def _without_padding(hidden: torch.Tensor) -> torch.Tensor:
    """Rows without their padding [N, D]: a copy."""
    flat = hidden.flatten(0, 1)
    return flat.index_select(0, torch.zeros(len(flat), dtype=torch.long))


PASSES: dict[Kind, Callable[..., torch.Tensor]] = {
    "refine": _contrastive_pass,
    "whole": _whole_pass,
    "retain": _retain_pass,
    "align": _align_pass,
    "dpo": _align_pass,
    "kto": _align_pass,
}
