"""The arms of the study as arms.yaml declares them, and the part of the protocol that their rows depend on."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rows import place, read_cost, seeds_done

from dcr_ds.commands.baseline import BASELINES
from dcr_ds.errors import UserError
from dcr_ds.recipe import load_recipe
from dcr_ds.recipe.layout import TRAINING_STAGES
from dcr_ds.recipe.yaml_files import read_yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RECIPE, TEMPLATE = HERE / "recipe.yaml", HERE / "no_system.jinja"
ARMS = HERE / "arms.yaml"
SETTINGS = (RECIPE, TEMPLATE, HERE / "sets.yaml")
NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")  # of an arm: a folder has this name
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
        if self.stages != [stage for stage in TRAINING_STAGES if stage in self.stages]:
            raise ValueError(f"stages: each once, in the order {', '.join(TRAINING_STAGES)}")
        if self.attacks and not self.answers:
            raise ValueError("attacks: need answers")
        return self


def read_arms(file: Path = ARMS) -> dict[str, Arm]:
    """The arms by name, each after the one that it starts from.

    Raises:
        UserError: not valid YAML, or an arm has a wrong field, or starts from one that does not come before it.
    """
    arms: dict[str, Arm] = {}
    written, _ = read_yaml(file.read_text(encoding="utf-8"), str(file), Any)
    if not isinstance(written, dict):
        raise UserError(f"{file}: needs arms, as NAME: {{group: …, seeds: …}}")
    for name, fields in written.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(f"{file}: {name}: not a name of an arm; use small letters, digits, '-' and '.'")
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


def check_runnable(arms: dict[str, Arm], file: Path = ARMS) -> None:
    """Refuse, before hours of training, what an arm would be refused for when it runs.

    Raises:
        UserError: an arm changes a field that recipes do not have, or names no baseline of its kind.
    """
    for name, arm in arms.items():
        try:
            load_recipe(str(RECIPE), [(field, str(value)) for field, value in arm.change.items()])
        except UserError as error:
            raise UserError(f"{file}: {name}: change: {error}") from None
        for field, words, made_from in (("prepare", arm.prepare, "RECIPE"), ("apply", arm.apply, "MODEL")):
            there = [baseline for baseline, of in BASELINES.items() if of.made_from == made_from]
            if words and words[0] not in there:
                raise UserError(f"{file}: {name}: {field}: {words[0]!r} is not one of {', '.join(there)}")


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
    """Results of another protocol, of unplanned seeds, or by different judges, are neither added to nor reported.

    Raises:
        UserError: which results.
    """
    judges: dict[str, str] = {}
    for name in arms:
        for seed in seeds_done(name, results):
            cost, file = read_cost(name, seed, results), place(name, seed, results).cost
            if seed >= arms[name].seeds:
                raise UserError(f"{file}: {name} has the seeds 0 to {arms[name].seeds - 1}; move it elsewhere")
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
