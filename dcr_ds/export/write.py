"""Export the model or adapter of a run, a checkpoint or an adapter folder, checked before it gets its final name."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModel, PreTrainedModel

from dcr_ds.engine.checkpoint.checkpoints import newest_complete
from dcr_ds.engine.checkpoint.consolidate import CheckpointWeights
from dcr_ds.engine.checkpoint.manifest import verify
from dcr_ds.errors import UserError
from dcr_ds.evaluate.targets import checked_source
from dcr_ds.export.publish import name_base
from dcr_ds.files import flush, read_json, write_json
from dcr_ds.models.adapters import add_lora, save_lora
from dcr_ds.models.check import build_on_meta, check_model
from dcr_ds.models.checkpoint_files import EXPORT_RECORD, base_of_adapter, copied_files, tokenizer_folder
from dcr_ds.models.experts import freeze_routers
from dcr_ds.models.hashes import weights_hash
from dcr_ds.models.locate import base_fields
from dcr_ds.models.merge import check_adapter, merge_lora
from dcr_ds.models.splice import read_all, splice
from dcr_ds.models.tokenizer import load_tokenizer
from dcr_ds.models.tokenizer_files import keep_tokenizer
from dcr_ds.models.trunk import freeze_tail, trunk_config
from dcr_ds.new_folder import complete_folder, is_taken
from dcr_ds.recipe import ModelSection, Recipe, load_recipe
from dcr_ds.recipe.layout import RunFolder, enclosing_run
from dcr_ds.recipe.urls import HUB_ID, refuse_store

STAGES = ("align", "refine", "control")  # the default is the first one that was trained
SECTIONS = {"refine": "refine", "align": "align", "control": "align"}  # of the recipe, for each stage
# prefixes of the model's parameter names in the engine of a stage, and in the source checkpoint
ENGINE_PREFIX = {"refine": "", "align": "model."}
SOURCE_PREFIX = {"refine": "model.", "align": ""}
REPORTED_BYTES = 1_000_000_000  # of a file whose copy is reported


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        merge: write a whole model where an adapter was trained.
        stage: of a run; None: the last one that was trained.
        base: folder or hub id of the base model; None: as recorded.
    """

    merge: bool = False
    stage: str | None = None
    base: str | None = None


def export(trained: Path, out: Path, options: ExportOptions) -> str:
    """Write the model or adapter of a run, a checkpoint or an adapter folder to `out`; returns a short description.

    Raises:
        UserError: there is nothing to export, it is damaged or does not fit its base, or `out` exists.
    """
    write = _export_adapter if _is_adapter(trained) else _export_trained
    with new_folder(out) as partial:
        description = write(trained, partial, options)
        write_json(partial / EXPORT_RECORD, {"source": str(_origin(trained, options.stage))})
        check_export(partial)
    return description


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """The temporary name of a folder, which the body writes; it gets the name `out` if nothing fails.

    Raises:
        UserError: `out` exists, or is on an object store.
    """
    refuse_store(str(out), "--out")
    if is_taken(out):
        raise UserError(f"--out {out}: exists, and nothing is overwritten; name a new folder")
    with complete_folder(out) as partial:
        yield partial


def check_export(folder: Path) -> None:
    """Read what was written: an adapter's tensors and config, or a model's headers, config and tokenizer.

    Raises:
        UserError: the model is incomplete, or the adapter cannot be read or is not finite.
    """
    if _is_adapter(folder):
        check_adapter(folder)
        return
    check_model(folder)
    load_tokenizer(folder)


def run_and_stage(path: Path, stage: str | None) -> tuple[Path, str, tuple[str, ...]]:
    """The run folder that contains `path`, the stage, and the parts of the path below the folder of the stage.

    Raises:
        UserError: it is not in a run, or the run has no results of the stage.
    """
    enclosing = enclosing_run(path)
    if enclosing is None:
        raise UserError(
            f"{path}: not a run folder, a checkpoint in one (…/STAGE/checkpoints/step-N) or an adapter in peft's format"
        )
    run = enclosing.folder
    inside, *below = path.absolute().relative_to(run.absolute()).parts or (None,)
    if inside and stage and inside != stage:
        raise UserError(f"--stage {stage}: {path} belongs to {inside}; leave --stage out")
    trained = [name for name in STAGES if enclosing.stage(name).has_results]
    chosen = inside or stage or next(iter(trained), None)
    if chosen not in trained:
        raise UserError(
            f"{run}: no results of {chosen or 'refine or align'}; train it first, or choose another stage with --stage"
        )
    return run, chosen, tuple(below)


def _origin(trained: Path, stage: str | None) -> Path:
    """The adapter, or the folder of the stage in its run."""
    if _is_adapter(trained):
        return trained.resolve()
    run, stage, _ = run_and_stage(trained, stage)
    return RunFolder(run.resolve()).stage(stage).folder


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _export_adapter(adapter: Path, out: Path, options: ExportOptions) -> str:
    if options.stage is not None:
        run_and_stage(adapter, options.stage)  # that of its run, or an error
    base = base_of_adapter(adapter)
    if not options.merge:
        _copy(adapter, out)
        _rename_base(out, options.base)
        return f"the adapter {adapter}"
    fields = {"source": options.base} if options.base else base_fields(adapter, str(base))
    source = checked_source(ModelSection.model_validate(fields))
    merge_lora(source, adapter, out)
    if tokenizer_folder(source, adapter) == adapter:
        keep_tokenizer(adapter, None, out)
    return f"{source} with {adapter} merged into it"


def _export_trained(path: Path, out: Path, options: ExportOptions) -> str:
    run, stage, below = run_and_stage(path, options.stage)
    folder = RunFolder(run).stage(stage)
    if folder.is_done and not below:
        exported = folder.adapter if _is_adapter(folder.adapter) and not options.merge else folder.model
        _refuse_base(exported, options.base)
        check_export(exported)  # names what is incomplete in the run, not in the copy
        _copy(exported, out)
        _rename_base(out, options.base)
        return f"the {exported.name} of {folder.folder}, a finished stage"
    if below == (folder.model.name,):
        _refuse_base(folder.model, options.base)
        check_export(folder.model)
        _copy(folder.model, out)
        return f"the model of {folder.folder}"
    name = below[1] if len(below) == 2 else newest_complete(folder.checkpoints)[0]
    checkpoint = folder.checkpoints / name
    if not name or below[:1] not in ((), (folder.checkpoints.name,)):
        raise UserError(
            f"{path}: no complete checkpoint in {folder.checkpoints}; continue the run, or name another checkpoint"
        )
    return _export_checkpoint(run, stage, checkpoint, out, options)


def _export_checkpoint(run: Path, stage: str, checkpoint: Path, out: Path, options: ExportOptions) -> str:
    manifest, problem = verify(checkpoint)
    if manifest is None:
        raise UserError(f"{checkpoint}: incomplete ({problem}); name another checkpoint, or the run")
    recipe_file, section = RunFolder(run).recipe, SECTIONS[stage]
    recipe = load_recipe(str(recipe_file))
    source = _source_of(run, stage, recipe, options.base)
    _check_source(run, stage, source)
    model = _outline(recipe, section, source)
    shapes = {name: weight.shape for name, weight in model.named_parameters() if weight.requires_grad}
    weights = CheckpointWeights(checkpoint, shapes, ENGINE_PREFIX[section])
    if wrong := [name for name, shape in shapes.items() if weights.shapes.get(name) != shape]:
        raise UserError(f"{checkpoint}: has no {wrong[0]} of the shape required by {recipe_file} and {source}")
    prefix = SOURCE_PREFIX[section]
    if getattr(recipe, section).adapter == "none":
        splice(model, weights, source, out, prefix)
    elif not options.merge:
        save_lora(model, read_all(weights, True), source, out, prefix)
    else:
        adapter = out.with_name(f"{out.name}.adapter")
        try:
            save_lora(model, read_all(weights, True), source, adapter, prefix)
            merge_lora(source, adapter, out)
        finally:
            shutil.rmtree(adapter, ignore_errors=True)
    keep_tokenizer(source, recipe.model.template, out)
    return f"{stage} at step {manifest.step}, from {checkpoint}"


def _source_of(run: Path, stage: str, recipe: Recipe, base: str | None) -> Path:
    """The checkpoint that a stage started from."""
    refined = RunFolder(run).stage("refine").model
    if base is None and stage == "align" and refined.is_dir():
        return refined
    return checked_source(ModelSection(source=base) if base else recipe.model)


def _check_source(run: Path, stage: str, source: Path) -> None:
    """Raise UserError if the source has other weights than those that the stage began with, as far as recorded."""
    identity = read_json(RunFolder(run).stage(stage).identity)
    weights = identity.get("weights") if isinstance(identity, dict) else None
    expected = weights.get("sha256") if isinstance(weights, dict) else None
    if expected and weights_hash(source, str(expected)) != expected:
        raise UserError(
            f"{source}: has other weights than those that {stage} of {run} began with; name the right ones with --base"
        )


def _outline(recipe: Recipe, section: str, source: Path) -> PreTrainedModel:
    """The model that a stage trains, on the meta device: names and shapes only."""
    stage = getattr(recipe, section)
    with torch.device("meta"):
        if section == "refine":
            model = freeze_tail(
                AutoModel.from_config(trunk_config(source, int(recipe.refine.layer)), trust_remote_code=False)
            )
        else:
            model = build_on_meta(source)
        if recipe.model.freeze_router:
            freeze_routers(model)
        return model if stage.adapter == "none" else add_lora(model, stage.lora, f"{section}.lora")


def _refuse_base(trained: Path, base: str | None) -> None:
    """Raise UserError if another base is named for a model that is whole already."""
    if base is not None and not _is_adapter(trained):
        raise UserError(
            f"--base {base}: {trained} is a whole model, which needs no base; leave --base out, or merge the adapter "
            "itself: dcr-ds export RUN/STAGE/adapter --merge --base MODEL"
        )


def _rename_base(copy: Path, base: str | None) -> None:
    """Name another base model in the copy of an adapter."""
    if base is None:
        return
    is_folder = Path(base).is_dir()
    if not is_folder and not HUB_ID.fullmatch(base):
        raise UserError(f"--base {base}: no such folder, and no hub id (owner/name)")
    name_base(copy, str(Path(base).resolve()) if is_folder else base)


def _copy(folder: Path, out: Path) -> None:
    """Copy the files of a folder, and flush them to disk."""
    out.mkdir()
    files = copied_files(folder, ("**/*",))
    for number, file in enumerate(files, 1):
        copy = out / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        flush(copy)
        if (copied := copy.stat().st_size) != (size := file.stat().st_size):
            raise RuntimeError(f"{copy}: {copied} bytes, {file} has {size}")
        if size > REPORTED_BYTES:
            print(f"{file}: {size / 1e9:.3g} GB copied ({number} of {len(files)})", file=sys.stderr, flush=True)
