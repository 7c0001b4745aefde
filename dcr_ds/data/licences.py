"""The licence of a data set, where its source is a known one: built in, a declared benchmark, or on a short list."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from dcr_ds.data.benchmarks import declarations
from dcr_ds.recipe import DataSource

FILE = Path(__file__).parent / "known_sets.yaml"
BUILTIN = "builtin"


class Licence(NamedTuple):
    """A licence, where it is stated, and the declared benchmark that the source belongs to, if it does."""

    name: str
    stated_in: str
    benchmark: str | None = None


def licence_of(source: DataSource) -> Licence | None:
    """The licence of a source; None for any other file, URL or hub id: nothing is concluded from names or contents."""
    if source.source == BUILTIN:
        return Licence("Apache-2.0", "the LICENSE of this project")
    for name, declaration in declarations().items():
        online = declaration.online
        # a subset or a split of a hub data set may be another benchmark, or for training, under the same licence
        if online.source == source.source:
            is_same = (online.subset, online.split or "train") == (source.subset, source.split or "train")
            return Licence(declaration.licence, f"the benchmark {name}", name if is_same else None)
    if licence := _known().get(source.source):
        return Licence(licence, f"the dataset card of {source.source}")
    return None


@cache
def _known() -> dict[str, str]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))
