"""Generated bad input: values of every kind, and valid values, texts and files with random changes."""

import os
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FULL = bool(os.environ.get("DCR_DS_FULL_PROPERTIES"))  # `make test-properties`
LONGEST = timedelta(seconds=60)  # per example, so that none may hang


def examples(short: int, full: int = 3000):
    """Numbers of examples in `make test` and in `make test-properties`."""
    return settings(
        max_examples=full if FULL else short,
        deadline=LONGEST,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 100)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["auto", "none", "builtin", "", ".", "~", "1e400", "null", "../..", "a/b", "\0", "http://", "é"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value inside a nested one."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in inside for place in places(inner, (*path, key)))]


def replaced(value: Any, path: tuple, new: Any) -> Any:
    """A copy of a nested value with a new value at a path."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@st.composite
def changed(draw, valid: Any) -> Any:
    """A nested value with one to three of its values replaced, or a key of it renamed."""
    result = valid
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(result)))
        result = replaced(result, path, draw(values))
    if isinstance(result, dict) and result and draw(st.integers(0, 3)) == 0:
        result = dict(result)
        result[draw(st.text(max_size=10))] = result.pop(draw(st.sampled_from(list(result))))
    return result


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """Bytes with a piece removed, inserted, doubled or reversed."""
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + 50)))
    piece = draw(st.sampled_from([b"", content[start:end] * 2]) | st.binary(max_size=8))
    return content[:start] + piece + (b"" if draw(st.booleans()) else content[end:])
