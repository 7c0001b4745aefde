"""`dcr-ds ability`: general ability of the models of runs, or of any model."""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dcr_ds.commands.parser import (
    add_template,
    comma_separated,
    command_parser,
    options_in_messages,
    output_file,
    positive_int,
    refuse,
    template_fields,
)
from dcr_ds.evaluate.ability import TASKS, AbilityOptions, local_hash, measure_ability
from dcr_ds.files import read_object, write_json
from dcr_ds.models.checkpoint_files import model_config, model_hash
from dcr_ds.recipe import ModelSection, load_recipe
from dcr_ds.recipe.layout import ALIGNED, BASE, RunFolder
from dcr_ds.report.numbers import shapes

DESCRIPTION = """\
Measure general ability with lm-eval: zero-shot accuracy on multiple-choice tasks. The results of a run go into its
folder, where `dcr-ds report` finds them; what was measured before with the same settings is not measured again.

  dcr-ds ability runs/smollm2-135m
  dcr-ds ability HuggingFaceTB/SmolLM2-135M-Instruct --tasks arc_easy,piqa --limit 200
"""


@options_in_messages()
def run(arguments: list[str]) -> int:
    """Measure each model and print a table. All models are checked before the first one is measured.

    Raises:
        UserError: wrong usage, a model or data set that cannot be read, or lm-eval is not installed.
    """
    options = _parse(arguments)
    asked = [asked for target in options.targets for asked in _models(target, options)]
    settings = [_settings(options, one.section) for one in asked]
    if options.local_data:
        data = {"local_data": local_hash(options.tasks, options.local_data)}
        settings = [of_model | data for of_model in settings]
    measured = {one.title: _measure_once(options, one, of_model) for one, of_model in zip(asked, settings, strict=True)}
    print(_table(measured, options.tasks), flush=True)
    if options.out:
        write_json(options.out, measured)
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = command_parser("ability", DESCRIPTION)
    add = parser.add_argument
    add("targets", nargs="+", metavar="RUN|MODEL", help="run folders, model folders or hub ids")
    add("--tasks", type=comma_separated, default=list(TASKS), metavar="NAME,…", help=f"of {', '.join(TASKS)} (all)")
    add("--local-data", type=Path, metavar="DIR", help="folder of DIR/TASK*.jsonl files (default: the hub)")
    add("--limit", type=positive_int, metavar="N", help="questions per task (default: all)")
    add("--batch-size", type=positive_int, default=8, metavar="N", help="questions per forward pass (default: 8)")
    help_apply = "ask with the model's chat template (default: plain text, as lm-eval)"
    add("--apply-chat-template", action="store_true", help=help_apply)
    add_template(parser)
    add("--out", type=output_file, metavar="FILE", help="write the results as JSON, too")
    options = parser.parse_args(arguments)
    for name in ("targets", "tasks"):
        if repeated := next((word for word, count in Counter(getattr(options, name)).items() if count > 1), None):
            refuse("ability", f"{repeated} is named twice")
    if template_fields(options) and not options.apply_chat_template:
        refuse("ability", "--chat-template… without --apply-chat-template: questions are plain text")
    return options


class Asked(NamedTuple):
    """A model to measure, its title in the table, and the file of its results."""

    title: str
    section: ModelSection
    file: Path | None


def _measure_once(options: argparse.Namespace, asked: Asked, settings: dict) -> dict[str, dict]:
    """Results by task: those in the file if they were measured with the same settings, else new ones."""
    if asked.file and read_object(asked.file).get("settings") == settings:
        return shapes.read_object(asked.file, shapes.Ability)["tasks"]
    tasks = _measure(options, asked.section)
    if asked.file:
        write_json(asked.file, {"settings": settings, "tasks": tasks})
    return tasks


def _models(source: str, options: argparse.Namespace) -> Iterator[Asked]:
    """The base and aligned models of a run, the one model of a run of `dcr-ds evaluate`, or the one that was named."""
    run, template = RunFolder(Path(source)), template_fields(options)
    if not run.is_run:
        yield Asked(source, ModelSection(source=source, **template), None)
        return
    recipe, aligned = load_recipe(str(run.recipe), []), run.stage("align").model
    model = recipe.model.model_copy(update=template)
    names = [Path(target).resolve().name for target in options.targets]
    name = run.folder.resolve().name
    title = name if names.count(name) == 1 else source
    if recipe.stages == ["evaluate"] and recipe.evaluate.models == [ALIGNED] and not aligned.exists():
        yield Asked(title, model, run.model(ALIGNED).ability)  # where `dcr-ds evaluate` puts its results
        return
    yield Asked(f"{title}: base", model, run.model(BASE).ability)
    if aligned.is_dir():
        aligned_model = model.model_copy(update={"source": str(aligned), "revision": None})
        yield Asked(f"{title}: aligned", aligned_model, run.model(ALIGNED).ability)


def _settings(options: argparse.Namespace, model: ModelSection) -> dict:
    """What the results depend on, except for the code. Checks the model, and the template it is asked with."""
    from dcr_ds.evaluate.targets import checked_source
    from dcr_ds.models.tokenizer import template_hash

    return {
        "model": model_hash(checked_source(model)),
        "tasks": options.tasks,
        "limit": options.limit,
        "local_data": None,
        **({"template": template_hash(_tokenizer(options, model))} if options.apply_chat_template else {}),
    }


def _tokenizer(options: argparse.Namespace, model: ModelSection) -> Any:
    """The tokenizer; to ask with its chat template, with the variables and the date of training and evaluation."""
    from dcr_ds.models.dates import dated
    from dcr_ds.models.locate import prepare_source
    from dcr_ds.models.tokenizer import load_tokenizer, read_tokenizer

    source = prepare_source(model)
    if not options.apply_chat_template:
        return read_tokenizer(source)
    tokenizer = load_tokenizer(source, model.template)
    tokenizer.chat_template = dated(tokenizer.get_chat_template())
    return tokenizer


def _measure(options: argparse.Namespace, model: ModelSection) -> dict[str, dict]:
    from dcr_ds.models.locate import prepare_source

    asked = AbilityOptions(
        options.tasks, options.local_data, options.limit, options.batch_size, options.apply_chat_template
    )
    return measure_ability(load_for_tasks(prepare_source(model)), _tokenizer(options, model), asked)


def load_for_tasks(source: Path) -> Any:
    """The model of a folder on this device, with sdpa, or eager where the architecture cannot use it."""
    import torch

    from dcr_ds.models.load import NO_GPU, load_causal_lm, resolve_attention

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    attention, _ = resolve_attention("auto", model_config(source)["model_type"], "float32", NO_GPU)
    return load_causal_lm(source, dtype, attention, device)


def _table(measured: dict[str, dict[str, dict]], tasks: list[str]) -> str:
    width = max(map(len, measured))
    lines = [" " * width + "".join(f"  {task:>20}" for task in tasks)]
    for title, results in measured.items():
        cells = (results[task] for task in tasks)
        lines.append(f"{title:<{width}}" + "".join(f"  {_cell(cell):>20}" for cell in cells))
    return "\n".join(lines)


def _cell(result: dict) -> str:
    return f"{result['value']:.1%} ({100 * result['low']:.1f}–{100 * result['high']:.1f})"
