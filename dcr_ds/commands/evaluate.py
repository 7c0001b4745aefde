"""`dcr-ds evaluate`: evaluate existing models on benchmarks, each into its own run folder for `dcr-ds report`."""

import argparse
import json
import shlex
from dataclasses import replace
from pathlib import Path

from dcr_ds.commands.model_names import named_models
from dcr_ds.commands.parser import (
    add_template,
    auto_or_positive_int,
    comma_separated,
    command_parser,
    options_in_messages,
    positive_int,
    positive_number,
    refuse,
    whole_number,
)
from dcr_ds.data.benchmarks import suites
from dcr_ds.data.leakage import describe
from dcr_ds.data.load import RunData, load_data
from dcr_ds.engine import distributed as process
from dcr_ds.engine.agreement import check_same
from dcr_ds.engine.launcher import set_environment
from dcr_ds.errors import UserError, write_errors_as_user_errors
from dcr_ds.evaluate.origins import made_from
from dcr_ds.evaluate.serving.command import check_engine
from dcr_ds.evaluate.targets import ENDPOINT, LocalModel, check_hook_fits, check_hooked, locate_target
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.models.locate import describe_source
from dcr_ds.recipe import Recipe, load_recipe
from dcr_ds.recipe.engines import LOCAL, VLLM
from dcr_ds.recipe.layout import ALIGNED, TRAINING_STAGES, RunFolder
from dcr_ds.recipe.urls import mask_secrets
from dcr_ds.run.environment import describe_data, describe_environment
from dcr_ds.run.folder import prepare_folder, save_run
from dcr_ds.run.opening import open_run

MODEL = ALIGNED  # the place under evaluate/ in which a report of several runs looks for the model of each
DESCRIPTION = """\
Let models answer benchmarks, judge the answers, and write one run folder per model under --out, for `dcr-ds report`.
An interrupted evaluation continues with the same command. On several GPUs: torchrun --no-python dcr-ds evaluate …

  dcr-ds evaluate HuggingFaceTB/SmolLM2-135M-Instruct --suite quick --out runs
  dcr-ds evaluate dcr=runs/smollm2-135m/align/model stl=other/model --suite quick --out runs
  dcr-ds evaluate dcr=runs/qwen2.5-7b/align/model --engine vllm --suite quick --out runs
  dcr-ds evaluate https://api.example.com/v1#big --benchmarks xstest-safe --limit 100 --out runs
"""


@options_in_messages()
def run(arguments: list[str]) -> int:
    """Evaluate models. Called on all ranks.

    Names, benchmarks, model files and chat templates of all models are checked before the first model is loaded.

    Raises:
        UserError: wrong usage, or a model, benchmark or judge that cannot be used.
    """
    options = _parse(arguments)
    set_environment()  # before torch is imported, as below
    from dcr_ds.evaluate.run import check_judges

    recipes = [_recipe(name, model, options) for name, model in named_models(options.models).items()]
    earlier = [made_from(recipe.model.source) for recipe in recipes]
    data = load_data(recipes[0], *earlier)  # the models differ, the benchmarks do not
    models = [locate_target(recipe.model, recipe.evaluate.endpoint) for recipe in recipes]
    for model in models:
        if isinstance(model, LocalModel):
            check_hooked(model, data, recipes[0].evaluate)
    check_judges(recipes[0].evaluate)
    check_engine(recipes[0].evaluate.engine)
    recipes = [_open(recipe) for recipe in recipes]
    folders, hang_minutes = [recipe.folder for recipe in recipes], recipes[0].watchdog.hang_minutes
    with write_errors_as_user_errors(Path(options.out)), open_run(folders, hang_minutes) as ranks:
        check_same(data.hashes, ranks)
        recipes = [_resolve(recipe, model, ranks) for recipe, model in zip(recipes, models, strict=True)]
        environment = _environment(ranks) | {"command": mask_secrets(shlex.join(["dcr-ds", "evaluate", *arguments]))}
        _print_notes(data, ranks)
        for recipe, model, before in zip(recipes, models, earlier, strict=True):
            if ranks.is_main:
                folder = model.source if isinstance(model, LocalModel) else Path(model.model)
                own = [overlap for overlap in data.overlaps if overlap.training_set in before.sets]
                described = describe_data(replace(data, overlaps=own))
                save_run(recipe, environment | described | {"model": describe_source(recipe.model, folder)})
            _evaluate(recipe, model, data, ranks)
    if ranks.is_main:
        _print_results([recipe.folder for recipe in recipes])
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = command_parser("evaluate", DESCRIPTION)
    add = parser.add_argument
    help_models = "model, adapter or baseline folder, hub id, GGUF file, smollm2-135m, or URL#MODEL of an endpoint"
    add("models", nargs="+", metavar="[NAME=]MODEL", help=help_models)
    add("--benchmarks", type=comma_separated, default=[], metavar="NAME,…", help="see docs/benchmark-sets.md")
    add("--suite", choices=tuple(suites()), help="a suite of benchmarks")
    add("--attacks", type=comma_separated, default=[], metavar="NAME,…", help="repeat harmful benchmarks under attacks")
    add("--local-data", metavar="DIR", help="folder of local copies of the benchmarks (default: the hub)")
    add("--judge", action="append", metavar="NAME", help="a judge, as in a recipe; may be repeated")
    help_length = "longest answer, in tokens (default: as each benchmark's authors)"
    add("--max-new-tokens", type=auto_or_positive_int, default="auto", metavar="N", help=help_length)
    add("--batch-size", type=positive_int, metavar="N", help="prompts generated together (default: 32)")
    help_copy = "GPUs of a node that hold one copy of a model together (default: auto, as few as fit)"
    add("--ranks-per-copy", type=auto_or_positive_int, metavar="N", help=help_copy)
    add("--limit", type=positive_int, metavar="ROWS", help="prompts per benchmark, sampled with seed 0 (default: all)")
    add_template(parser)
    add("--dtype", choices=("float32", "bfloat16"), help="precision (default: bfloat16 on a GPU, else float32)")
    add("--engine", choices=(LOCAL, VLLM), help="what generates the answers (default: transformers)")
    help_server = "command of another server, with {model}, {host} and {port}; it is started and ended"
    add("--server-command", metavar="COMMAND", help=help_server)
    add("--server-minutes", type=positive_number, metavar="N", help="time for a server to become ready (default: 30)")
    add("--concurrency", type=positive_int, metavar="N", help="requests in flight (default: 8; vllm: 64)")
    add("--timeout", type=positive_number, metavar="SECONDS", help="of a request to an endpoint (default: 60)")
    add("--retries", type=whole_number, metavar="N", help="of a request to an endpoint (default: 5)")
    help_limit = "field of a request that limits the answer (default: max_tokens)"
    add("--limit-field", choices=("max_tokens", "max_completion_tokens"), help=help_limit)
    help_leakage = "continue when prompts that a model was made from are in a benchmark; the overlap is reported"
    add("--allow-leakage", action="store_true", help=help_leakage)
    add("--out", required=True, metavar="DIR", help="folder of the run folders")
    options = parser.parse_args(arguments)
    if not options.benchmarks and not options.suite:
        refuse("evaluate", "name --benchmarks or a --suite")
    if options.engine and options.server_command:
        refuse("evaluate", "--engine and --server-command: leave one of them out")
    if (options.engine or options.server_command) and all(ENDPOINT.fullmatch(model) for model in options.models):
        refuse("evaluate", "--engine and --server-command are for models on this machine; these are endpoints")
    return options


def _recipe(name: str, model: str, options: argparse.Namespace) -> Recipe:
    """A recipe that only evaluates one model."""
    names = [*options.benchmarks, *([options.suite] if options.suite else [])]
    fields = {
        "name": name,
        "output": options.out,
        "stages": ["evaluate"],
        "allow_leakage": options.allow_leakage,
        "model.source": model,
        "model.chat_template": options.chat_template,
        "model.chat_template_kwargs": options.chat_template_kwargs,
        "model.dtype": options.dtype,
        "evaluate.models": [MODEL],
        "evaluate.benchmarks": [{"name": name, "rows": options.limit} for name in names],
        "evaluate.attacks": options.attacks,
        "evaluate.local_data": options.local_data,
        "evaluate.max_new_tokens": options.max_new_tokens,
        "evaluate.batch_size": options.batch_size,
        "evaluate.ranks_per_copy": options.ranks_per_copy,
        "evaluate.engine": options.server_command or options.engine,
        "evaluate.server_minutes": options.server_minutes,
        "evaluate.endpoint.concurrency": options.concurrency,
        "evaluate.endpoint.timeout_seconds": options.timeout,
        "evaluate.endpoint.retries": options.retries,
        "evaluate.endpoint.limit_field": options.limit_field,
    }
    overrides = [(field, json.dumps(value)) for field, value in fields.items() if value is not None]
    if options.judge:
        overrides.append(("evaluate.judges", f"[{', '.join(options.judge)}]"))
    return load_recipe(None, overrides)


def _open(recipe: Recipe) -> Recipe:
    if trained := [stage for stage in TRAINING_STAGES if RunFolder(recipe.folder).stage(stage).folder.exists()]:
        raise UserError(
            f"{recipe.folder}: holds a training run ({trained[0]}); use another --out, or another NAME=MODEL"
        )
    return prepare_folder(recipe, None)


def _resolve(recipe: Recipe, model: LocalModel | Endpoint, ranks: process.Ranks) -> Recipe:
    """The recipe with precision, attention and ranks per copy resolved for this device; unchanged for an endpoint.

    Raises:
        UserError: the model does not fit, or has an adapter and does not fit on one rank.
    """
    if not isinstance(model, LocalModel):
        return recipe
    from dcr_ds.engine.machine import Machine
    from dcr_ds.engine.resolve import resolve

    config, machine = model_config(model.source), Machine.detect(ranks)
    resolved, reasons = process.decide_on_main(lambda: resolve(recipe, config, machine), ranks)
    size = resolved.evaluate.ranks_per_copy
    if model.adapter and size != 1:
        raise UserError(
            f"{model.adapter}: an adapter cannot be merged into a model that is spread over {size} ranks; merge it "
            f"first (dcr-ds export {model.adapter} --merge --out MODEL), or set --ranks-per-copy 1"
        )
    check_hook_fits(model.hook, size)
    if machine.ranks_per_node > 1 and (reason := reasons.get("evaluate.ranks_per_copy")):
        process.print_on_main(ranks, f"{recipe.name}: evaluate.ranks_per_copy: {size} ({reason})")
    return resolved


def _evaluate(recipe: Recipe, model: LocalModel | Endpoint, data: RunData, ranks: process.Ranks) -> None:
    from dcr_ds.evaluate.model import EvaluatedModel
    from dcr_ds.evaluate.run import evaluate_endpoint, evaluate_model
    from dcr_ds.models.load import DTYPES

    home = RunFolder(recipe.folder).model(MODEL)
    if isinstance(model, LocalModel):
        section = recipe.model
        dtype = DTYPES[section.dtype]
        evaluated = EvaluatedModel(
            recipe.name, home, model.source, dtype, section.attention, section.template, model.adapter, model.hook
        )
        evaluate_model(evaluated, data, recipe.evaluate, ranks)
    elif ranks.is_main:
        evaluate_endpoint(model, home, data.benchmarks, recipe.evaluate, ranks)


def _environment(ranks: process.Ranks) -> dict:
    from dcr_ds.engine.machine import device_name

    return describe_environment(device_name(ranks.device), ranks.world_size)


def _print_notes(data: RunData, ranks: process.Ranks) -> None:
    for note in describe_data(data)["notes"]:
        process.print_on_main(ranks, note)
    if data.overlaps:
        process.print_on_main(ranks, f"WARNING: leakage, as --allow-leakage is set:\n{describe(data.overlaps)}")


def _print_results(folders: list[Path]) -> None:
    from dcr_ds.report import terminal_table

    print(f"\n{terminal_table(folders)}\n\nReport: dcr-ds report {shlex.join(map(str, folders))}", flush=True)
