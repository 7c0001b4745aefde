"""Read YAML: text as it is written, no key twice, and bounded size, nesting and aliases."""

import re
from typing import Any

import yaml

from dcr_ds.errors import UserError
from dcr_ds.recipe.annotations import inside, may_be_none, wants_text

MAX_CHARACTERS = 1 << 20
MAX_VALUES = 100_000  # with each alias counted as the value it refers to
MAX_DEPTH = 40
NULL, MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"
PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _Loader(yaml.SafeLoader):
    """Numbers as in JSON, and in hexadecimal: no dates, no base 60 (1:30), no octal numbers (010)."""


_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9_]+([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
    ),
}
_OTHERS = {
    first: [rule for rule in rules if rule[0] not in (*_NUMBERS, "tag:yaml.org,2002:timestamp")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_implicit_resolvers = _OTHERS
for _tag, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, _pattern, list("-+.0123456789"))


def read_yaml(text: str, place: str, annotation: Any) -> tuple[Any, yaml.Node | None]:
    """The value of a YAML document and its node, which knows the line of each part.

    Args:
        place: the file, for messages.
        annotation: type of the value: where it allows text and no number, `no`, `0012` and `2024-01-01` are text.

    Raises:
        UserError: naming place and line: not valid YAML, a repeated key, a limit.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{place}: has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, None
        _count(node, place, {}, [])
        return _Builder(loader, place).build(node, annotation), node
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{place}{where}: not valid YAML ({_reason(error)})") from None
    except RecursionError:
        raise UserError(f"{place}: is nested too deeply; at most {MAX_DEPTH} levels are read") from None


class _Builder:
    """Builds the values of nodes."""

    def __init__(self, loader: _Loader, place: str) -> None:
        self._loader, self._place = loader, place

    def build(self, node: yaml.Node, annotation: Any) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, annotation)
        if node.tag not in PLAIN_TAGS:
            raise _error(self._place, node, f"the tag {node.tag.removeprefix('tag:yaml.org,2002:')!r} is not supported")
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, inside(annotation)) for item in node.value]
        assert isinstance(node, yaml.MappingNode)
        return self._mapping(node, annotation)

    def _mapping(self, node: yaml.MappingNode, annotation: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error(self._place, key, "a key must be text")
            if key.value in lines:
                raise _error(
                    self._place, key, f"{key.value!r} is here twice, first in line {lines[key.value]}; merge the two"
                )
            lines[key.value] = key.start_mark.line + 1
            if key.tag == MERGE:
                merged = self._merged(value, annotation)
            else:
                values[key.value] = self.build(value, inside(annotation, key.value))
        return merged | values

    def _merged(self, node: yaml.Node, annotation: Any) -> dict[str, Any]:
        """The values of `<<: *anchor`, or of a list of anchors, of which the first counts most."""
        values = self.build(node, list[annotation] if isinstance(node, yaml.SequenceNode) else annotation)
        parts = values if isinstance(values, list) else [values]
        if not all(isinstance(part, dict) for part in parts):
            raise _error(self._place, node, "<< must name mappings")
        return {key: value for part in reversed(parts) for key, value in part.items()}

    def _scalar(self, node: yaml.ScalarNode, annotation: Any) -> Any:
        if wants_text(annotation) and node.style is None:
            return None if node.tag == NULL and may_be_none(annotation) else node.value
        try:
            return self._loader.construct_object(node)
        except ValueError as error:  # more digits than Python converts
            raise _error(self._place, node, str(error).partition(";")[0]) from None


def _count(node: yaml.Node, place: str, counts: dict[int, int], above: list[yaml.Node]) -> int:
    """The number of values in a node, with each alias counted as the value it refers to."""
    if node in above:
        raise _error(place, node, "an alias refers to what contains it")
    if len(above) >= MAX_DEPTH:
        raise _error(place, node, f"is nested too deeply; at most {MAX_DEPTH} levels are read")
    if id(node) not in counts:
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for entry in inner for part in (entry if isinstance(entry, tuple) else (entry,))]
        counts[id(node)] = 1 + sum(_count(part, place, counts, [*above, node]) for part in parts)
    if counts[id(node)] > MAX_VALUES:
        raise _error(place, node, f"aliases make more than {MAX_VALUES:,} values of it")
    return counts[id(node)]


def _reason(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or str(error).splitlines()[0]


def _error(place: str, node: yaml.Node, problem: str) -> UserError:
    return UserError(f"{place}, line {node.start_mark.line + 1}: {problem}")
