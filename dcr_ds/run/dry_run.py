"""--dry-run: describe a run from headers, configurations and tokens; no weights are loaded."""

import torch
from transformers import AutoModel, PreTrainedModel

from dcr_ds.engine.config import read_config
from dcr_ds.evaluate.serving.command import describe_engine
from dcr_ds.models.adapters import add_lora
from dcr_ds.models.check import build_on_meta
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.models.experts import freeze_routers
from dcr_ds.models.trunk import freeze_tail, trunk_config
from dcr_ds.recipe import Recipe, dump_recipe
from dcr_ds.recipe.layout import TrainingStage
from dcr_ds.run.folder import has_control
from dcr_ds.run.space import describe_space
from dcr_ds.run.tokens import RunTokens


def describe_run(tokens: RunTokens, reasons: dict[str, str], world_size: int) -> str:
    """Return the resolved recipe with its reasons, and parameters, steps and tokens of each stage, as text."""
    recipe, data = tokens.recipe, tokens.data
    zero_stage = read_config(recipe).get("zero_optimization", {}).get("stage", 0)
    lines = [dump_recipe(recipe)]
    lines += [f"auto: {name}: {reason}" for name, reason in reasons.items()]
    lines.append(f"ranks: {world_size}; ZeRO stage {zero_stage}")
    for name, data_set in data.summary()["sets"].items():
        lines.append(f"data: {name}: {data_set['rows']} rows from {data_set['source']}")
        lines += [f"data: {name}: note: {note}" for note in data_set["notes"]]
    lines += [f"data: note: {note}" for note in data.notes]
    trained: list[str] = list(recipe.training_stages)
    model = build_on_meta(tokens.source)
    lines += _refine(tokens, sum(_counts(model))) if "refine" in trained else []
    lines += _align(tokens, model) if "align" in trained else []
    if has_control(recipe):
        lines.append("control: the same steps again, from the base model")
    if "evaluate" in recipe.stages:
        num_prompts = sum(len(benchmark.prompts.rows) for benchmark in data.benchmarks)
        lines.append(f"evaluate: {num_prompts} prompts for each of {', '.join(recipe.evaluate.models)}")
        lines += describe_engine(recipe.evaluate.engine, torch.cuda.device_count(), model_config(tokens.source))
    lines += describe_space(tokens, trained + (["control"] if has_control(recipe) else []))
    return "\n".join(lines + tokens.notes(trained))


def _refine(tokens: RunTokens, num_parameters: int) -> list[str]:
    """Stage 1; `num_parameters` are those of the whole model."""
    recipe, stage, prompts = tokens.recipe, tokens.recipe.refine, tokens.prompts
    with torch.device("meta"):
        config = trunk_config(tokens.source, int(stage.layer))
        trunk = freeze_tail(AutoModel.from_config(config, trust_remote_code=False))
    not_loaded = num_parameters - sum(_counts(trunk))
    step_tokens = stage.global_batch * _mean(prompts.tokens.values())
    step_tokens += stage.retain_batch * _mean(prompts.general) if stage.retain_weight else 0
    return [
        _parameters("refine", trunk, recipe, not_loaded),
        *prompts.notes,
        f"refine: up to {stage.max_steps} steps of {stage.global_batch} prompts, "
        f"{step_tokens:,.0f} tokens per step; {len(prompts.held_out)} prompts held out",
        *_checkpoint_note("refine", stage.max_steps, recipe),
    ]


def _align(tokens: RunTokens, model: PreTrainedModel) -> list[str]:
    """Stage 2, which trains the whole model."""
    recipe, samples, steps = tokens.recipe, tokens.samples, tokens.align_steps()
    mean = sum(map(samples.num_tokens, range(len(samples.samples)))) / len(samples.samples)
    return [
        _parameters("align", model, recipe),
        *samples.notes,
        f"align: {steps} steps, about {steps * recipe.align.global_batch * mean:,.0f} tokens",
        *_checkpoint_note("align", steps, recipe),
    ]


def _parameters(name: TrainingStage, model: PreTrainedModel, recipe: Recipe, not_loaded: int = 0) -> str:
    """Parameters of a stage's model, which gets its adapter."""
    stage = getattr(recipe, name)
    if recipe.model.freeze_router:
        freeze_routers(model)
    trainable, frozen = _counts(add_lora(model, stage.lora, f"{name}.lora") if stage.adapter == "lora" else model)
    return f"{name}: parameters: {trainable:,} trainable, {frozen:,} frozen, {not_loaded:,} not loaded"


def _checkpoint_note(stage: str, num_steps: int, recipe: Recipe) -> list[str]:
    every_steps = recipe.checkpoint.every_steps
    if every_steps < num_steps:
        return []
    return [
        f"{stage}: no checkpoint before its end (checkpoint.every_steps: {every_steps}); if killed, it starts again"
    ]


def _counts(model) -> tuple[int, int]:
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return trainable, sum(parameter.numel() for parameter in model.parameters()) - trainable


def _mean(rows) -> float:
    lengths = [len(row) for row in rows]
    return sum(lengths) / len(lengths)
