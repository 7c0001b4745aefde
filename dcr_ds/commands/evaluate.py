"""`dcr-ds evaluate`: models that exist already answer benchmarks, each into a run folder that `dcr-ds report` reads."""

import argparse
import json
import re
from pathlib import Path
from typing import NamedTuple

from dcr_ds.data.benchmarks import suites
from dcr_ds.data.load import RunData, load_data
from dcr_ds.engine import distributed as process
from dcr_ds.errors import UserError
from dcr_ds.models.checkpoint_files import base_of_adapter, check_base, model_config, tokenizer_folder
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.models.locate import prepare_source
from dcr_ds.recipe import STAGES, ModelSection, Recipe, load_recipe
from dcr_ds.recipe.layout import ALIGNED, TRAINING_STAGES, RunFolder
from dcr_ds.run.environment import describe_environment
from dcr_ds.run.folder import open_run, save_run

MODEL = ALIGNED  # the place under evaluate/ in which a report of several runs looks for the model of each
ENDPOINT = re.compile(r"(https?://[^#]+)#(.+)")
NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)", re.DOTALL)
DESCRIPTION = """\
Let models answer benchmarks, judge the answers, and lay out a run folder a model under --out, for `dcr-ds report`.
A killed evaluation goes on with the same command. Several GPUs: torchrun --no-python dcr-ds evaluate …
"""


class LocalModel(NamedTuple):
    """A checkpoint on this machine, and an adapter to merge in."""

    source: Path
    adapter: Path | None


def run(arguments: list[str]) -> int:
    """Evaluate the models of a command line. All ranks.

    Names, benchmarks, model files and chat templates are checked for all models before the first one is loaded.

    Raises:
        UserError: anything that the user can put right.
    """
    options = _parse(arguments)
    process.set_environment()  # before torch is imported, as below
    from dcr_ds.evaluate.run import check_judges

    recipes = [_recipe(name, model, options) for name, model in _named(options.models).items()]
    data = load_data(recipes[0])  # the models differ, the benchmarks do not
    models = [_locate(recipe.model) for recipe in recipes]
    check_judges(recipes[0].evaluate)
    recipes = [_open(recipe) for recipe in recipes]
    ranks = process.start()
    try:
        recipes = [_resolve(recipe, model, ranks) for recipe, model in zip(recipes, models, strict=True)]
        environment = _environment(ranks, data)
        for recipe, model in zip(recipes, models, strict=True):
            if ranks.is_main:
                save_run(recipe, environment)
            _evaluate(recipe, model, data, ranks)
        process.barrier(ranks)
    finally:
        process.close()
    if ranks.is_main:
        _print_results([recipe.folder for recipe in recipes])
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("dcr-ds evaluate", description=DESCRIPTION, formatter_class=layout)
    parser.error = _refuse
    add = parser.add_argument
    add(
        "models",
        nargs="+",
        metavar="[NAME=]MODEL",
        help="model or adapter folder, hub id, GGUF file, smollm2-135m, URL#MODEL",
    )
    add("--benchmarks", default="", metavar="NAME,…", help="benchmarks and suites (docs/BENCHMARK_SETS.md)")
    add("--suite", choices=tuple(suites()), help="a suite of benchmarks")
    add("--local-data", metavar="DIR", help="folder of local copies of the benchmarks (default: read them online)")
    add(
        "--judge", action="append", metavar="NAME", help="who judges, a name or mapping as in a recipe; may be repeated"
    )
    add("--max-new-tokens", metavar="N", default="auto", help="longest answer (default: as each benchmark's authors)")
    add("--batch-size", metavar="N", help="prompts generated together")
    add("--limit", metavar="ROWS", help="at most this many prompts of each benchmark, drawn with seed 0")
    add("--chat-template", metavar="FILE", help="Jinja file, or a shipped template by name, for models without one")
    add("--dtype", help="float32 or bfloat16 (default: bfloat16 on a GPU)")
    add("--out", required=True, metavar="DIR", help="folder of the run folders")
    options = parser.parse_args(arguments)
    if not options.benchmarks and not options.suite:
        _refuse("name --benchmarks, or a --suite")
    return options


def _refuse(message: str) -> None:
    raise UserError(f"evaluate: {message}; dcr-ds evaluate --help lists the options")


def _named(models: list[str]) -> dict[str, str]:
    """Name → model: the name given, or what the model itself is called."""
    named: dict[str, str] = {}
    for text in models:
        given = NAMED.fullmatch(text)
        name, model = given.groups() if given else (_name_of(text), text)
        if name in named:
            raise UserError(
                f"two models are called {name!r}: {named[name]} and {model}; name them: one={named[name]} other={model}"
            )
        named[name] = model
    return named


def _name_of(model: str) -> str:
    """The last part of a path, hub id or endpoint's model; a stage's model folder is called after run and stage."""
    remote = ENDPOINT.fullmatch(model)
    parts = Path(remote[2] if remote else model).parts or ("model",)
    is_of_a_stage = len(parts) > 2 and parts[-1] in ("model", "adapter") and parts[-2] in STAGES
    name = f"{parts[-3]}-{parts[-2]}" if is_of_a_stage else parts[-1].removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"


def _recipe(name: str, model: str, options: argparse.Namespace) -> Recipe:
    """The recipe of a run that only evaluates one model."""
    names = [name.strip() for name in options.benchmarks.split(",") if name.strip()]
    names += [options.suite] if options.suite else []
    fields = {
        "name": name,
        "output": options.out,
        "stages": ["evaluate"],
        "model.source": model,
        "model.chat_template": options.chat_template,
        "model.dtype": options.dtype,
        "evaluate.models": [MODEL],
        "evaluate.benchmarks": [{"name": each} | ({"rows": options.limit} if options.limit else {}) for each in names],
        "evaluate.local_data": options.local_data,
        "evaluate.max_new_tokens": options.max_new_tokens,
        "evaluate.batch_size": options.batch_size,
    }
    overrides = [(field, json.dumps(value)) for field, value in fields.items() if value is not None]
    if options.judge:
        overrides.append(("evaluate.judges", f"[{', '.join(options.judge)}]"))
    return load_recipe(None, overrides)


def _locate(model: ModelSection) -> LocalModel | Endpoint:
    """Where a model is: a folder with all its files and a chat template, or an endpoint that has its key."""
    if remote := ENDPOINT.fullmatch(model.source):
        return Endpoint(remote[1], remote[2])
    if re.match(r"https?://", model.source):
        raise UserError(f"{model.source}: an endpoint is named with its model: {model.source}#MODEL")
    from dcr_ds.models.chat import load_tokenizer

    found = _locate_files(model)
    load_tokenizer(tokenizer_folder(*found), model.chat_template)
    return found


def _locate_files(model: ModelSection) -> LocalModel:
    folder = Path(model.source).expanduser()
    base = base_of_adapter(folder)
    if base is None:
        return LocalModel(prepare_source(model), None)
    try:
        source = prepare_source(model.model_copy(update={"source": base, "revision": None}))
    except UserError as error:
        raise UserError(
            f"{folder}: an adapter for the model {base!r}, which cannot be used ({error}); adapter_config.json names "
            "it as base_model_name_or_path"
        ) from None
    check_base(source, folder)
    return LocalModel(source, folder)


def _open(recipe: Recipe) -> Recipe:
    if trained := [stage for stage in TRAINING_STAGES if RunFolder(recipe.folder).stage(stage).folder.exists()]:
        raise UserError(
            f"{recipe.folder}: holds a run with {trained[0]}; set --out elsewhere, or name the model otherwise"
        )
    return open_run(recipe, None)


def _resolve(recipe: Recipe, model: LocalModel | Endpoint, ranks: process.Ranks) -> Recipe:
    """The recipe with precision and attention resolved for this device; an endpoint has its own."""
    if not isinstance(model, LocalModel):
        return recipe
    from dcr_ds.engine.machine import Machine
    from dcr_ds.engine.resolve import resolve

    return resolve(recipe, model_config(model.source), Machine.detect(ranks))[0]


def _evaluate(recipe: Recipe, model: LocalModel | Endpoint, data: RunData, ranks: process.Ranks) -> None:
    from dcr_ds.evaluate.run import Subject, evaluate_endpoint, evaluate_model
    from dcr_ds.models.load import DTYPES

    home = RunFolder(recipe.folder).model(MODEL)
    if isinstance(model, LocalModel):
        section = recipe.model
        dtype = DTYPES[section.dtype]
        subject = Subject(
            recipe.name, home, model.source, dtype, section.attention, section.chat_template, model.adapter
        )
        evaluate_model(subject, data, recipe.evaluate, ranks)
    elif ranks.is_main:
        evaluate_endpoint(model, home, data.benchmarks, recipe.evaluate, ranks)


def _environment(ranks: process.Ranks, data: RunData) -> dict:
    """What environment.json says; what there is to note of the data is said once, too."""
    from dcr_ds.evaluate.run import device_name

    summary = data.summary()
    notes = summary["notes"] + [f"{name}: {note}" for name, one in summary["sets"].items() for note in one["notes"]]
    for note in notes:
        process.print_on_main(ranks, note)
    described = {"data": summary["sets"], "notes": notes, "overlaps": []}
    return describe_environment(device_name(ranks.device), ranks.world_size) | described


def _print_results(folders: list[Path]) -> None:
    from dcr_ds.report import terminal_table

    print(f"\n{terminal_table(folders)}\n\nReport: dcr-ds report {' '.join(map(str, folders))}", flush=True)
