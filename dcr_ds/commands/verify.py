"""`dcr-ds verify`: whether exported and served models have the refusal log-odds of the model of a run."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dcr_ds.commands.diagnose.prompts import PAIRED, add_prompts, read_sets
from dcr_ds.commands.parser import command_parser, options_in_messages, positive_number, show
from dcr_ds.data.conversations import read_conversations
from dcr_ds.engine.launcher import set_environment
from dcr_ds.errors import UserError
from dcr_ds.recipe import DataSource, EndpointSection, ModelSection
from dcr_ds.recipe.layout import ALIGNED, CONTROL, REFINED, STAGE_OF_MODEL, RunFolder

if TYPE_CHECKING:
    from dcr_ds.evaluate.targets import LocalModel
    from dcr_ds.export.verify import Asked, Compared, Model

DESCRIPTION = """\
Compare the refusal log-odds of models on held-out prompts: the first is the model of a run, the others are what was
made of it. The tokens of the prompts are compared, too. Exit code 1 if a model differs by more than the bound.

  dcr-ds verify runs/x model                                a folder that was exported
  dcr-ds verify runs/x gguf/model-bf16.gguf                 a GGUF file, dequantised by transformers
  dcr-ds verify runs/x http://localhost:8000/v1#model       a model that vLLM or llama.cpp serves
"""
PROMPTS = 8  # per category


@options_in_messages()
def run(arguments: list[str]) -> int:
    """Compare models with the first one. Returns 0, or 1 if one of them differs.

    Raises:
        UserError: wrong usage, a model that cannot be used, or a reference without refusal openings.
    """
    options = _parse(arguments)
    set_environment()
    from dcr_ds.export.verify import compare, log_odds_of

    models = {name: _located(name) for name in options.models}
    reference = _reference(options.reference)
    asked = _asked(reference, options)
    expected = log_odds_of(reference, asked)
    compared = {name: compare(model, asked, expected, options.bound) for name, model in models.items()}
    num_openings = len(asked.openings.openings)
    show(f"{len(asked.prompts)} prompts, {num_openings} refusal openings; compared with {options.reference}\n")
    show(_table(compared))
    return 0 if all(row.is_equal for row in compared.values()) else 1


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = command_parser("verify", DESCRIPTION)
    parser.add_argument("reference", metavar="RUN|MODEL", help="a run, whose last trained model is taken, or a model")
    help_models = "model or adapter folder, GGUF file, or URL#MODEL of a server (vLLM, llama.cpp)"
    parser.add_argument("models", nargs="+", metavar="MODEL", help=help_models)
    help_bound = "largest difference of log-odds (default: 0.01; of a server: 1, as it computes in 16 bits)"
    parser.add_argument("--bound", type=positive_number, metavar="N", help=help_bound)
    add_prompts(parser, PAIRED, "held_out", PROMPTS)
    return parser.parse_args(arguments)


def _reference(name: str) -> "LocalModel":
    run = RunFolder(Path(name))
    if run.is_run:
        stages = (run.stage(STAGE_OF_MODEL[model]) for model in (ALIGNED, REFINED, CONTROL))
        done = next((stage for stage in stages if stage.is_done), None)
        if done is None:
            raise UserError(f"{name}: no stage of this run is done; finish it, or name a model folder")
        name = str(done.model)
    model = _located(name)
    if not isinstance(model, tuple):
        raise UserError(f"{name}: the first model must be a run, a model folder or an adapter folder")
    return model


def _located(name: str) -> "Model":
    from dcr_ds.evaluate.targets import locate_target

    if (file := Path(name)).suffix == ".gguf" and file.is_file():
        return file
    return locate_target(ModelSection(source=name), EndpointSection())


def _asked(reference: "LocalModel", options: argparse.Namespace) -> "Asked":
    from dcr_ds.evaluate.log_odds import openings_of
    from dcr_ds.export.verify import asked_of
    from dcr_ds.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(reference.tokenizer, None, reference.source)
    refusals, ordinary = (read_conversations(DataSource(), name) for name in ("refusals", "general"))
    openings = openings_of(tokenizer, refusals, ordinary)
    prompts = [prompt for rows in read_sets(options, PAIRED).values() for prompt in rows]
    return asked_of(tokenizer, prompts, openings)


def _table(compared: "Mapping[str, Compared]") -> str:
    width = max(len("model"), *map(len, compared))
    lines = [f"{'model':<{width}}  largest difference  bound  other tokens  result"]
    for name, row in compared.items():
        other = "unknown" if row.other_tokens is None else str(row.other_tokens)
        result = "equal" if row.is_equal else f"differs (prompt {row.prompt})"
        lines.append(f"{name:<{width}}  {row.difference:>18.6f}  {row.bound:>5g}  {other:>12}  {result}")
    return "\n".join(lines)
