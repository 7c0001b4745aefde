"""The file of the prompts that a baseline was made from, which stays with it for the leakage check."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dcr_ds.data.records import AnyRecord, DataSet, Prompt, PromptSet, digest, prompts_of
from dcr_ds.errors import UserError
from dcr_ds.files import read_jsonl

FIELDS = ("set", "id", "prompt")


def kept_rows(sets: Mapping[str, Sequence[AnyRecord]]) -> list[dict[str, str]]:
    """The rows of the file: the set, id, prompt and, where there is one, pair of each record.

    Args:
        sets: the records by name of their set.
    """
    return [
        {"set": name, "id": row.id, "prompt": row.prompt} | ({"pair": row.pair} if row.pair is not None else {})
        for name, records in sets.items()
        for row in prompts_of(records)
    ]


def read_kept(file: Path) -> dict[str, PromptSet]:
    """The prompts of a file by set.

    Raises:
        UserError: a line is damaged, or the file is empty.
    """
    sets: dict[str, list[Prompt]] = {}
    for number, row in enumerate(read_jsonl(file, FIELDS), 1):
        pair = row.get("pair")
        if not all(isinstance(row[name], str) for name in FIELDS) or not isinstance(pair, str | None):
            raise UserError(f"{file}, row {number}: {', '.join(FIELDS)} and pair must be text; make the baseline again")
        sets.setdefault(row["set"], []).append(Prompt(row["id"], row["prompt"], pair=pair))
    if not sets:
        raise UserError(f"{file}: is empty; make the baseline again")
    return {name: DataSet(name, str(file), rows, digest(rows)) for name, rows in sets.items()}
