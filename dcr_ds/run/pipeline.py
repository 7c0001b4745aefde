"""A run from recipe to report: everything cheap is checked first, then the stages run one after the other."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dcr_ds.data.load import RunData, load_data
from dcr_ds.engine.agreement import check_same
from dcr_ds.engine.config import read_config
from dcr_ds.engine.distributed import Ranks, decide_on_main, is_main_process, print_on_main, wait_until_visible
from dcr_ds.engine.trackers import attach_report, check_trackers
from dcr_ds.errors import RefinementFailed, UserError
from dcr_ds.evaluate.origins import made_from
from dcr_ds.evaluate.serving.command import check_engine
from dcr_ds.files import read_json
from dcr_ds.models.checkpoint_files import check_checkpoint, check_layer, model_config
from dcr_ds.models.locate import describe_source, prepare_source
from dcr_ds.recipe import TRAINING_STAGES, Recipe
from dcr_ds.recipe.layout import BASE, STAGE_OF_MODEL, RunFolder, StageFolder
from dcr_ds.run.attempt import record_progress
from dcr_ds.run.environment import describe_data, describe_environment
from dcr_ds.run.folder import begin_redo, check_separate, end_redo, has_control, prepare_folder, redo_of, save_run
from dcr_ds.run.identity import check_identity
from dcr_ds.run.opening import open_run
from dcr_ds.run.same_inputs import check_same_inputs

if TYPE_CHECKING:
    from dcr_ds.run.tokens import RunTokens


def run(recipe: Recipe, redo: str | None = None, dry_run: bool = False) -> None:
    """Run the stages of a recipe that are not done yet, and report. All ranks.

    Recipe, data, DeepSpeed configuration, model files and run folder are checked before torch is imported; then the
    model's tensors and adapters.
    """
    read_config(recipe)
    check_trackers(recipe)
    data = load_data(recipe, made_from(recipe.model.source))
    if "evaluate" in recipe.stages:
        check_engine(recipe.evaluate.engine)
    source = prepare_source(recipe.model)
    if "refine" in recipe.stages:
        check_layer(source, 1 if recipe.refine.layer == "auto" else recipe.refine.layer)
    check_separate(recipe, source)
    if not dry_run:
        prepare_folder(recipe, redo)
    _check_source(recipe, source)
    if dry_run:
        with open_run([], recipe.watchdog.hang_minutes) as ranks:
            check_same_inputs(recipe, source, data, ranks)
            _describe_only(recipe, source, data, ranks)
        return
    with open_run([recipe.folder], recipe.watchdog.hang_minutes) as ranks:
        check_same_inputs(recipe, source, data, ranks)
        requested = recipe
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
        for note in decide_on_main(lambda: _check_resumed(tokens, ranks.world_size), ranks):
            print_on_main(ranks, note)
        _describe(recipe, source, reasons, data, ranks)
        _run_stages(tokens, ranks)
        if ranks.is_main:
            _report(recipe)
            end_redo(recipe)


def _encode(recipe: Recipe, source: Path, data: RunData, ranks: Ranks) -> "RunTokens":
    """Encode the data of all stages that are not done, and check that all ranks have the same. All ranks."""
    from dcr_ds.models.chat import forget_encoded
    from dcr_ds.run.tokens import RunTokens

    tokens = RunTokens(recipe, source, data)
    pending = decide_on_main(lambda: _pending_stages(recipe), ranks)
    check_same(lambda: tokens.describe(pending), ranks)
    for note in tokens.notes(pending):
        print_on_main(ranks, note)
    forget_encoded(tokens.tokenizer)
    return tokens


def _pending_stages(recipe: Recipe) -> list[str]:
    """The training stages of a run that are not done. Rank 0."""
    stages: list[str] = [stage for stage in TRAINING_STAGES if stage in recipe.stages]
    stages += ["control"] if has_control(recipe) else []
    return [stage for stage in stages if not RunFolder(recipe.folder).stage(stage).is_done]


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


def _check_resumed(tokens: "RunTokens", world_size: int) -> list[str]:
    """Check the identity of each stage that has results, and free space; returns notes to print. Rank 0.

    Raises:
        UserError: a stage began with another model or other data, or the disk has too little space.
    """
    from dcr_ds.run.space import check_space

    notes = []
    recipe, source = tokens.recipe, tokens.source
    run = RunFolder(recipe.folder)
    refined = run.stage("refine")
    starts = {"refine": source, "align": refined.model if refined.has_results else source, "control": source}
    for stage, start in starts.items():
        is_asked = stage in recipe.stages or (stage == "control" and has_control(recipe))
        if is_asked and run.stage(stage).has_results and start.is_dir():
            notes += _check_identity(tokens, stage, start, world_size)
    return notes + check_space(tokens, _pending_stages(recipe))


def _check_identity(tokens: "RunTokens", stage: str, start: Path, world_size: int) -> list[str]:
    is_done = RunFolder(tokens.recipe.folder).stage(stage).is_done
    token_hash = None if is_done else tokens.hash_of(stage)
    return check_identity(tokens.recipe, stage, start, tokens.data, token_hash, world_size)


def _is_to_train(tokens: "RunTokens", stage: str, start: Path, ranks: Ranks) -> bool:
    """Return whether a stage still has to be trained from `start`, after checking what is there of it. All ranks."""
    folder = RunFolder(tokens.recipe.folder).stage(stage)

    def is_done() -> bool:
        _check_identity(tokens, stage, start, ranks.world_size)
        return _is_done(folder, stage)

    if not decide_on_main(is_done, ranks):
        return True
    print_on_main(ranks, f"{stage}: already done in {folder.folder} (--redo {redo_of(stage)} does it again)")
    return False


def _is_done(folder: StageFolder, stage: str) -> bool:
    """Return whether a stage is done, and complete what an interrupted end of it left undone. Rank 0.

    Raises:
        UserError: it is done, and its summary or its model is missing or damaged.
    """
    if not folder.is_done:
        return False
    summary = read_json(folder.summary)
    if not isinstance(summary, dict) or "steps" not in summary:
        if not any(folder.checkpoints.glob("step-*")):
            raise UserError(
                f"{folder.summary}: damaged; restore it, or do the stage again with --redo {redo_of(stage)}"
            )
        folder.summary.unlink()  # the stage resumes from its last checkpoint and ends again
        return False
    _check_model(folder, stage)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)  # left where a run ended just after the summary was written
    return True


def _check_model(folder: StageFolder, stage: str) -> None:
    """Raise UserError unless the model of a finished stage is complete."""
    try:
        check_checkpoint(folder.model)
    except UserError as error:
        raise UserError(
            f"{folder.model}: {stage} is done, and its model is missing or incomplete ({error}); restore it, or do the "
            f"stage again with --redo {redo_of(stage)}"
        ) from None


def _model_to_align(recipe: Recipe, source: Path, ranks: Ranks) -> Path:
    """Return the refined model if this run has a stage 1, else the source. All ranks.

    Raises:
        UserError: stage 1 has begun and is not done, or its model is incomplete.
    """
    folder = RunFolder(recipe.folder).stage("refine")

    def is_refined() -> bool:
        if not folder.has_results:
            return False
        if not _is_done(folder, "refine"):
            raise UserError(
                f"{folder.folder}: refine has begun and is not done; finish it first (--stages [refine,align]), or "
                "give this run another --name"
            )
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
                _check_model(folder, STAGE_OF_MODEL[name])
        return [name for name, folder in trained.items() if folder.model.is_dir()]

    names = decide_on_main(existing, ranks)
    models = {BASE: source} | {name: trained[name].model for name in names}
    for name in names:
        wait_until_visible(_files(models[name]), ranks)
    evaluate_models(recipe, models, data, ranks)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _report(recipe: Recipe) -> None:
    from dcr_ds.report import terminal_table, write_report

    write_report([recipe.folder], RunFolder(recipe.folder).report)
    attach_report(recipe)
    print(f"\n{terminal_table([recipe.folder])}\n\nReport: {RunFolder(recipe.folder).report}", flush=True)


def _resolve(recipe: Recipe, source: Path, ranks: Ranks) -> tuple[Recipe, dict[str, str]]:
    """Return the recipe as rank 0 resolves it, and the reasons. All ranks; each checks its own device."""
    from dcr_ds.engine.machine import Machine
    from dcr_ds.engine.resolve import check_device, resolve

    config = model_config(source)
    resolved, reasons = decide_on_main(lambda: resolve(recipe, config, Machine.detect(ranks)), ranks)
    check_device(resolved, config, ranks.device)
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


def _describe_only(recipe: Recipe, source: Path, data: RunData, ranks: Ranks) -> None:
    from dcr_ds.run.dry_run import describe_run
    from dcr_ds.run.tokens import RunTokens

    recipe, reasons = _resolve(recipe, source, ranks)
    tokens = RunTokens(recipe, source, data)
    check_same(lambda: tokens.describe(stage for stage in TRAINING_STAGES if stage in recipe.stages), ranks)
    print_on_main(ranks, describe_run(tokens, reasons, ranks.world_size))


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


def _check_source(recipe: Recipe, source: Path) -> None:
    """Check the tensors of the source checkpoint, and that packing and the adapters of the stages fit it.

    Raises:
        UserError: see `check_model`, `check_can_be_packed` and `add_lora`.
    """
    from dcr_ds.models.adapters import add_lora
    from dcr_ds.models.check import build_on_meta, check_model
    from dcr_ds.models.rehearsal import check_can_be_packed

    for note in check_model(source):
        if is_main_process():
            print(note, file=sys.stderr, flush=True)
    for name in (stage for stage in TRAINING_STAGES if stage in recipe.stages):
        stage = getattr(recipe, name)
        if stage.packing:
            check_can_be_packed(source, f"{name}.packing")
        if stage.adapter == "lora":
            add_lora(build_on_meta(source), stage.lora, f"{name}.lora")
