"""LoRA adapters through peft: add an adapter, save it with a record of its base, merge it into a checkpoint."""

import copy
import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from dcr_ds.errors import UserError
from dcr_ds.files import write_atomically
from dcr_ds.models.checkpoint_files import BASE_RECORD, check_base, weights_hash
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.tokenizer_files import keep_tokenizer
from dcr_ds.models.trunk import splice
from dcr_ds.recipe import OWN_TEMPLATE, ChatTemplate, LoraSection
from dcr_ds.recipe.layout import StageFolder

WEIGHTS = "adapter_model.safetensors"
TIED = ("embed_tokens", "lm_head")  # modules that share one weight in a tied model
ROOT = "base_model.model."  # what peft puts before a module's name


def add_lora(model: PreTrainedModel, lora: LoraSection, field: str):
    """Wrap a model, whole or a trunk, with a LoRA adapter in the model's dtype; only the adapter trains.

    Args:
        field: the section of the recipe, such as `align.lora`.

    Raises:
        UserError: the targets match no module of the model, or embeddings that are tied to the head.
    """
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # annotated as an int, used as a float
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
    )
    try:
        # DeepSpeed keeps fp32 masters; peft would cast the adapter without ZeRO-3 knowing
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise UserError(f"{field}.targets: {str(error).splitlines()[0][:200]}") from None
    if model.config.tie_word_embeddings:
        _refuse_tied(adapted, field)
    return adapted


def _refuse_tied(model: PeftModel, field: str) -> None:
    """Raise UserError if an adapter is on input embeddings or a head that share one weight: merged, it changes both."""
    if tied := [name for name in model.targeted_module_names if name.split(".")[-1] in TIED]:
        raise UserError(
            f"{field}.targets: {tied[0]} shares its weight with the input embeddings or the head "
            "(tie_word_embeddings in the model's config.json), and an adapter on one of them cannot be merged without "
            f"changing the other; leave {tied[0].split('.')[-1]} out, or use a model whose head is not tied"
        )


def write_trained(
    model: PreTrainedModel | PeftModel,
    trained: dict[str, torch.Tensor],
    source: Path,
    stage: StageFolder,
    prefix: str = "",
    template: ChatTemplate = OWN_TEMPLATE,
) -> None:
    """Write the trained model to `stage.model`, and with LoRA the adapter to `stage.adapter`. Rank 0.

    Both get the tokenizer with the chat template of the training.

    Args:
        model: the trained model, whole or a trunk, with or without an adapter; its own weights are not read.
        trained: its trainable parameters by name, not partitioned, on the CPU.
        source: the checkpoint that the stage started from.
        prefix: prefix of the model's parameter names in the source: "model." for a trunk, none for a whole model.
        template: `model.template` of the recipe.
    """
    if isinstance(model, PeftModel):
        save_lora(model, trained, source, stage.adapter, prefix)
        keep_tokenizer(source, template, stage.adapter)
        merge_lora(source, stage.adapter, stage.model)
    else:
        splice(model, trained, source, stage.model, prefix)
    keep_tokenizer(source, template, stage.model)


def save_lora(model, trained: dict[str, torch.Tensor], source: Path, folder: Path, prefix: str = "") -> None:
    """Save an adapter of the source model in peft's format, from its gathered tensors. Rank 0.

    `base.json` next to it records the hash of the base's weights, so that it is never merged into another model.
    """
    own = get_peft_model_state_dict(model, state_dict=trained)
    tensors = {ROOT + prefix + name.removeprefix(ROOT): tensor.contiguous() for name, tensor in own.items()}
    config = copy.copy(model.peft_config["default"])
    config.task_type = "CAUSAL_LM"
    config.inference_mode = True
    config.base_model_name_or_path = str(source.resolve())
    if not config.target_parameters:  # fused experts have them; peft names those in its own way
        config.target_modules = sorted({_module_of(name) for name in tensors})  # a trunk's adapter ends at its layer
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(folder)
    base = {"source": str(source.resolve()), "sha256": weights_hash(source)}
    write_atomically(folder / BASE_RECORD, json.dumps(base, indent=1))


def merge_lora(source: Path, adapter: Path, target: Path) -> None:
    """Write a copy of the source checkpoint with an adapter merged in, from the source's own weights and dtype. Rank 0.

    Raises:
        UserError: the adapter is damaged, not a LoRA adapter, or was trained on another base.
    """
    check_base(source, adapter)
    names = _adapted_weights(adapter)
    merged = load_with_adapter(source, adapter, "auto", "eager", torch.device("cpu"))  # eager: supported by every model
    weights = {name: weight.detach() for name, weight in merged.named_parameters() if names is None or name in names}
    splice(merged, weights, source, target)


def load_with_adapter(
    source: Path, adapter: Path, dtype: torch.dtype | str, attention: str, device: torch.device
) -> PreTrainedModel:
    """A causal language model with an adapter merged in.

    Raises:
        UserError: the adapter is damaged, or was trained on another model.
    """
    base = load_causal_lm(source, dtype, attention, device)
    try:
        return PeftModel.from_pretrained(base, adapter).merge_and_unload()
    except Exception as error:  # what peft raises depends on the field of adapter_config.json that is wrong
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{adapter}: this adapter does not fit the model {source} ({reason})") from None


def _adapted_weights(adapter: Path) -> set[str] | None:
    """Names of the base weights that a LoRA adapter changes; None with an adapter on fused experts: any of them."""
    try:
        with safe_open(adapter / WEIGHTS, "pt") as stream:
            names = list(stream.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{adapter / WEIGHTS}: cannot be read ({error}); copy the adapter again") from None
    if others := [name for name in names if ".lora_" not in name]:
        raise UserError(f"{adapter}: holds {others[0]}, which is not a LoRA weight; only LoRA adapters can be merged")
    try:
        if PeftConfig.from_pretrained(str(adapter)).target_parameters:
            return None
    except Exception as error:  # as in load_with_adapter
        raise UserError(f"{adapter}: peft cannot read adapter_config.json ({type(error).__name__}: {error})") from None
    return {f"{_module_of(name)}.weight" for name in names}


def _module_of(name: str) -> str:
    """The module that an adapter's tensor belongs to."""
    return name.removeprefix(ROOT).partition(".lora_")[0]
