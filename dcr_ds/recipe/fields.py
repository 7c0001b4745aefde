"""Base types of recipe sections: strict records and data sets."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from dcr_ds.recipe.annotations import branches

Auto = Literal["auto"]
MAX_INT = 2**31 - 1  # of counts; larger ones overflow in libraries
MAX_SEED = 2**32 - 1  # of NumPy
PositiveInt = Annotated[int, Field(ge=1, le=MAX_INT)]
Count = Annotated[int, Field(ge=0, le=MAX_INT)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", validate_default=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `yes` for a number, which Python reads as 1, and empty text, as from a variable that is not set."""
        field = cls.model_fields[str(info.field_name)]
        kinds = set(branches(field.annotation))
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise PydanticCustomError("number", "input should be a number")
        if value == "" and kinds == {str} and not field.is_required() and field.default != "":
            raise PydanticCustomError("text", "input should not be empty; leave it out for the default")
        return value


def _as_text(value: Any) -> Any:
    """Turn YAML's booleans and numbers into text, as which the cells of a data set are compared."""
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    return str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, int | float) else value


Cell = str | bool | int | float
Texts = Annotated[str | list[str], BeforeValidator(_as_text, json_schema_input_type=Cell | list[Cell])]


class DataSource(Section):
    """One data set. A plain string in its place is its `source`."""

    source: str = Field(
        "builtin", description="builtin, a file (csv, tsv, txt, json, jsonl, parquet; .gz), a URL or a hub id"
    )
    subset: str | None = Field(None, description="configuration of a hub data set")
    split: str | None = Field(None, description="split of a hub data set (default: train)")
    revision: str | None = Field(None, description="branch, tag or commit of a hub data set")
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 that a file or the content of a URL must have"
    )
    columns: dict[str, str] = Field({}, description="column in the source by our column name")
    where: dict[str, Texts] = Field(
        {}, description="keep only rows with this value (or one of these values) in a column"
    )
    first_human_turn: bool = Field(False, description="use the first Human turn of an HH-RLHF dialogue as the prompt")
    rows: PositiveInt | None = Field(None, description="sample this many rows (default: all, in file order)")
    skip: Count = Field(0, description="skip this many sampled rows first; for disjoint samples of one file")
    seed: int = Field(0, ge=-MAX_SEED, le=MAX_SEED, description="seed of the sampling")
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="most bad rows, as a share, that are left out; five always are, unless this is 0"
    )


def _source(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


Data = Annotated[DataSource, BeforeValidator(_source, json_schema_input_type=str | DataSource)]
