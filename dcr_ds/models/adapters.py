"""LoRA adapters through peft: add an adapter, save it with a record of its base, and write what a stage trained."""

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from dcr_ds.errors import UserError, first_line
from dcr_ds.files import write_atomically
from dcr_ds.models.checkpoint_files import BASE_RECORD
from dcr_ds.models.experts import ROUTER, expert_tensors
from dcr_ds.models.four_bit import adapt_four_bit_experts
from dcr_ds.models.hashes import weights_hash
from dcr_ds.models.merge import ROOT, WEIGHTS, has_adapter, merge_lora, module_of
from dcr_ds.models.splice import HeldWeights, Weights, read_all, splice
from dcr_ds.models.tokenizer_files import keep_tokenizer
from dcr_ds.recipe import OWN_TEMPLATE, ChatTemplate, LoraSection
from dcr_ds.recipe.layout import StageFolder

if TYPE_CHECKING:
    from peft import PeftModel

OF_EXPERTS = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}  # names that peft takes for experts
TIED = ("embed_tokens", "lm_head")  # modules that share one weight in a tied model


def add_lora(model: PreTrainedModel, lora: LoraSection, field: str):
    """Wrap a model, whole or a trunk, with a LoRA adapter in the model's dtype; only the adapter trains.

    Args:
        field: the section of the recipe, such as `align.lora`.

    Raises:
        UserError: the targets match no module of the model, a frozen router, or embeddings that are tied to the head.
    """
    from peft import LoraConfig, get_peft_model

    _check_named(model, lora.targets, field)
    frozen = (name for name, weight in model.named_parameters() if not weight.requires_grad)
    has_frozen_routers = any(map(ROUTER.search, frozen))
    targets = _targets(model, lora.targets)
    for option in ("dora", "dropout"):
        if "target_parameters" in targets and getattr(lora, option):
            raise UserError(
                f"{field}.{option}: peft has it for linear layers only, and {field}.targets: all-linear has experts, "
                f"which are single tensors; leave {option} out, or name targets such as [q_proj, v_proj]"
            )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # annotated as an int, used as a float
        lora_dropout=lora.dropout,
        **targets,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )
    try:
        # DeepSpeed keeps fp32 masters; peft would cast the adapter without ZeRO-3 knowing
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except (ValueError, re.error) as error:
        raise UserError(f"{field}.targets: {_reason(error, lora.targets)}") from None
    trained = (name for name, weight in adapted.named_parameters() if weight.requires_grad)
    if has_frozen_routers and (router := next(filter(ROUTER.search, trained), None)):
        raise UserError(
            f"{field}.targets: {module_of(router)} is a router, and model.freeze_router: true trains none; leave it "
            "out, or set model.freeze_router: false"
        )
    if model.config.tie_word_embeddings:
        _refuse_tied(adapted, field)
    adapt_four_bit_experts(adapted)
    return adapted


def _reason(error: Exception, targets: str | list[str]) -> str:
    """Why peft cannot add an adapter."""
    if module := re.match(r"Target module (\w+)", str(error)):  # its description can have many lines
        return f"peft has no adapter for {module[1]}; name linear layers, such as [q_proj, v_proj]"
    reason = first_line(error)[:200]
    if isinstance(targets, list):
        return reason
    return (
        f"{targets!r} as text is a regular expression for whole names of modules, such as '.*q_proj' ({reason}); use "
        "all-linear, or a list of names: [q_proj, v_proj]"
    )


def _check_named(model: PreTrainedModel, targets: str | list[str], field: str) -> None:
    """Raise UserError without targets, or for a name in a list that no module has: peft leaves it out if others match.

    Only the last part of a name is compared, as a model on which memory is planned has fewer blocks.
    """
    if not targets:
        raise UserError(f"{field}.targets: is empty; use all-linear, or names such as [q_proj, v_proj]")
    leaves = OF_EXPERTS | {name.rpartition(".")[2] for name, _ in model.named_modules()}
    for target in targets if isinstance(targets, list) else ():
        if target.rpartition(".")[2] not in leaves:
            raise UserError(
                f"{field}.targets: no module of the model is named {target!r}; use all-linear, or names such as q_proj"
            )


def _targets(model: PreTrainedModel, targets: str | list[str]) -> dict[str, Any]:
    """The targets for peft: of `all-linear` with experts, their tensors too, and never a router.

    peft would take the experts' names for those of older checkpoints and add the router; linear layers with these names
    (of shared experts and of dense blocks) get no adapter.
    """
    experts = [f"{place}.{name}" for place, _, name in expert_tensors(model)]
    if targets != "all-linear" or not experts:
        return {"target_modules": targets}
    head = model.get_output_embeddings()
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head}
    kept = {name.rpartition(".")[2] for name in linear if not ROUTER.search(f"{name}.")}
    return {"target_modules": sorted(kept - OF_EXPERTS), "target_parameters": experts}


def _refuse_tied(model: "PeftModel", field: str) -> None:
    """Raise UserError if an adapter is on input embeddings or a head that share one weight: merged, it changes both."""
    if tied := [name for name in model.targeted_module_names if name.split(".")[-1] in TIED]:
        raise UserError(
            f"{field}.targets: {tied[0]} shares its weight with the input embeddings or the head "
            "(tie_word_embeddings in the model's config.json), and an adapter on one of them cannot be merged without "
            f"changing the other; leave {tied[0].split('.')[-1]} out, or use a model whose head is not tied"
        )


def write_trained(
    model: "PreTrainedModel | PeftModel",
    trained: Weights | Mapping[str, torch.Tensor],
    source: Path,
    stage: StageFolder,
    prefix: str = "",
    template: ChatTemplate = OWN_TEMPLATE,
) -> None:
    """Write the trained model to `stage.model`, and with LoRA the adapter to `stage.adapter`.

    All processes of `trained`. Both get the tokenizer with the chat template of the training.

    Args:
        model: the trained model, whole or a trunk, with or without an adapter; its own weights are not read.
        trained: its trainable parameters by name.
        source: the checkpoint that the stage started from.
        prefix: prefix of the model's parameter names in the source: "model." for a trunk, none for a whole model.
        template: `model.template` of the recipe.
    """
    weights: Weights = HeldWeights(trained) if isinstance(trained, Mapping) else trained
    processes = weights.processes
    if has_adapter(model):
        adapter = read_all(weights, processes.rank == 0)

        def save_adapter() -> None:
            save_lora(model, adapter, source, stage.adapter, prefix)
            keep_tokenizer(source, template, stage.adapter)

        processes.decide(save_adapter)
        processes.wait_until_visible(stage.adapter)
        merge_lora(source, stage.adapter, stage.model, processes)
    else:
        splice(model, weights, source, stage.model, prefix)
    processes.decide(lambda: keep_tokenizer(source, template, stage.model))


def save_lora(model, trained: dict[str, torch.Tensor], source: Path, folder: Path, prefix: str = "") -> None:
    """Save an adapter of the source model in peft's format, from its gathered tensors. Rank 0.

    `base.json` next to it records the hash of the base's weights, so that it is never merged into another model.
    """
    from peft import get_peft_model_state_dict

    own = get_peft_model_state_dict(model, state_dict=trained)
    tensors = {ROOT + prefix + name.removeprefix(ROOT): tensor.contiguous() for name, tensor in own.items()}
    config = copy.copy(model.peft_config["default"])
    config.task_type = "CAUSAL_LM"
    config.inference_mode = True
    config.base_model_name_or_path = str(source.resolve())
    if not config.target_parameters:  # fused experts have them; peft names those in its own way
        config.target_modules = sorted({module_of(name) for name in tensors})  # a trunk's adapter ends at its layer
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(folder)
    base = {"source": str(source.resolve()), "sha256": weights_hash(source)}
    write_atomically(folder / BASE_RECORD, json.dumps(base, indent=1))
