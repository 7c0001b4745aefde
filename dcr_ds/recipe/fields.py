"""What every section of a recipe is made of: strict records, and data sets."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Auto = Literal["auto"]
PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", validate_default=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


def _as_text(value: Any) -> Any:
    """YAML reads `true` and `1` as no strings; a cell of a data set is compared as text."""
    if isinstance(value, list):
        return [_as_text(one) for one in value]
    return str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, int | float) else value


Cell = str | bool | int | float
Texts = Annotated[str | list[str], BeforeValidator(_as_text, json_schema_input_type=Cell | list[Cell])]


class DataSource(Section):
    """One data set. A plain string in its place is its `source`."""

    source: str = Field("builtin", description="builtin, a file (csv, json, jsonl, parquet; .gz), a URL or a hub id")
    subset: str | None = Field(None, description="configuration of a hub data set, where it has several")
    split: str | None = Field(None, description="split of a hub data set (default: train)")
    revision: str | None = Field(None, description="branch, tag or commit of a hub data set")
    columns: dict[str, str] = Field({}, description="our column name → the column's name in the source")
    where: dict[str, Texts] = Field({}, description="keep only rows whose column holds this (or one of these)")
    first_human_turn: bool = Field(False, description="the prompt is the first Human turn of an HH-RLHF dialogue")
    rows: PositiveInt | None = Field(None, description="draw this many rows (default: all, in file order)")
    skip: int = Field(0, ge=0, description="leave out this many rows of the draw first (disjoint draws of one file)")
    seed: int = Field(0, description="seed of the draw")


def _source(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


Data = Annotated[DataSource, BeforeValidator(_source, json_schema_input_type=str | DataSource)]
