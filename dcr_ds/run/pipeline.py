"""A run from recipe to report: everything cheap is checked first, then stage after stage."""

from pathlib import Path

from dcr_ds.data.load import RunData, load_data
from dcr_ds.engine import distributed as process
from dcr_ds.engine.config import read_config
from dcr_ds.errors import RefinementFailed, UserError
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.models.locate import prepare_source
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.layout import ALIGNED, BASE, CONTROL, REFINED, RunFolder
from dcr_ds.run.environment import describe_environment
from dcr_ds.run.folder import clear_stages, has_control, open_run, run_alone, save_run


def run(recipe: Recipe, redo: str | None = None, dry_run: bool = False) -> None:
    """Run the stages of a recipe that are not done yet, and report. All ranks.

    Recipe, data, DeepSpeed configuration, model files and run folder are checked before torch is imported.
    """
    read_config(recipe)
    data = load_data(recipe)
    source = prepare_source(recipe.model)
    _check_layer(recipe, source)
    if not dry_run:
        recipe = open_run(recipe, redo)

    from dcr_ds.engine.machine import Machine
    from dcr_ds.engine.resolve import check_device, resolve
    from dcr_ds.engine.watch.stop import raise_on_stop_signal
    from dcr_ds.engine.watch.watchdog import Watchdog

    with Watchdog(recipe.watchdog.hang_minutes) as watchdog, raise_on_stop_signal(), process.joined() as ranks:
        watchdog.join(ranks)
        config = model_config(source)
        recipe, reasons = resolve(recipe, config, Machine.detect(ranks))
        check_device(recipe, config["model_type"], ranks.device)
        if dry_run:
            from dcr_ds.run.dry_run import describe_run

            process.print_on_main(ranks, describe_run(recipe, reasons, source, data, ranks.world_size))
            return
        with run_alone(recipe, ranks):
            if ranks.is_main:
                clear_stages(recipe, redo)
            _describe(recipe, reasons, data, ranks)
            _run_stages(recipe, source, data, ranks)
            process.barrier(ranks)


def _run_stages(recipe: Recipe, source: Path, data: RunData, ranks) -> None:
    folder = RunFolder(recipe.folder)
    refined, aligned = folder.stage("refine").model, folder.stage("align").model
    if "refine" in recipe.stages and not _done(recipe, "refine", ranks):
        from dcr_ds.refine.loop import refine

        refine(recipe, source, data, folder.stage("refine"), ranks)
    if "refine" in recipe.stages or "align" in recipe.stages:
        from dcr_ds.refine.outcome import check_outcome

        try:
            check_outcome(recipe, folder.stage("refine"), ranks)
        except RefinementFailed:
            _write_report(folder, ranks)
            raise
    if "align" in recipe.stages and not _done(recipe, "align", ranks):
        from dcr_ds.align.loop import align

        align(recipe, refined if refined.is_dir() else source, data, folder.stage("align"), ranks)
    if has_control(recipe) and not _done(recipe, "control", ranks):
        from dcr_ds.align.loop import align

        process.print_on_main(ranks, "control: the same alignment from the base model, without refine")
        align(recipe, source, data, folder.stage("control"), ranks)
    if "evaluate" in recipe.stages:
        from dcr_ds.evaluate.run import evaluate_models
        from dcr_ds.models.load import DTYPES

        control = folder.stage("control").model
        models: dict[str, Path] = {BASE: source, CONTROL: control, REFINED: refined, ALIGNED: aligned}
        there = {name: path for name, path in models.items() if path.is_dir()}
        dtype = DTYPES[recipe.model.dtype]
        evaluate_models(recipe, folder.folder, there, data, ranks, dtype, recipe.model.attention)
    _write_report(folder, ranks)


def _write_report(folder: RunFolder, ranks) -> None:
    if ranks.is_main:
        from dcr_ds.report import terminal_table, write_report

        write_report([folder.folder], folder.report)
        print(f"\n{terminal_table([folder.folder])}\n\nReport: {folder.report}", flush=True)


def _done(recipe: Recipe, stage: str, ranks) -> bool:
    """Whether a stage is done already; said, since a run then does less than its recipe names."""
    folder = RunFolder(recipe.folder).stage(stage)
    done = process.broadcast_from_main(folder.is_done, ranks)
    if done:
        redo = "align" if stage == "control" else stage
        process.print_on_main(ranks, f"{stage}: done already in {folder.folder} (--redo {redo} does it again)")
    return done


def _describe(recipe: Recipe, reasons: dict[str, str], data: RunData, ranks) -> None:
    """Print what was resolved and noted, and write recipe.yaml and environment.json."""
    import torch

    for name, reason in reasons.items():
        section, _, field = name.partition(".")
        process.print_on_main(ranks, f"{name}: {getattr(getattr(recipe, section), field)} ({reason})")
    summary = data.summary()
    notes = summary["notes"] + [f"{name}: {note}" for name, one in summary["sets"].items() for note in one["notes"]]
    for note in notes:
        process.print_on_main(ranks, note)
    if ranks.is_main:
        on_gpu = ranks.device.type == "cuda"
        device = (
            torch.cuda.get_device_name(ranks.device) if on_gpu else f"CPU, {torch.get_num_threads()} threads a rank"
        )
        overlaps = [
            f"{one.kind}: {one.training_set} {one.training_id} and {one.evaluation_set} {one.evaluation_id}"
            for one in data.overlaps
        ]
        described = {"data": summary["sets"], "notes": notes, "overlaps": overlaps}
        save_run(recipe, describe_environment(device, ranks.world_size) | described)


def _check_layer(recipe: Recipe, source: Path) -> None:
    blocks, layer = model_config(source)["num_hidden_layers"], recipe.refine.layer
    if "refine" in recipe.stages and layer != "auto" and layer >= blocks:
        raise UserError(f"refine.layer: {layer} is out of range; the model has {blocks} blocks, so 1 to {blocks - 1}")
