"""`dcr-ds diagnose`: what a model's gradients, its hidden states and the training prompts reveal (docs/diagnose.md)."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dcr_ds.commands.parser import command_parser, positive_int, refuse, show
from dcr_ds.data.conversations import read_conversations
from dcr_ds.data.prompts import read_prompts
from dcr_ds.data.records import Prompt
from dcr_ds.data.sampler import draw
from dcr_ds.errors import UserError
from dcr_ds.files import write_json
from dcr_ds.recipe import DataSource, ModelSection, load_recipe
from dcr_ds.recipe.layout import BASE, STAGE_OF_MODEL, RunFolder

DESCRIPTION = """\
Diagnose models and data. MODEL is a run folder (all its models), a model folder, hub id, GGUF file or smollm2-135m.

  dcr-ds diagnose entk MODEL…          gradient kernel (eNTK) between prompts of three categories
  dcr-ds diagnose layers MODEL…        how well each layer separates the two sets of stage 1
  dcr-ds diagnose confounds            what length, punctuation and words alone tell about the two sets

dcr-ds diagnose WHAT --help lists the options of each.
"""
SETS = ("seemingly_toxic", "toxic", "general")


class Model(NamedTuple):
    """A model to diagnose."""

    title: str
    section: ModelSection


def run(arguments: list[str]) -> int:
    """Run one diagnosis.

    Raises:
        UserError: wrong usage, or a model or data set that cannot be used.
    """
    if not arguments or arguments[0] in ("--help", "-h"):
        command_parser("diagnose", DESCRIPTION).print_help()
        return 0
    what, rest = arguments[0], arguments[1:]
    if what not in DIAGNOSES:
        refuse("diagnose", f"unknown diagnosis {what!r}; there are {', '.join(DIAGNOSES)}")
    DIAGNOSES[what](rest)
    return 0


def _entk(arguments: list[str]) -> None:
    parser = _parser("entk", "Exact empirical neural tangent kernel between prompts, as mean ratios per category.")
    _add_models(parser)
    _add_data(parser, SETS)
    parser.add_argument("--prompts", type=positive_int, default=25, metavar="N", help="per category (default: 25)")
    parser.add_argument("--k", type=positive_int, default=10, help="largest logits per prompt (default: 10)")
    parser.add_argument("--parameters", default="all", help="all, blocks<=N, blocks>N, or a regex on names")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write entk.json, .csv and .png into DIR/<model>")
    options = parser.parse_args(arguments)

    def measure(model: Any, encode: Callable[[str], list[int]], title: str) -> str:
        from dcr_ds.diagnose.entk import entk, write_entk

        prompts = {name: [encode(row.prompt) for row in rows] for name, rows in _rows(options, SETS).items()}
        result = entk(model, prompts, options.k, options.parameters)
        if options.out:
            write_entk(result, options.out / title)
        return _entk_table(title, list(prompts), result)

    _each_model(options.models, measure)


def _layers(arguments: list[str]) -> None:
    parser = _parser("layers", "Layer probe: held-out separation of the two sets at each layer, and the chosen layer.")
    _add_models(parser)
    _add_data(parser, SETS[:2])
    parser.add_argument("--prompts", type=positive_int, metavar="N", help="per set (default: all)")
    parser.add_argument("--pooling", choices=("last", "mean"), default="last", help="token (default: last)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write layers.json into DIR/<model>")
    options = parser.parse_args(arguments)

    def measure(model: Any, encode: Callable[[str], list[int]], title: str) -> str:
        from dcr_ds.diagnose.layers import choose_layer, hidden_by_layer, probe_layers
        from dcr_ds.diagnose.prompts import labels_and_pairs

        rows = _rows(options, SETS[:2])
        tokens = [encode(row.prompt) for prompts in rows.values() for row in prompts]
        labels, pairs = labels_and_pairs(rows["seemingly_toxic"], rows["toxic"])
        figures = probe_layers(hidden_by_layer(model, tokens, options.pooling), labels, pairs)
        layer, reason = choose_layer(figures, len(figures) + 1)
        if options.out:
            table = [
                {"layer": row.layer, "class_mean_auc": row.class_mean_auc._asdict(),
                 "probe_auc": row.probe_auc._asdict(), "fisher": row.fisher, "within": row.within,
                 "across": row.across}
                for row in figures
            ]  # fmt: skip
            write_json(options.out / title / "layers.json", {"chosen": layer, "reason": reason, "layers": table})
        return _layers_table(title, figures, f"refine.layer: {layer} ({reason})")

    _each_model(options.models, measure)


def _confounds(arguments: list[str]) -> None:
    from dcr_ds.diagnose.confounds import check_confounds

    parser = _parser("confounds", "How well superficial features of the prompts separate the two sets of stage 1.")
    _add_data(parser, SETS[:2])
    options = parser.parse_args(arguments)
    sets = {name: _read(options, name) for name in SETS[:2]}
    lines = []
    for confound in check_confounds(sets["seemingly_toxic"], sets["toxic"]):
        auc = confound.auc
        lines.append(f"{confound.name:<14} AUC {auc.value:.3f} ({auc.low:.2f}–{auc.high:.2f})  {confound.note}")
        if confound.warning:
            lines.append(f"  WARNING: {confound.warning}")
    show("\n".join(lines))


DIAGNOSES = {"entk": _entk, "layers": _layers, "confounds": _confounds}


def _parser(what: str, description: str) -> argparse.ArgumentParser:
    return command_parser(f"diagnose {what}", description)


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="run folder, model folder, hub id or GGUF file")


def _add_data(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    for name in names:
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, metavar="FILE", help=f"{name.replace('_', ' ')} prompts (default: built-in)")
    parser.add_argument("--split", choices=("train", "held_out"), default="train", help="of built-in sets (train)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample of prompts (default: 0)")


def _rows(options: argparse.Namespace, names: Sequence[str]) -> dict[str, list[Prompt]]:
    """The sampled prompts by category; twins are sampled together."""
    return {name: _sample(_read(options, name), options.prompts, options.seed) for name in names}


def _read(options: argparse.Namespace, name: str) -> list[Prompt]:
    given = getattr(options, name)
    source = DataSource(source=given) if given else DataSource(split=options.split)
    if name != "general":
        return read_prompts(source, name).rows
    rows = read_conversations(source, name).rows
    return [Prompt(row.id, row.messages[0]["content"]) for row in rows if row.messages[0]["role"] == "user"]


def _sample(rows: Sequence[Prompt], count: int | None, seed: int) -> list[Prompt]:
    keyed = sorted(rows, key=lambda row: (row.pair or row.id, row.id))
    order = draw(f"{seed}/diagnose", len(keyed), 0, min(count or len(keyed), len(keyed)))
    return [keyed[index] for index in sorted(order)]


def _each_model(names: Sequence[str], measure: Callable[[Any, Callable[[str], list[int]], str], str]) -> None:
    """Load one model after the other in float32, and print what is measured of it."""
    import torch

    from dcr_ds.models.chat import encode_prompt, load_tokenizer
    from dcr_ds.models.load import load_causal_lm
    from dcr_ds.models.locate import prepare_source

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = [(model, prepare_source(model.section)) for name in names for model in _models(name)]
    for model, source in models:
        tokenizer = load_tokenizer(source, model.section.chat_template)
        loaded = load_causal_lm(source, torch.float32, "eager", device)
        show(measure(loaded, partial(encode_prompt, tokenizer), model.title) + "\n")
        del loaded


def _models(name: str) -> list[Model]:
    """The models of a run folder, base first, or the one model that is named."""
    run = RunFolder(Path(name))
    if not run.is_run:
        return [Model(Path(name).name, ModelSection(source=name))]
    section = load_recipe(str(run.recipe), []).model
    trained = {title: run.stage(stage) for title, stage in STAGE_OF_MODEL.items()}
    models = [Model(BASE, section)]
    for title, folder in trained.items():
        if folder.is_done:
            models.append(Model(title, section.model_copy(update={"source": str(folder.model), "revision": None})))
    if len(models) == 1:
        raise UserError(f"{name}: this run has no trained model yet")
    return models


def _entk_table(title: str, names: Sequence[str], result: Any) -> str:
    words = [name.replace("_", " ") for name in names]
    lines = [f"{title}: mean ‖K(x', x)‖ / ‖K(x', x')‖ of rows x' and columns x, k = {result.k}, with 95% intervals"]
    lines.append(" " * 18 + "".join(f"{name:>22}" for name in words))
    for i, name in enumerate(words):
        cells = (
            f"{result.means[i, j]:.3f} ({result.low[i, j]:.2f}–{result.high[i, j]:.2f})" for j in range(len(words))
        )
        lines.append(f"{name:<18}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def _layers_table(title: str, figures: Sequence[Any], choice: str) -> str:
    lines = [f"{title}", "layer  AUC, class means     AUC, logistic        Fisher   within   across"]
    for row in figures:
        aucs = [f"{auc.value:.3f} ({auc.low:.2f}–{auc.high:.2f})" for auc in (row.class_mean_auc, row.probe_auc)]
        cosines = f"{row.within:>7.4f}  {row.across:>7.4f}"
        lines.append(f"{row.layer:>5}  {aucs[0]:<19} {aucs[1]:<19} {row.fisher:>7.4f}  {cosines}")
    return "\n".join([*lines, choice])
