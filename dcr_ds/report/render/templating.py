"""Fill in the templates of reports; values are escaped for HTML unless the template says otherwise."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """Fill in a template of templates/; those named .md.jinja are not HTML, and their text comes escaped."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("dcr_ds.report.render"),
        autoescape=lambda name: not (name or "").endswith(".md.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
