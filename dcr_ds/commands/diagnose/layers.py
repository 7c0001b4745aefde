"""`dcr-ds diagnose layers`: how well each layer separates the two sets, and the layer that stage 1 would take."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dcr_ds.commands.diagnose.models import HELP, Target, add_out, folder_of, targets_of
from dcr_ds.commands.diagnose.prompts import PAIRED, add_prompts, encoder, read_sets
from dcr_ds.commands.parser import add_template, command_parser, options_in_messages, refuse, show, template_fields
from dcr_ds.errors import UserError
from dcr_ds.files import write_json
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.recipe import load_recipe
from dcr_ds.recipe.layout import RunFolder

if TYPE_CHECKING:
    from dcr_ds.data.records import Prompt
    from dcr_ds.diagnose.layers import LayerFigures, Pooling

DESCRIPTION = """\
Layer probe: held-out separation of the two sets of stage 1 at each layer, and the layer that refine.layer: auto would
take. For further models (those of a run, or --refined) also the drift of the states from the first model's.
"""


def parse(arguments: list[str]) -> Namespace:
    parser = command_parser("diagnose layers", DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help=HELP)
    parser.add_argument("--refined", metavar="MODEL", help="a model trained from MODEL, to compare with it")
    add_prompts(parser, PAIRED, split="train", count=None)
    help_pooling = "of tokens (default: refine.pooling of the run, else last)"
    parser.add_argument("--pooling", choices=("last", "mean"), help=help_pooling)
    add_template(parser)
    add_out(parser, "layers.json of each model")
    return parser.parse_args(arguments)


@options_in_messages()
def run(options: Namespace) -> None:
    """Probe each model; the first one is the reference of the drift. All are checked before the first is probed."""
    from dcr_ds.diagnose.layers import choose_layer, hidden_by_layer, mean_drift, probe_layers, refuse_few_prompts
    from dcr_ds.diagnose.prompts import labels_and_pairs

    sets = read_sets(options, PAIRED)
    labels, pairs = labels_and_pairs(*sets.values())
    refuse_few_prompts(labels, pairs)  # before a model is loaded
    prompts = [row for rows in sets.values() for row in rows]
    first, *others = targets = _targets(options)
    for target in others:
        _check_comparable(first, target)
    tokens = [_encoded(target, prompts) for target in targets]
    pooling = options.pooling or _pooling(RunFolder(Path(options.model)))
    before = hidden_by_layer(first.load(), tokens[0], pooling)
    figures = probe_layers(before, labels, pairs)
    _present(first, figures, choose_layer(figures, len(figures) + 1), options)
    for target, encoded in zip(others, tokens[1:], strict=True):
        after = hidden_by_layer(target.load(), encoded, pooling)
        figures = [
            replace(row, drift=mean_drift(*states))
            for row, *states in zip(probe_layers(after, labels, pairs), before, after, strict=True)
        ]
        _present(target, figures, None, options)


def _targets(options: Namespace) -> list[Target]:
    targets = targets_of([options.model], template_fields(options))
    if options.refined is None:
        return targets
    if len(targets) > 1:
        refuse(
            "diagnose layers", f"--refined: {options.model} is a run, whose models are compared anyway; leave it out"
        )
    refined = targets_of([options.refined], template_fields(options))
    if len(refined) > 1:
        refuse("diagnose layers", f"--refined: {options.refined} is a run; name one of its models")
    return [*targets, replace(refined[0], title="refined")]


def _pooling(run: RunFolder) -> "Pooling":
    return load_recipe(str(run.recipe), []).refine.pooling if run.is_run else "last"


def _check_comparable(first: Target, other: Target) -> None:
    (blocks, width), expected = _shape(other), _shape(first)
    if (blocks, width) != expected:
        raise UserError(
            f"{other.title}: {blocks} blocks of width {width}, but {first.title} has {expected[0]} of {expected[1]}; "
            "compare a model with one that was trained from it"
        )


def _shape(target: Target) -> tuple[int, int]:
    """The number of blocks, and the width of the residual stream."""
    config = model_config(target.files.source)
    return config["num_hidden_layers"], config.get("hidden_size", 0)


def _encoded(target: Target, prompts: "Sequence[Prompt]") -> list[list[int]]:
    encode = encoder(target.tokenizer())
    return [encode(prompt) for prompt in prompts]


def _present(
    target: Target, figures: "Sequence[LayerFigures]", choice: tuple[int, str] | None, options: Namespace
) -> None:
    """Print and write the figures of one model."""
    lines = [_table(target.title, figures)]
    values: dict = {"layers": [_row(row) for row in figures]}
    if choice:
        layer, reason = choice
        values = {"chosen": layer, "reason": reason, **values}
        lines.append(f"refine.layer: {layer} ({reason})")
    if folder := folder_of(target, "layers", options.out):
        write_json(folder / "layers.json", values)
        lines.append(str(folder))
    show("\n".join(lines) + "\n")


def _row(row: "LayerFigures") -> dict:
    aucs = {"class_mean_auc": row.class_mean_auc._asdict(), "probe_auc": row.probe_auc._asdict()}
    return {"layer": row.layer, **aucs, "fisher": row.fisher, "within": row.within, "across": row.across} | (
        {} if row.drift is None else {"drift": row.drift}
    )


def _table(title: str, figures: "Sequence[LayerFigures]") -> str:
    has_drift = figures[0].drift is not None
    header = "layer  AUC, class means     AUC, logistic        Fisher   within   across"
    lines = [title, header + ("    drift" if has_drift else "")]
    for row in figures:
        aucs = [f"{auc.value:.3f} ({auc.low:.2f}–{auc.high:.2f})" for auc in (row.class_mean_auc, row.probe_auc)]
        cells = (
            f"{row.layer:>5}  {aucs[0]:<19} {aucs[1]:<19} {row.fisher:>7.4f}  {row.within:>7.4f}  {row.across:>7.4f}"
        )
        lines.append(cells + (f"  {row.drift:>7.3f}" if has_drift else ""))
    return "\n".join(lines)
