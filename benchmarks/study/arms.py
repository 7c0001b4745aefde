"""The arms of the study as arms.yaml declares them, and the part of the protocol that their rows depend on."""

import hashlib
import json
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rows import place, read_cost, seeds_done

from dcr_ds.errors import UserError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RECIPE, TEMPLATE = HERE / "recipe.yaml", HERE / "no_system.jinja"
SETTINGS = (RECIPE, TEMPLATE, HERE / "sets.yaml")
NOTE = "protocol.txt"  # in the folder of a run
ATTACKED_SEEDS = 5  # seeds from this one on answer no attacked prompts

Group = Literal["main", "baseline", "ablation"]


class Arm(BaseModel):
    """One arm; arms.yaml describes the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: Group
    seeds: int = Field(ge=1)
    of: str | None = None
    stages: list[Literal["refine", "align"]] = []
    change: dict[str, str | int | float | bool] = {}
    prepare: list[str] = []
    apply: list[str] = []
    answers: bool = True
    attacks: bool = False

    @model_validator(mode="after")
    def _combinations(self) -> "Arm":
        if self.apply and (self.stages or self.prepare or not self.of):
            raise ValueError("apply: needs `of`, and neither stages nor prepare")
        if (self.change or self.prepare) and not self.stages:
            raise ValueError("change and prepare: need stages")
        return self


def read_arms(file: Path = HERE / "arms.yaml") -> dict[str, Arm]:
    """The arms by name, each after the one that it starts from.

    Raises:
        UserError: an arm has a wrong field, or starts from one that does not come before it.
    """
    arms: dict[str, Arm] = {}
    for name, fields in yaml.safe_load(file.read_text(encoding="utf-8")).items():
        try:
            arm = Arm.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "fields"
            raise UserError(f"{file}: {name}: {where}: {first['msg']}") from None
        if arm.of is not None and (arm.of not in arms or arms[arm.of].seeds < arm.seeds):
            raise UserError(f"{file}: {name}: of: {arm.of!r} is no arm above it with {arm.seeds} seeds or more")
        arms[name] = arm
    return arms


def protocol_hash(name: str, arms: dict[str, Arm]) -> str:
    """What the rows of an arm depend on: the recipe, the template, the sets, and the arm with those it starts from."""
    lineage, current = [], name
    while current is not None:
        arm = arms[current]
        lineage.append(arm.model_dump(mode="json", exclude={"group", "seeds"}))
        current = arm.of
    content = [file.read_text(encoding="utf-8") for file in SETTINGS] + [json.dumps(lineage, sort_keys=True)]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:16]


def is_noted(home: Path, protocol: str) -> bool:
    """Whether the folder of a run says that it follows a protocol; not if it says nothing.

    Raises:
        UserError: it says that it follows another one.
    """
    note = home / NOTE
    if not note.is_file():
        return False
    if note.read_text(encoding="utf-8").strip() != protocol:
        raise UserError(f"{home}: made with another arm, recipe or sets; delete it, or name another --out")
    return True


def refuse_other_protocols(arms: dict[str, Arm], results: Path) -> None:
    """Results that were made under another protocol, or by different judges, are neither added to nor reported.

    Raises:
        UserError: which results.
    """
    judges: dict[str, str] = {}
    for name in arms:
        for seed in seeds_done(name, results):
            cost, file = read_cost(name, seed, results), place(name, seed, results).cost
            if cost["protocol"] != protocol_hash(name, arms):
                raise UserError(
                    f"{file}: made with another arm, recipe or sets than those of {HERE}; restore them, delete the "
                    f"results of {name}, or name another --results"
                )
            judges.setdefault(cost["judge"], str(file))
    if len(judges) > 1:
        (first, one), (second, other), *_ = judges.items()
        raise UserError(
            f"{one} was judged by {first}, {other} by {second}; judge the kept answers again: "
            "python benchmarks/study/rejudge.py --out FOLDER_OF_THE_RUNS"
        )
