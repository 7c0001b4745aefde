"""The prompts that baselines are computed from: the built-in training split, or files."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dcr_ds.data.conversations import read_conversations
from dcr_ds.data.prompts import read_prompts
from dcr_ds.data.records import DataSet, Prompt, PromptSet, digest
from dcr_ds.data.sampler import draw
from dcr_ds.errors import UserError
from dcr_ds.recipe import DataSource

# role of a set → the built-in set, as in recipes
ROLES = {"harmful": "toxic", "harmless": "general", "seemingly_toxic": "seemingly_toxic"}


def option_of(role: str) -> str:
    """The option that names a file of a role's prompts."""
    return f"--{role.replace('_', '-')}"


def read_role(role: str, path: str | None) -> PromptSet:
    """The prompts of a role: of a file as recipes read it, or of the built-in training split.

    Raises:
        UserError: the file cannot be read.
    """
    name, field = ROLES[role], option_of(role)
    if path is not None or name != "general":
        return read_prompts(DataSource(source=path) if path else DataSource(), name, field)
    answered = read_conversations(DataSource(), name)
    rows = [Prompt(row.id, row.prompt, context=row.messages[:-2]) for row in answered.rows]
    return DataSet(name, answered.source, rows, digest(rows))


def sample(prompts: PromptSet, counts: Sequence[int], seed: int, role: str) -> list[PromptSet]:
    """Disjoint random samples of the given sizes.

    Raises:
        UserError: there are too few prompts.
    """
    asked = sum(counts)
    if len(prompts.rows) < asked:
        raise UserError(
            f"{role.replace('_', ' ')} prompts: {asked} are needed ({' + '.join(map(str, counts))}), "
            f"{prompts.source} has {len(prompts.rows)}; ask for fewer, or name a larger file with {option_of(role)}"
        )
    keyed = sorted(prompts.rows, key=lambda row: row.id)
    order = draw(f"{seed}/baseline", len(keyed), 0, asked)
    parts, start = [], 0
    for count in counts:
        rows = [keyed[index] for index in order[start : start + count]]
        parts.append(replace(prompts, rows=rows, sha256=digest(rows)))
        start += count
    return parts


def describe(prompts: DataSet) -> dict[str, Any]:
    """What a record says of a set: source, number of rows and their hash."""
    return {"source": prompts.source, "rows": len(prompts.rows), "sha256": prompts.sha256}
