"""`dcr-ds schema`: the JSON schema of recipes."""

import json

from dcr_ds.commands.parser import command_parser, show
from dcr_ds.recipe import json_schema

DESCRIPTION = "Print the JSON schema of recipe files. Editors use it to complete and check fields."


def run(arguments: list[str]) -> int:
    command_parser("schema", DESCRIPTION).parse_args(arguments)
    show(json.dumps(json_schema(), indent=1))
    return 0
