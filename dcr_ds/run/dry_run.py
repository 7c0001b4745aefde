"""--dry-run: describe a run from headers, configurations and tokens; no weights are loaded."""

import torch
from transformers import AutoModel

from dcr_ds.engine.config import read_config
from dcr_ds.evaluate.serving.command import describe_engine
from dcr_ds.models.adapters import add_lora
from dcr_ds.models.check import build_on_meta
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.models.experts import freeze_routers
from dcr_ds.models.trunk import freeze_tail, trunk_config
from dcr_ds.recipe import TRAINING_STAGES, Recipe, dump_recipe
from dcr_ds.run.folder import has_control
from dcr_ds.run.space import describe_space
from dcr_ds.run.tokens import RunTokens


def describe_run(tokens: RunTokens, reasons: dict[str, str], world_size: int) -> str:
    """Return the resolved recipe with its reasons, and parameters, steps and tokens of each stage, as text."""
    recipe, source, data = tokens.recipe, tokens.source, tokens.data
    lines = [dump_recipe(recipe)]
    lines += [f"auto: {name}: {reason}" for name, reason in reasons.items()]
    zero_stage = read_config(recipe).get("zero_optimization", {}).get("stage", 0)
    lines.append(f"ranks: {world_size}; ZeRO stage {zero_stage}")
    for name, data_set in data.summary()["sets"].items():
        lines.append(f"data: {name}: {data_set['rows']} rows from {data_set['source']}")
        lines += [f"data: {name}: note: {note}" for note in data_set["notes"]]
    lines += [f"data: note: {note}" for note in data.notes]
    full_model = build_on_meta(source)
    total = sum(parameter.numel() for parameter in full_model.parameters())
    if "refine" in recipe.stages:
        trunk = _on_meta(
            lambda: freeze_tail(
                AutoModel.from_config(trunk_config(source, int(recipe.refine.layer)), trust_remote_code=False)
            )
        )
        not_loaded = total - sum(_counts(trunk))
        if recipe.model.freeze_router:
            freeze_routers(trunk)
        if recipe.refine.adapter == "lora":
            trunk = add_lora(trunk, recipe.refine.lora, "refine.lora")
        lines.append(_parameters("refine", *_counts(trunk), not_loaded))
        prompts = tokens.prompts
        stage = recipe.refine
        step_tokens = stage.global_batch * _mean(prompts.tokens.values())
        step_tokens += stage.retain_batch * _mean(prompts.general) if stage.retain_weight else 0
        lines += prompts.notes
        lines.append(
            f"refine: up to {stage.max_steps} steps of {stage.global_batch} prompts, "
            f"{step_tokens:,.0f} tokens per step; {len(prompts.held_out)} prompts held out"
        )
        lines += _checkpoint_note("refine", stage.max_steps, recipe)
    if "align" in recipe.stages:
        if recipe.model.freeze_router:
            freeze_routers(full_model)
        model = add_lora(full_model, recipe.align.lora, "align.lora") if recipe.align.adapter == "lora" else full_model
        lines.append(_parameters("align", *_counts(model), 0))
        samples = tokens.samples
        lengths = [samples.num_tokens(row) for row in range(len(samples.samples))]
        steps = tokens.align_steps()
        step_tokens = recipe.align.global_batch * sum(lengths) / len(lengths)
        lines += [*samples.notes, f"align: {steps} steps, about {steps * step_tokens:,.0f} tokens"]
        lines += _checkpoint_note("align", steps, recipe)
        if has_control(recipe):
            lines.append("control: the same steps again, from the base model")
    if "evaluate" in recipe.stages:
        num_prompts = sum(len(benchmark.prompts.rows) for benchmark in data.benchmarks)
        lines.append(f"evaluate: {num_prompts} prompts for each of {', '.join(recipe.evaluate.models)}")
        lines += describe_engine(recipe.evaluate.engine, torch.cuda.device_count(), model_config(source))
    trained = [stage for stage in TRAINING_STAGES if stage in recipe.stages]
    lines += describe_space(tokens, trained + (["control"] if has_control(recipe) else []))
    lines += tokens.notes(trained)
    return "\n".join(lines)


def _checkpoint_note(stage: str, num_steps: int, recipe: Recipe) -> list[str]:
    every_steps = recipe.checkpoint.every_steps
    if every_steps < num_steps:
        return []
    return [
        f"{stage}: no checkpoint before its end (checkpoint.every_steps: {every_steps}); if killed, it starts again"
    ]


def _on_meta(build):
    with torch.device("meta"):
        return build()


def _counts(model) -> tuple[int, int]:
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return trainable, sum(parameter.numel() for parameter in model.parameters()) - trainable


def _parameters(stage: str, trainable: int, frozen: int, not_loaded: int) -> str:
    return f"{stage}: parameters: {trainable:,} trainable, {frozen:,} frozen, {not_loaded:,} not loaded"


def _mean(rows) -> float:
    lengths = [len(row) for row in rows]
    return sum(lengths) / len(lengths)
