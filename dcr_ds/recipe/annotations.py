"""What the types of fields say about values that are read from text."""

from types import NoneType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel


def wants_text(annotation: Any) -> bool:
    """Whether a single value is text: it may be text, or the short form of a section, and no number or truth."""
    kinds = branches(annotation)
    return not {int, float, bool, Any} & set(kinds) and any(kind is str or _is_section(kind) for kind in kinds)


def is_section(annotation: Any) -> bool:
    """Whether every value is a section, which may have a short form."""
    return all(map(_is_section, branches(annotation)))


def may_be_none(annotation: Any) -> bool:
    return NoneType in branches(annotation)


def inside(annotation: Any, key: str | None = None) -> Any:
    """The type of the items of a list, or of the value of a key; Any where it is not known."""
    kinds: list[Any] = []
    for kind in branches(annotation):
        arguments = get_args(kind)
        if key is None:
            kinds += arguments if get_origin(kind) is list else []
        elif get_origin(kind) is dict:
            kinds.append(arguments[1])
        elif _is_section(kind) and key in kind.model_fields:
            kinds.append(kind.model_fields[key].annotation)
    return Union[tuple(kinds)] if kinds else Any  # noqa: UP007  # of a computed tuple


def branches(annotation: Any) -> list[Any]:
    """The types of a union; a literal counts as the types of its values."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return branches(arguments[0])
    if origin is Literal:
        return [type(value) for value in arguments]
    if origin is not None and origin not in (list, dict):  # a union
        return [branch for part in arguments for branch in branches(part)]
    return [annotation]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
