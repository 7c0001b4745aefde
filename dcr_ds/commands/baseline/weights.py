"""What the baselines that change weights share: options, prompts, the changed copy of the model, and its record."""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from dcr_ds.baselines.prompts import ROLES, describe, sample
from dcr_ds.commands.baseline.shared import (
    Source,
    add_prompt_sets,
    baseline_parser,
    check_out,
    locate_source,
    read_prompt_sets,
)
from dcr_ds.commands.parser import positive_int, show
from dcr_ds.data.conversations import read_conversations
from dcr_ds.data.kept import kept_rows
from dcr_ds.data.records import PromptSet
from dcr_ds.errors import UserError
from dcr_ds.recipe import DataSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dcr_ds.baselines.edits import Edited
    from dcr_ds.baselines.subject import Subject

KIND = "weights"  # in baseline.json of a model folder; folders of hooks have none


class Method(NamedTuple):
    """A published change of weights.

    Attributes:
        paper: for baseline.json.
        check: raises UserError for a model that it cannot be applied to; takes one on the meta device.
        find: computes the change from a subject and the settings, and reports its steps.
    """

    name: str
    paper: str
    check: "Callable[[PreTrainedModel], Any]"
    find: "Callable[[Subject, Any, Callable[[str], None]], Edited]"


def weights_parser(name: str, description: str, validation: int | None) -> ArgumentParser:
    """A parser with the options of the model and of the prompts.

    Args:
        validation: default number of validation prompts per set; None: the method has none.
    """
    parser = baseline_parser(name, description)
    add_prompt_sets(parser, tuple(ROLES))
    help_train = "training prompts per set (default: 128)"
    parser.add_argument("--train", type=positive_int, default=128, metavar="N", help=help_train)
    if validation is not None:
        help_validation = f"validation prompts per set (default: {validation})"
        parser.add_argument("--validation", type=positive_int, default=validation, metavar="N", help=help_validation)
    parser.add_argument(
        "--batch-size", type=positive_int, default=16, metavar="N", help="prompts per pass (default: 16)"
    )
    return parser


def change_weights(method: Method, options: Namespace, settings: Any, counts: Mapping[str, Sequence[int]]) -> None:
    """Compute a change of weights and write the changed model.

    Args:
        settings: a dataclass, for the method and for baseline.json.
        counts: training and validation prompts by role.

    Raises:
        UserError: what the command line names cannot be used, or the method finds no change.
    """
    from dcr_ds.baselines.edits import write_edited
    from dcr_ds.models.check import build_on_meta
    from dcr_ds.models.tokenizer import template_hash

    check_out(options.out)
    source = locate_source(options)
    if source.files.adapter is not None:
        raise UserError(
            f"{options.model}: is an adapter, and {method.name} changes the weights of a whole model; merge it first: "
            f"dcr-ds export {options.model} --merge --out MODEL"
        )
    method.check(build_on_meta(source.files.source))
    sets = read_prompt_sets(options, tuple(ROLES))
    sampled = {role: sample(sets[role], counts[role], options.seed, role) for role in ROLES}
    start = time.perf_counter()
    edited = method.find(_subject(source, sampled, options.batch_size), settings, show)
    record = {
        "kind": KIND,
        "baseline": method.name,
        "paper": method.paper,
        "source": source.name,
        "template": template_hash(source.tokenizer()),
        "settings": asdict(settings) | {"seed": options.seed},
        "data": {role: [describe(part) for part in parts] for role, parts in sampled.items()},
        "seconds": round(time.perf_counter() - start, 1),
    }
    prompts = kept_rows({role: [row for part in parts for row in part.rows] for role, parts in sampled.items()})
    write_edited(source.files.source, edited, record, prompts, options.out, source.section.template)
    show(f"{len(edited.edits)} weights changed; {options.out} is a model folder:")
    show(f"  dcr-ds evaluate {method.name}={options.out} --suite quick --out runs")


def _subject(source: Source, sampled: Mapping[str, Sequence[PromptSet]], batch_size: int) -> "Subject":
    """The loaded model with the prompts as tokens, and the refusal openings as evaluation finds them."""
    from dcr_ds.baselines.subject import NO_PROMPTS, Split, Subject, encoded, positions_after_prompt
    from dcr_ds.evaluate.log_odds import openings_of

    tokenizer = source.tokenizer()
    refusals, ordinary = (read_conversations(DataSource(), name) for name in ("refusals", "general"))
    openings = openings_of(tokenizer, refusals, ordinary)
    prompts: dict[str, Split] = {}
    notes: list[str] = []
    for role, parts in sampled.items():
        train, validation = [*(encoded(role, part.rows, tokenizer, notes) for part in parts), NO_PROMPTS][:2]
        prompts[role] = Split(train, validation)
    for note in notes:
        show(note)
    return Subject(source.load(), prompts, openings, positions_after_prompt(tokenizer), batch_size)
