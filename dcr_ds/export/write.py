"""Find what is to be exported, and write it: aside, opened again, and renamed."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from dcr_ds.engine.checkpoint.checkpoints import newest_whole
from dcr_ds.engine.checkpoint.consolidate import consolidated_weights
from dcr_ds.engine.checkpoint.manifest import verify
from dcr_ds.errors import UserError
from dcr_ds.models.adapters import WEIGHTS, add_lora, merge_lora, save_lora
from dcr_ds.models.chat import load_tokenizer
from dcr_ds.models.checkpoint_files import base_of_adapter, check_checkpoint
from dcr_ds.models.locate import prepare_source
from dcr_ds.models.trunk import freeze_tail, splice, trunk_config
from dcr_ds.recipe import ModelSection, Recipe, load_recipe
from dcr_ds.recipe.layout import TRAINING_STAGES, RunFolder, enclosing_run

# what the engine of a stage, and the source checkpoint, put before the names of the model's parameters
HELD_AS = {"refine": "", "align": "model."}
KEPT_AS = {"refine": "model.", "align": ""}


@dataclass(frozen=True)
class Wanted:
    """What to export of it: the whole model rather than an adapter, of which stage, onto which base."""

    merge: bool = False
    stage: str | None = None
    base: str | None = None


def export(what: Path, out: Path, wanted: Wanted) -> str:
    """Write a run's, a checkpoint's or an adapter's model into `out`, and return what it is in a few words.

    Raises:
        UserError: there is nothing to export, it is damaged, does not fit its base, or `out` is taken.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists; name a new folder, nothing is overwritten")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        told = _export_adapter(what, partial, wanted) if _is_adapter(what) else _export_trained(what, partial, wanted)
        check_export(partial)
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return told


def check_export(folder: Path) -> None:
    """Open what was written: an adapter's tensors and config, or a model's headers, config and tokenizer.

    Raises:
        UserError: the model is not whole.
        RuntimeError: a tensor of the adapter is empty or not finite.
    """
    if not _is_adapter(folder):
        check_checkpoint(folder)
        AutoConfig.from_pretrained(folder)
        load_tokenizer(folder)
        return
    PeftConfig.from_pretrained(str(folder))
    with safe_open(folder / WEIGHTS, "pt") as stream:
        for name in stream.keys():
            tensor = stream.get_tensor(name)
            if not tensor.numel() or not torch.isfinite(tensor).all():
                raise RuntimeError(f"{folder / WEIGHTS}: {name} is empty or not finite")


def run_and_stage(what: Path, stage: str | None) -> tuple[Path, str, tuple[str, ...]]:
    """The run folder that `what` is in, its stage, and the path below the stage's folder.

    Raises:
        UserError: it is in no run, or the run has nothing of the stage.
    """
    enclosing = enclosing_run(what)
    if enclosing is None:
        raise UserError(
            f"{what}: no run folder, no checkpoint of one (…/STAGE/checkpoints/step-N) and no adapter in peft's format"
        )
    run = enclosing.folder
    inside, *below = what.absolute().relative_to(run.absolute()).parts or (None,)
    if inside and stage and inside != stage:
        raise UserError(f"--stage {stage}: {what} is of {inside}; leave --stage out")
    there = [name for name in reversed(TRAINING_STAGES) if enclosing.stage(name).has_results]
    found = inside or stage or next(iter(there), None)
    if found not in there:
        raise UserError(
            f"{run}: nothing trained in {found or 'refine or align'}; run it first, or name another --stage"
        )
    return run, found, tuple(below)


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _export_adapter(adapter: Path, out: Path, wanted: Wanted) -> str:
    base = base_of_adapter(adapter)
    if not wanted.merge:
        _copy(adapter, out)
        return f"the adapter {adapter}"
    source = prepare_source(ModelSection(source=wanted.base or base))
    merge_lora(source, adapter, out)
    return f"{source} with {adapter} merged in"


def _export_trained(what: Path, out: Path, wanted: Wanted) -> str:
    run, stage, below = run_and_stage(what, wanted.stage)
    folder = RunFolder(run).stage(stage)
    if folder.is_done and not below:
        exported = folder.adapter if _is_adapter(folder.adapter) and not wanted.merge else folder.model
        _copy(exported, out)
        return f"the {exported.name} of {folder.folder}, which is done"
    if below == (folder.model.name,):
        _copy(folder.model, out)
        return f"the model of {folder.folder}"
    name = below[1] if len(below) == 2 else newest_whole(folder.checkpoints)[0]
    checkpoint = folder.checkpoints / name
    if not name or below[:1] not in ((), (folder.checkpoints.name,)):
        raise UserError(f"{what}: no whole checkpoint in {folder.checkpoints}; run the stage on, or name another")
    return _export_checkpoint(run, stage, checkpoint, out, wanted)


def _export_checkpoint(run: Path, stage: str, checkpoint: Path, out: Path, wanted: Wanted) -> str:
    manifest, fault = verify(checkpoint)
    if manifest is None:
        raise UserError(f"{checkpoint}: not whole ({fault}); name another checkpoint, or the run")
    recipe_file = RunFolder(run).recipe
    recipe = load_recipe(str(recipe_file))
    source = _source_of(run, stage, recipe, wanted.base)
    model = _outline(recipe, stage, source)
    shapes = {name: weight.shape for name, weight in model.named_parameters() if weight.requires_grad}
    held = consolidated_weights(checkpoint)
    weights = {name: held[HELD_AS[stage] + name] for name in shapes if HELD_AS[stage] + name in held}
    if wrong := [name for name, shape in shapes.items() if name not in weights or weights[name].shape != shape]:
        raise UserError(f"{checkpoint}: has no {wrong[0]} of the shape that {recipe_file} and {source} want")
    if getattr(recipe, stage).adapter == "none":
        splice(model, weights, source, out, KEPT_AS[stage])
    elif not wanted.merge:
        save_lora(model, weights, source, out, KEPT_AS[stage])
    else:
        adapter = out.with_name(f"{out.name}.adapter")
        try:
            save_lora(model, weights, source, adapter, KEPT_AS[stage])
            merge_lora(source, adapter, out)
        finally:
            shutil.rmtree(adapter, ignore_errors=True)
    return f"{stage} at step {manifest.step}, from {checkpoint}"


def _source_of(run: Path, stage: str, recipe: Recipe, base: str | None) -> Path:
    """The checkpoint that a stage started from."""
    refined = RunFolder(run).stage("refine").model
    if base is None and stage == "align" and refined.is_dir():
        return refined
    return prepare_source(ModelSection(source=base) if base else recipe.model)


def _outline(recipe: Recipe, stage: str, source: Path) -> PreTrainedModel:
    """The model that a stage trains, on the meta device: names and shapes alone."""
    with torch.device("meta"):
        if stage == "refine":
            model = freeze_tail(AutoModel.from_config(trunk_config(source, int(recipe.refine.layer))))
        else:
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
        section = getattr(recipe, stage)
        return model if section.adapter == "none" else add_lora(model, section.lora, f"{stage}.lora")


def _copy(folder: Path, out: Path) -> None:
    """Copy a folder, and read both again."""
    shutil.copytree(folder, out)
    for file in folder.rglob("*"):
        if file.is_file() and _sha256(file) != _sha256(out / file.relative_to(folder)):
            raise RuntimeError(f"{out / file.relative_to(folder)}: read back differs from {file}")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
