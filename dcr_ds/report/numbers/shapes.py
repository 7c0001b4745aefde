"""The types of what a report reads from the files of a run. A field that no section reads is not checked.

Fields that earlier versions did not write may be missing; numbers that were not finite are null.
"""

from functools import cache
from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from dcr_ds.errors import UserError
from dcr_ds.files import REPEAT, json_at, placed_lines
from dcr_ds.label_agreement import Label

Number = float | None
MAX_SHOWN = 100  # characters of a wrong value in a message


class Summary(TypedDict, total=False):
    """summary.json of a stage."""

    layer: int
    start: dict[str, Number] | None
    final: dict[str, Number] | None
    best: dict[str, Number] | None
    exported_step: int | None
    loss_first: Number
    loss_last: Number
    steps: int | None
    samples: int | None
    tokens: Number
    wall_seconds: Number
    measure_seconds: Number
    retain_seconds: Number
    peak_memory_bytes: Number
    stopped_because: str | None
    warnings: list[str] | None


class DataSetFacts(TypedDict, total=False):
    rows: int | None
    sha256: str
    source: str


class Environment(TypedDict, total=False):
    """environment.json."""

    device: str
    world_size: int
    packages: dict[str, str] | None
    commit: str | None
    model: dict[str, Any] | None
    data: dict[str, DataSetFacts]
    benchmarks: list[str]
    command: str
    notes: list[str]
    warnings: list[str]
    overlaps: list[str]


class Counts(TypedDict):
    value: Number
    low: Number
    high: Number
    n: int


class Counted(TypedDict, total=False):
    counted: list[str]


class Scores(Counts):
    """scores.json of a benchmark."""

    wanted: Literal["comply", "refuse"]
    judge: str
    metric: str
    counted: list[str]
    degenerate: int
    unparsed: int
    by_judge: NotRequired[dict[str, Counted]]
    by_category: NotRequired[dict[str, Counts] | None]
    attacked: NotRequired[str | None]
    counterpart: NotRequired[str | None]


class GeneralLoss(TypedDict):
    loss: float
    n: int
    tokens: NotRequired[int]


class Accuracy(TypedDict):
    metric: str
    value: float
    low: float
    high: float
    n: int
    rows_hash: NotRequired[str]


class Ability(TypedDict):
    """ability.json: accuracy by task."""

    tasks: dict[str, Accuracy]


class Part(TypedDict):
    seconds: float
    generated_tokens: NotRequired[int]


class Cost(TypedDict):
    seconds: float
    generated_tokens: int
    parts: dict[str, Part]
    device: str


class Opening(TypedDict):
    text: str
    refusals: float
    ordinary: float
    source: str


class FirstToken(TypedDict):
    text: str
    shared: bool


class Openings(TypedDict):
    openings: list[Opening]
    first_tokens: list[FirstToken]
    refusals_covered: float
    ordinary_covered: float


class Generation(TypedDict):
    """A row of generations.jsonl."""

    id: str
    prompt: str
    completion: str
    category: NotRequired[str | None]
    pair: NotRequired[str | None]
    settings_hash: NotRequired[str]
    template_variables: NotRequired[dict[str, str]]


class Verdict(TypedDict):
    id: str
    label: Label
    score: NotRequired[Number]


class LogOddsRow(TypedDict):
    id: str
    log_odds: FiniteFloat
    margin: NotRequired[FiniteFloat | None]
    pair: NotRequired[str | None]


class MetricsRow(BaseModel, extra="allow"):
    """A row of metrics.jsonl: numbers by name."""

    __pydantic_extra__: dict[str, Number]
    step: int


def read_object(path: Path, shape: Any, advice: str = f"remove the file, and {REPEAT}") -> Any:
    """The mapping in a JSON file; None without a file.

    Args:
        shape: one of the types above.
        advice: what to do about a damaged file.

    Raises:
        UserError: it is damaged, or a field is missing or of another type.
    """
    return _checked(path, path.read_bytes(), shape, advice) if path.is_file() else None


def read_rows(path: Path, shape: Any, advice: str = f"remove the line, and {REPEAT}") -> list[dict[str, Any]]:
    """The rows of a JSON Lines file; none without a file. See `read_object`.

    Raises:
        UserError: naming the first line that is damaged, lacks a field or has one of another type, or repeats an id.
    """
    rows, ids = [], set()
    for place, content in placed_lines(path):
        row = _checked(place, content, shape, advice)
        if row.get("id") in ids:
            raise UserError(f"{place}: the id {row['id']!r} is there twice; {advice}")
        ids |= {row["id"]} if "id" in row else set()
        rows.append(row)
    return rows


def _checked(place: object, content: bytes, shape: Any, advice: str) -> dict[str, Any]:
    value = json_at(place, content, advice)
    try:
        _adapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        raise UserError(f"{place}: {_problem(error)}; {advice}") from None
    return value


def _problem(error: ValidationError) -> str:
    problems = [(".".join(map(str, problem["loc"])), problem) for problem in error.errors()]
    if missing := [field for field, problem in problems if problem["type"] == "missing"]:
        return f"has no {', '.join(missing)}, as another version or program wrote it"
    field, problem = problems[0]
    if not field:
        return "is not a mapping"
    message = problem["msg"]
    return f"{field}: {message[0].lower()}{message[1:]} (got {str(problem['input'])[:MAX_SHOWN]!r})"


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)
