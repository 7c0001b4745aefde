"""`dcr-ds diagnose entk`: how much training on one prompt moves the logits of another, per pair of categories."""

import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dcr_ds.commands.diagnose.models import HELP, Target, add_out, folder_of, targets_of
from dcr_ds.commands.diagnose.prompts import PAIRED, SETS, add_prompts, encoder, read_sets
from dcr_ds.commands.parser import (
    add_template,
    command_parser,
    options_in_messages,
    positive_int,
    show,
    template_fields,
)
from dcr_ds.data.records import digest
from dcr_ds.engine.agreement import check_same
from dcr_ds.recipe.layout import ALIGNED, CONTROL

if TYPE_CHECKING:
    from dcr_ds.data.records import Prompt
    from dcr_ds.diagnose.entk import EntkResult
    from dcr_ds.engine.distributed import Ranks

Encoded = dict[str, list[list[int]]]  # prompts as tokens, by category
DESCRIPTION = """\
Exact empirical neural tangent kernel on the largest logits of the first answer token: mean ratios per pair of
categories, and for several models how they change. On several GPUs: torchrun --no-python dcr-ds diagnose …
"""


def parse(arguments: list[str]) -> Namespace:
    parser = command_parser("diagnose entk", DESCRIPTION)
    parser.add_argument("models", nargs="+", metavar="MODEL", help=HELP)
    add_prompts(parser, SETS, split="held_out", count=25)
    parser.add_argument("--k", type=positive_int, default=10, help="largest logits per prompt (default: 10)")
    help_parameters = "all, blocks<=N, blocks>N, or a regular expression on names (default: all)"
    parser.add_argument("--parameters", default="all", metavar="SELECTION", help=help_parameters)
    add_template(parser)
    add_out(parser, "entk.json, entk.csv and entk.png of each model")
    return parser.parse_args(arguments)


@options_in_messages()
def run(options: Namespace) -> None:
    """Measure each model, compare the later ones with the first, and an aligned one with its control. All ranks.

    All models are checked before the first one is measured.
    """
    sets = read_sets(options, SETS)
    targets = targets_of(options.models, template_fields(options))
    prompts = [_checked_prompts(target, sets, options) for target in targets]
    results = {}
    with _ranks() as ranks:
        if ranks:
            check_same(lambda: {f"set of {name} prompts": digest(rows) for name, rows in sets.items()}, ranks)
        for target, encoded in zip(targets, prompts, strict=True):
            result = _measure(target, encoded, options, ranks)
            results[target.title] = result
            if ranks is None or ranks.is_main:
                _write(result, target, options)
    if len(results) > 1 and (ranks is None or ranks.is_main):
        show("\n\n".join(_comparison(compared) for compared in _compared(results, targets)))


def _checked_prompts(target: Target, sets: "dict[str, list[Prompt]]", options: Namespace) -> Encoded:
    """The prompts as tokens of a model, which is checked without its weights."""
    from dcr_ds.diagnose.entk import check_entk
    from dcr_ds.models.check import build_on_meta

    encode = encoder(target.tokenizer())
    prompts = {name: [encode(row) for row in rows] for name, rows in sets.items()}
    check_entk(build_on_meta(target.files.source), prompts, options.k, options.parameters)
    return prompts


def _measure(target: Target, prompts: Encoded, options: Namespace, ranks: "Ranks | None") -> "EntkResult":
    from dcr_ds.diagnose.entk import entk

    return entk(target.load(ranks.device if ranks else None), prompts, options.k, options.parameters)


def _write(result: "EntkResult", target: Target, options: Namespace) -> None:
    from dcr_ds.diagnose.entk import write_entk

    if folder := folder_of(target, "entk", options.out):
        write_entk(result, folder)
    show(_table(target.title, result) + (f"\n{folder}" if folder else "") + "\n")


@contextmanager
def _ranks() -> "Iterator[Ranks | None]":
    """The ranks of a launcher; None for a single process, which needs no process group."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield None
        return
    from dcr_ds.engine.distributed import joined

    with joined() as ranks:
        yield ranks


def _table(title: str, result: "EntkResult") -> str:
    names = list(result.counts)
    words = [name.replace("_", " ") for name in names]
    lines = [f"{title}: mean ‖K(x', x)‖ / ‖K(x', x')‖ of rows x' and columns x, k = {result.k}, with 95% intervals"]
    lines.append(" " * 18 + "".join(f"{name:>22}" for name in words))
    for i, name in enumerate(words):
        cells = (_cell(result.means[i, j], result.low[i, j], result.high[i, j]) for j in range(len(words)))
        lines.append(f"{name:<18}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def _compared(results: "dict[str, EntkResult]", targets: "list[Target]") -> "Iterator[dict[str, EntkResult]]":
    """The models of each comparison, the reference first: all with the first one, then aligned ones with controls."""
    yield results
    for control in targets:
        aligned = control.title.removesuffix(CONTROL) + ALIGNED
        if control.run and control.title.endswith(CONTROL) and aligned in results:
            yield {title: results[title] for title in (control.title, aligned)}


def _comparison(results: "dict[str, EntkResult]") -> str:
    """The blocks of seemingly toxic and toxic prompts of each model, and their change from the first model."""
    from dcr_ds.diagnose.entk import symmetric

    first = next(iter(results))
    names = list(results[first].counts)
    block: tuple[int, int] = (names.index(PAIRED[0]), names.index(PAIRED[1]))
    of_angle = {title: symmetric(result) for title, result in results.items()}
    return "\n".join(
        [
            f"Blocks of seemingly toxic and toxic prompts, and the change from {first} with its 95% interval",
            "x' seemingly toxic, x toxic:",
            *_changes(results, block),
            "x' toxic, x seemingly toxic:",
            *_changes(results, block[::-1]),
            "both, symmetric: ‖K(x', x)‖ / √(‖K(x', x')‖ ‖K(x, x)‖):",
            *_changes(of_angle, block),
        ]
    )


def _changes(results: "dict[str, EntkResult]", block: tuple[int, int]) -> list[str]:
    from dcr_ds.diagnose.entk import difference

    width = max(map(len, results))
    first = next(iter(results.values()))
    lines = []
    for title, result in results.items():
        line = f"  {title:<{width}}  {_cell(result.means[block], result.low[block], result.high[block])}"
        if result is not first:
            mean, low, high = (values[block] for values in difference(first, result))
            line += f"  {_cell(mean, low, high, sign='+')}"
        lines.append(line)
    return lines


def _cell(mean: float, low: float, high: float, sign: str = "") -> str:
    ends = (f"{low:{sign}.2f}", f"{high:{sign}.2f}")
    return f"{mean:{sign}.3f} ({' to '.join(ends) if sign else '–'.join(ends)})"
