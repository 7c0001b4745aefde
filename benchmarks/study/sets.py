"""What the study measures: pairs of sets and the attacked benchmark, of sets.yaml, and the judge of answers."""

from typing import NamedTuple

import yaml
from arms import HERE

JUDGE = "rules"


class PairOfSets(NamedTuple):
    """A harmless set and a harmful one; `rows` prompts of each are sampled (None: all)."""

    harmless: str
    harmful: str
    rows: int | None = None
    answered: bool = False

    def entries(self) -> list[dict]:
        """The two as benchmarks of a recipe."""
        return [{"name": name, "rows": self.rows} for name in (self.harmless, self.harmful)]


class Plan(NamedTuple):
    """What is measured: pairs of sets by name, and the attacked benchmark."""

    pairs: dict[str, PairOfSets]
    attacked: dict


def read_plan() -> Plan:
    written = yaml.safe_load((HERE / "sets.yaml").read_text(encoding="utf-8"))
    pairs = {name: PairOfSets(**fields) for part in ("test", "development") for name, fields in written[part].items()}
    return Plan(pairs, written["attacked"])
