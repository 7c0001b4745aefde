"""`dcr-ds ability`: general ability of the models of runs, or of any model."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from dcr_ds.errors import UserError
from dcr_ds.evaluate.ability import TASKS, measure_ability
from dcr_ds.files import hash_of, read_json, write_json
from dcr_ds.models.checkpoint_files import model_hash
from dcr_ds.recipe import ModelSection, load_recipe
from dcr_ds.recipe.layout import ALIGNED, BASE, RunFolder

USAGE = "dcr-ds ability RUN|MODEL… [--tasks arc_easy,piqa] [--local-data DIR] [--limit N] [--batch-size N] [--out FILE]"


def run(arguments: list[str]) -> int:
    """Measure each model and print a table; a run's figures go into its folder, where the report finds them.

    Raises:
        UserError: wrong usage, a model or data that is not to be had, lm-eval missing.
    """
    options = _parse(arguments)
    measured = {}
    for title, model, file in (found for target in options.targets for found in _models(Path(target), target)):
        settings = _settings(options, model)
        result = read_json(file) if file else None
        if not result or result["settings"] != settings:
            result = {"settings": settings, "tasks": _measure(options, model)}
            if file:
                write_json(file, result)
        measured[title] = result["tasks"]
    if options.out:
        write_json(options.out, measured)
    print(_table(measured, options.tasks))
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dcr-ds ability", usage=USAGE, exit_on_error=False)
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=list(TASKS))
    parser.add_argument("--local-data", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--chat-template")
    parser.add_argument("--out", type=Path)
    parser.error = _refuse
    options = parser.parse_args(arguments)
    for name in ("limit", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            _refuse(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    return options


def _refuse(message: str) -> None:
    raise UserError(f"ability: {message}\nusage: {USAGE}")


def _models(target: Path, source: str) -> Iterator[tuple[str, ModelSection, Path | None]]:
    """Title, model and the file for its figures: base and aligned of a run, or the one model that was named."""
    run = RunFolder(target)
    if not run.is_run:
        yield source, ModelSection(source=source), None
        return
    model = load_recipe(str(run.recipe), []).model
    yield f"{target.name}: base", model, run.model(BASE).ability
    aligned = run.stage("align").model
    if aligned.is_dir():
        aligned_model = model.model_copy(update={"source": str(aligned), "revision": None})
        yield f"{target.name}: aligned", aligned_model, run.model(ALIGNED).ability


def _settings(options: argparse.Namespace, model: ModelSection) -> dict:
    """What the figures depend on beside the code: a figure made under the same is not made again."""
    from dcr_ds.models.locate import prepare_source

    local = sorted(options.local_data.glob("*.jsonl")) if options.local_data else []
    return {
        "model": model_hash(prepare_source(model)),
        "tasks": options.tasks,
        "limit": options.limit,
        "local_data": hash_of([[file.name, file.stat().st_size] for file in local]) if local else None,
    }


def _measure(options: argparse.Namespace, model: ModelSection) -> dict[str, dict]:
    import torch

    from dcr_ds.models.chat import load_tokenizer
    from dcr_ds.models.load import load_causal_lm
    from dcr_ds.models.locate import prepare_source

    source = prepare_source(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    loaded = load_causal_lm(source, dtype, "sdpa", device)
    tokenizer = load_tokenizer(source, options.chat_template or model.chat_template)
    return measure_ability(loaded, tokenizer, options.tasks, options.local_data, options.limit, options.batch_size)


def _table(measured: dict[str, dict[str, dict]], tasks: list[str]) -> str:
    width = max(map(len, measured))
    lines = [" " * width + "".join(f"  {task:>20}" for task in tasks)]
    for title, figures in measured.items():
        cells = (figures[task] for task in tasks)
        lines.append(f"{title:<{width}}" + "".join(f"  {_cell(cell):>20}" for cell in cells))
    return "\n".join(lines)


def _cell(figure: dict) -> str:
    return f"{figure['value']:.1%} ({100 * figure['low']:.1f}–{100 * figure['high']:.1f})"
