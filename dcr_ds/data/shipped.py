"""The built-in data sets: contrastive pairs, general conversations, refusals and preferences."""

from pathlib import Path

from dcr_ds.data.formats import parse_table
from dcr_ds.data.tables import Origin, Table, numbered, table_of
from dcr_ds.recipe import DataSource

FOLDER = Path(__file__).parent / "builtin"
FILES = {
    "seemingly_toxic": "pairs.jsonl",
    "toxic": "pairs.jsonl",
    "general": "general.jsonl",
    "refusals": "refusals.jsonl",
    "preferences": "preferences.jsonl",
}
SPLITS = ("train", "held_out")


def read_shipped(source: DataSource, name: str, field: str) -> Table:
    """One split of a built-in set; each pair contributes one prompt to seemingly_toxic and one to toxic."""
    split = source.split or "train"
    origin = Origin(field, f"builtin ({split})", name)
    if name not in FILES:
        raise origin.error(f"there is no built-in set {name!r}; built-in sets: {', '.join(FILES)}")
    if split not in SPLITS:
        raise origin.error(f"no split {split!r}; built-in sets have the splits {' and '.join(SPLITS)}")
    if source.revision:
        raise origin.error(f"revision {source.revision!r} applies to hub data sets; remove it")
    path = FOLDER / FILES[name]
    rows = parse_table(path.read_bytes(), path.name, Origin(field, str(path), name)).rows
    cells = [row.cells for row in rows if row.cells["split"] == split]
    if FILES[name] == "pairs.jsonl":
        cells = [_one_of_pair(pair, name) for pair in cells]
    return table_of(numbered(cells), origin)


def _one_of_pair(pair: dict, name: str) -> dict:
    shared = {key: pair[key] for key in ("pair", "category", "trigger", "split")}
    return {"id": f"{pair['pair']}/{name}", "prompt": pair[name], "label": name, **shared}
