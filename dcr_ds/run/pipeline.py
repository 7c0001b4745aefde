"""A run from recipe to report: everything cheap is checked first, then the stages run one after the other."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcr_ds.data.load import Earlier, RunData, load_data
from dcr_ds.engine.agreement import check_same
from dcr_ds.engine.config import read_config
from dcr_ds.engine.distributed import Ranks, decide_on_main, print_on_main, wait_until_visible
from dcr_ds.engine.launcher import is_main_process
from dcr_ds.engine.trackers import attach_report, check_trackers
from dcr_ds.errors import RefinementFailed, UserError
from dcr_ds.evaluate.origins import made_from
from dcr_ds.evaluate.serving.command import check_engine
from dcr_ds.models.checkpoint_files import check_layer, model_config
from dcr_ds.models.locate import describe_source, prepare_source
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.layout import BASE, STAGE_OF_MODEL, RunFolder, section_of
from dcr_ds.recipe.unused import unused_fields
from dcr_ds.run.attempt import record_progress
from dcr_ds.run.environment import describe_data, describe_environment
from dcr_ds.run.folder import (
    begin_redo,
    check_folder,
    check_separate,
    end_redo,
    has_control,
    prepare_folder,
    save_run,
    stages_to_redo,
)
from dcr_ds.run.identity import record_identity
from dcr_ds.run.opening import open_run
from dcr_ds.run.resuming import check_refined, check_resumed, check_stage, check_stage_model, end_stage, pending_stages
from dcr_ds.run.same_inputs import check_same_inputs

if TYPE_CHECKING:
    from dcr_ds.run.tokens import RunTokens


def run(recipe: Recipe, redo: str | None = None, dry_run: bool = False) -> None:
    """Run the stages of a recipe that are not done yet, and report. All ranks.

    Recipe, data, DeepSpeed configuration, model files and run folder are checked before torch is imported; then the
    model's tensors and adapters.
    """
    source, data = _read_inputs(recipe)
    check = check_folder if dry_run else prepare_folder
    check(recipe, redo)
    if recipe.control == "stl" and "align" in recipe.stages and not has_control(recipe):
        _note(["WARNING: control: stl has no effect without refine: what is aligned is the base model already"])
    _check_source(recipe, source)
    carry_out = _describe_only if dry_run else _train
    carry_out(recipe, redo, source, data)


def _read_inputs(recipe: Recipe) -> tuple[Path, RunData]:
    """Check what a recipe names, and return its source model and its data."""
    _note(unused_fields(recipe))
    read_config(recipe)
    check_trackers(recipe)
    data = load_data(recipe, made_from(recipe.model.source), *_trained_before(recipe))
    if "evaluate" in recipe.stages:
        check_engine(recipe.evaluate.engine)
    source = prepare_source(recipe.model)
    if "refine" in recipe.stages:
        check_layer(source, 1 if recipe.refine.layer == "auto" else recipe.refine.layer)
    check_separate(recipe, source)
    return source, data


def _trained_before(recipe: Recipe) -> list[Earlier]:
    """What models of this run that are evaluated were trained on in stages that do not run now."""
    run = RunFolder(recipe.folder)
    folders = [run.stage(stage) for stage in STAGE_OF_MODEL.values() if section_of(stage) not in recipe.stages]
    return [made_from(str(folder.model)) for folder in folders if "evaluate" in recipe.stages and folder.is_done]


def _train(requested: Recipe, redo: str | None, source: Path, data: RunData) -> None:
    """Run the stages and report. All ranks."""
    with open_run([requested.folder], requested.watchdog.hang_minutes) as ranks:
        check_same_inputs(requested, source, data, ranks)
        # again, under the lock: another run may have ended just now
        recipe = decide_on_main(lambda: prepare_folder(requested, redo), ranks)
        decide_on_main(lambda: record_progress(RunFolder(requested.folder)), ranks)
        recipe, probed = _probe_layer(recipe, source, data, ranks)
        recipe, reasons = _resolve(recipe, source, ranks)
        if probed:
            reasons["refine.layer"] = ": ".join(filter(None, [reasons.get("refine.layer"), probed]))
        if message := decide_on_main(lambda: begin_redo(requested, redo), ranks):
            print_on_main(ranks, message)
        tokens = _encode(recipe, source, data, ranks)
        for note in decide_on_main(lambda: check_resumed(tokens, (), ranks.world_size), ranks):
            print_on_main(ranks, note)
        _describe(recipe, source, reasons, data, ranks)
        _run_stages(tokens, ranks)
        if ranks.is_main:
            _report(recipe)
            end_redo(recipe)


def _describe_only(requested: Recipe, redo: str | None, source: Path, data: RunData) -> None:
    """Check and print what --dry-run can; write nothing. All ranks."""
    from dcr_ds.run.dry_run import describe_run
    from dcr_ds.run.tokens import RunTokens

    with open_run([], requested.watchdog.hang_minutes) as ranks:
        check_same_inputs(requested, source, data, ranks)
        recipe = decide_on_main(lambda: check_folder(requested, redo), ranks)
        redone = decide_on_main(lambda: stages_to_redo(requested, redo), ranks)
        recipe, reasons = _resolve(recipe, source, ranks)
        tokens = RunTokens(recipe, source, data)
        check_same(lambda: tokens.describe(recipe.training_stages), ranks)
        notes = decide_on_main(lambda: check_resumed(tokens, redone, ranks.world_size), ranks)
        print_on_main(ranks, "\n".join([*notes, describe_run(tokens, reasons, ranks.world_size)]))


def _encode(recipe: Recipe, source: Path, data: RunData, ranks: Ranks) -> "RunTokens":
    """Encode the data of all stages that are not done, and check that all ranks have the same. All ranks."""
    from dcr_ds.models.chat import forget_encoded
    from dcr_ds.run.tokens import RunTokens

    tokens = RunTokens(recipe, source, data)
    pending = decide_on_main(lambda: pending_stages(recipe), ranks)
    check_same(lambda: tokens.describe(pending), ranks)
    for note in tokens.notes(pending):
        print_on_main(ranks, note)
    forget_encoded(tokens.tokenizer)
    return tokens


def _run_stages(tokens: "RunTokens", ranks: Ranks) -> None:
    recipe, source = tokens.recipe, tokens.source
    run = RunFolder(recipe.folder)
    if "refine" in recipe.stages:
        if _is_to_train(tokens, "refine", source, ranks):
            from dcr_ds.refine.loop import refine

            refine(recipe, source, tokens.prompts, run.stage("refine"), ranks)
        tokens.drop_prompts()
        _check_refinement(recipe, ranks)
    if "align" in recipe.stages:
        start = _model_to_align(recipe, source, ranks)
        _check_refinement(recipe, ranks)
        if _is_to_train(tokens, "align", start, ranks):
            from dcr_ds.align.loop import align

            align(recipe, start, tokens.samples, tokens.probe, run.stage("align"), ranks)
    if decide_on_main(lambda: has_control(recipe), ranks) and _is_to_train(tokens, "control", source, ranks):
        from dcr_ds.align.loop import align

        print_on_main(ranks, "control: the same alignment from the base model, without refine")
        align(recipe, source, tokens.samples, tokens.probe, run.stage("control"), ranks)
    if "evaluate" in recipe.stages:
        _evaluate(recipe, source, tokens.data, ranks)


def _check_refinement(recipe: Recipe, ranks: Ranks) -> None:
    """Report and raise RefinementFailed if stage 1 is done and failed. All ranks."""
    from dcr_ds.refine.outcome import check_outcome

    try:
        check_outcome(recipe, RunFolder(recipe.folder).stage("refine"), ranks)
    except RefinementFailed:
        if ranks.is_main:
            _report(recipe)
        raise


def _is_to_train(tokens: "RunTokens", stage: str, start: Path, ranks: Ranks) -> bool:
    """Return whether a stage still has to be trained from `start`, after checking what is there of it. All ranks."""
    folder = RunFolder(tokens.recipe.folder).stage(stage)

    def is_done() -> bool:
        record, _ = check_stage(tokens, stage, start, ranks.world_size)
        record_identity(folder, record)
        return end_stage(folder, stage, tokens.source)

    if not decide_on_main(is_done, ranks):
        return True
    print_on_main(ranks, f"{stage}: already done in {folder.folder} (--redo {section_of(stage)} does it again)")
    return False


def _model_to_align(recipe: Recipe, source: Path, ranks: Ranks) -> Path:
    """Return the refined model if this run has a stage 1, else the source. All ranks.

    Raises:
        UserError: stage 1 has begun and is not done, or its model is incomplete.
    """
    folder = RunFolder(recipe.folder).stage("refine")

    def is_refined() -> bool:
        if not folder.has_results:
            return False
        if not end_stage(folder, "refine", source):
            check_refined(folder)
        return True

    if not decide_on_main(is_refined, ranks):
        return source  # of this node: its cache need not be shared
    wait_until_visible(_files(folder.model), ranks)
    return folder.model


def _evaluate(recipe: Recipe, source: Path, data: RunData, ranks: Ranks) -> None:
    from dcr_ds.evaluate.run import evaluate_models

    run = RunFolder(recipe.folder)
    trained = {name: run.stage(stage) for name, stage in STAGE_OF_MODEL.items()}

    def existing() -> list[str]:
        for name, folder in trained.items():
            if folder.is_done and name in recipe.evaluate.models:
                check_stage_model(folder, STAGE_OF_MODEL[name], source)
        return [name for name, folder in trained.items() if folder.model.is_dir()]

    names = decide_on_main(existing, ranks)
    models = {BASE: source} | {name: trained[name].model for name in names}
    if not models.keys() & set(recipe.evaluate.models):
        raise UserError(
            f"evaluate.models: {', '.join(recipe.evaluate.models)}: this run has only {', '.join(models)}; "
            "name one of them (what `dcr-ds evaluate` wrote is repeated by that command)"
        )
    for name in names:
        wait_until_visible(_files(models[name]), ranks)
    evaluate_models(recipe, models, data, ranks)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _report(recipe: Recipe) -> None:
    from dcr_ds.report import write_report

    out = RunFolder(recipe.folder).report
    table = write_report([recipe.folder], out)
    attach_report(recipe)
    print(f"\n{table}\n\nReport: {out}", flush=True)


def _resolve(recipe: Recipe, source: Path, ranks: Ranks) -> tuple[Recipe, dict[str, str]]:
    """Return the recipe as rank 0 resolves it, and the reasons. All ranks; each checks its own device."""
    from dcr_ds.engine.build import check_config
    from dcr_ds.engine.machine import Machine
    from dcr_ds.engine.resolve import check_device, resolve

    config = model_config(source)
    resolved, reasons = decide_on_main(lambda: resolve(recipe, config, Machine.detect(ranks)), ranks)
    check_device(resolved, config, ranks.device)
    check_config(resolved, ranks)
    return resolved, reasons


def _probe_layer(recipe: Recipe, source: Path, data: RunData, ranks: Ranks) -> tuple[Recipe, str | None]:
    """Choose `refine.layer: auto` by the layer probe, and say why. It stays `auto` if the probe cannot be run."""
    if "refine" not in recipe.stages or recipe.refine.layer != "auto":
        return recipe, None
    from dcr_ds.run.layer import probe_layer

    layer, reason = decide_on_main(lambda: probe_layer(recipe, source, data, ranks), ranks)
    if layer is None:
        return recipe, reason
    refine = recipe.refine.model_copy(update={"layer": layer})
    return recipe.model_copy(update={"refine": refine}), reason


def _describe(recipe: Recipe, source: Path, reasons: dict[str, str], data: RunData, ranks: Ranks) -> None:
    """Print what was resolved and noted, and write recipe.yaml and environment.json. All ranks."""
    from dcr_ds.engine.machine import device_name

    for name, reason in reasons.items():
        section, _, field = name.partition(".")
        value = f"{getattr(getattr(recipe, section), field)} ({reason})" if field else reason
        print_on_main(ranks, f"{name}: {value}")
    described = decide_on_main(lambda: describe_data(data), ranks)  # the confound check takes a second
    described["model"] = describe_source(recipe.model, source)
    for note in described["notes"]:
        print_on_main(ranks, note)
    for warning in described["warnings"]:
        print_on_main(ranks, f"WARNING: {warning}")
    device = device_name(ranks.device)
    decide_on_main(lambda: save_run(recipe, describe_environment(device, ranks.world_size) | described), ranks)


def _note(notes: Sequence[str]) -> None:
    """Print notes on rank 0, before it has joined the others."""
    for note in notes:
        if is_main_process():
            print(note, file=sys.stderr, flush=True)


def _check_source(recipe: Recipe, source: Path) -> None:
    """Check the tensors of the source checkpoint, and that packing and the adapters of the stages fit it.

    Raises:
        UserError: see `check_model`, `check_can_be_packed` and `add_lora`.
    """
    from dcr_ds.models.adapters import add_lora
    from dcr_ds.models.check import build_on_meta, check_model
    from dcr_ds.models.rehearsal import check_can_be_packed

    _note(check_model(source))
    for name in recipe.training_stages:
        stage = getattr(recipe, name)
        if stage.packing:
            check_can_be_packed(source, f"{name}.packing")
        if stage.adapter == "lora":
            add_lora(build_on_meta(source), stage.lora, f"{name}.lora")
