"""Variables of chat templates, such as `enable_thinking`, set within the template.

A template with its variables set renders alike everywhere: in training, embedding and evaluation, and in whatever
loads the trained model, which is saved with it. The hash of the template covers them.
"""

import json
import re
from collections.abc import Mapping

from dcr_ds.errors import UserError
from dcr_ds.recipe import TemplateValue

_SET = re.compile(r"\{% set (\w+) = (.*?) %\}")


def with_variables(template: str, variables: Mapping[str, TemplateValue]) -> str:
    """Set variables at the start of a template; those that it sets there already stay.

    Raises:
        UserError: the template does not read a variable, or was saved with another value of it.
    """
    known = saved_variables(template)
    for name, value in variables.items():
        if name in known and known[name] != _literal(value):
            raise UserError(
                f"model.chat_template_kwargs: {name} is {_literal(value)}, but the model was trained with "
                f"{known[name]}; models are trained, evaluated and compared in one mode"
            )
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise UserError(f"model.chat_template_kwargs: the chat template has no variable {name!r}")
    new = {name: value for name, value in variables.items() if name not in known}
    if not new:
        return template
    text = "".join(f"{{% set {name} = {_literal(new[name])} %}}" for name in sorted(new))
    return text + ("\n" if template.startswith("\n") else "") + template  # Jinja removes one line break after a tag


def saved_variables(template: str) -> dict[str, str]:
    """The variables that are set at the start of a template: name → value in Jinja."""
    known, start = {}, 0
    while match := _SET.match(template, start):
        known[match[1]] = match[2]
        start = match.end()
    return known


def _literal(value: TemplateValue) -> str:
    return json.dumps(value, ensure_ascii=False)  # Jinja reads true, false, numbers and quoted texts
