"""The prompts of a diagnosis: built-in sets or files, sampled so that both prompts of a pair are taken."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import Any

from dcr_ds.commands.parser import positive_int
from dcr_ds.data.conversations import read_conversations
from dcr_ds.data.load import refuse_common_prompts
from dcr_ds.data.prompts import read_prompts
from dcr_ds.data.records import Conversation, DataSet, Prompt
from dcr_ds.data.sampler import draw_prompts
from dcr_ds.errors import UserError
from dcr_ds.recipe import DataSource

OPTIONS = {"seemingly_toxic": "--seemingly-toxic", "toxic": "--toxic", "general": "--general"}
SETS = tuple(OPTIONS)
PAIRED = SETS[:2]


def add_prompts(parser: ArgumentParser, names: Sequence[str], split: str, count: int | None) -> None:
    """Add the options of the sets: files, split of the built-in ones, number of prompts and seed."""
    for name in names:
        parser.add_argument(OPTIONS[name], metavar="FILE", help=f"{name.replace('_', ' ')} prompts (default: built-in)")
    help_split = f"of the built-in sets (default: {split})"
    parser.add_argument("--split", choices=("train", "held_out"), default=split, help=help_split)
    help_count = f"per category (default: {count or 'all'})"
    parser.add_argument("--prompts", type=positive_int, default=count, metavar="N", help=help_count)
    parser.add_argument("--seed", type=int, default=0, help="of the sample of prompts (default: 0)")


def read_sets(options: Namespace, names: Sequence[str]) -> dict[str, list[Prompt]]:
    """The sampled prompts by category.

    Raises:
        UserError: a set cannot be read, has fewer prompts than asked for, or has prompts in common with another one.
    """
    read = {name: _read(options, name) for name in names}
    for name, data_set in read.items():
        for note in data_set.notes if getattr(options, name) else []:
            print(f"{name.replace('_', ' ')}: {note}", file=sys.stderr)
    seemingly_toxic, toxic = PAIRED
    refuse_common_prompts(read[seemingly_toxic], read[toxic], (OPTIONS[seemingly_toxic], OPTIONS[toxic]))
    sets = {name: _prompts_of(data_set) for name, data_set in read.items()}
    for name, rows in sets.items():
        if options.prompts and len(rows) < options.prompts:
            raise UserError(
                f"{name.replace('_', ' ')}: {options.prompts} prompts asked for, the set has {len(rows)}; lower "
                f"--prompts, or name a larger file with {OPTIONS[name]}"
            )
    return {
        name: draw_prompts(rows, f"{options.seed}/diagnose", options.prompts or len(rows))
        for name, rows in sets.items()
    }


def encoder(tokenizer: Any) -> Callable[[Prompt], list[int]]:
    """The function from a prompt to its token ids in the chat template."""
    from dcr_ds.models.chat import encode_within_context
    from dcr_ds.models.rows import encode_row

    return lambda row: encode_row("diagnose", row, lambda row: encode_within_context(tokenizer, row.messages))


def _read(options: Namespace, name: str) -> DataSet:
    path = getattr(options, name)
    source = DataSource(source=path) if path else DataSource(split=options.split)
    read = read_prompts if name in PAIRED else read_conversations
    return read(source, name, OPTIONS[name])


def _prompts_of(data_set: DataSet) -> list[Prompt]:
    """The prompts of a set; of a conversation its first question, with the system prompt before it."""
    return [row if isinstance(row, Prompt) else _first_question(row) for row in data_set.rows]


def _first_question(row: Conversation) -> Prompt:
    at = next(index for index, message in enumerate(row.messages) if message["role"] == "user")
    return Prompt(row.id, row.messages[at]["content"], context=row.messages[:at])
