"""Chat templates that print today's date, as Llama's do, get one fixed date.

A run that is resumed on another day, its control and its evaluation then read the same tokens.
"""

import string
from datetime import datetime
from functools import cache

TODAY = datetime(2024, 7, 26)  # to which Llama's templates fall back


@cache
def dated(template: str) -> str:
    """A template whose strftime_now gives `TODAY`, through a macro that replaces the directives (%d, %b, …)."""
    if "strftime_now" not in template:
        return template
    replaced = "".join(
        f"|replace({directive!r}, {TODAY.strftime(directive)!r})"
        for letter in string.ascii_letters
        for directive in (f"%-{letter}", f"%{letter}")
        if TODAY.strftime(directive) not in (directive, f"-{letter}")
    )
    # the plus keeps trim_blocks from removing a line break at the start of the template
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro +%}}{template}"
