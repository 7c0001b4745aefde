"""What all subcommands share: one parser, one way to refuse bad usage, the kinds of option values, and long texts."""

import difflib
import importlib
import json
import os
import re
import shutil
import sys
import textwrap
from argparse import (
    Action,
    ArgumentError,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
    _StoreAction,
)
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from dcr_ds.errors import UserError
from dcr_ds.files import existing_part, refuse_device
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.urls import refuse_store

if TYPE_CHECKING:
    from dcr_ds.models.endpoint import Endpoint

WIDTH = 100
NEGATIVE = re.compile(r"-(\d|\.\d|inf\b|nan\b)", re.IGNORECASE)  # a value, where argparse would see an option in -1e-3
OPTIONS_OF_FIELDS = {
    "model.chat_template_kwargs": "--chat-template-kwargs",
    "model.chat_template": "--chat-template",
    "model.source": "MODEL",
}
FIELD = re.compile(rf"(?<![\w./-])({'|'.join(map(re.escape, OPTIONS_OF_FIELDS))})(?![\w/-])")  # not in a path
CLOSE = 0.75  # likeness of an option to a mistyped one
LARGEST = 3.4e38  # a number of float32, in which models compute


def command_parser(command: str, description: str, usage: str | None = None) -> ArgumentParser:
    """A parser for `dcr-ds COMMAND` whose errors are UserErrors.

    Prose in the description is wrapped; indented lines are kept. `parse_known_args` leaves a recipe and its fields for
    `parse_train`.
    """
    parser = _CommandParser(
        prog=f"dcr-ds {command}",
        usage=usage and f"dcr-ds {command} {usage}",
        description=_reflowed(description),
        formatter_class=partial(RawDescriptionHelpFormatter, width=_width(), max_help_position=28),
        allow_abbrev=False,
    )
    parser._negative_number_matcher = NEGATIVE
    return parser


class _CommandParser(ArgumentParser):
    def parse_known_args(self, *arguments: Any, **keywords: Any) -> Any:
        self._given: set[str] = set()
        options, rest = super().parse_known_args(*arguments, **keywords)
        for word in rest:
            self._refuse_mistyped(word.partition("=")[0])
        return options, rest

    def _refuse_mistyped(self, name: str) -> None:
        """Refuse what is nearly one of the options, and no field of a recipe, which a command may read itself."""
        if not name.startswith("--") or "." in name or name.removeprefix("--") in Recipe.model_fields:
            return
        if close := difflib.get_close_matches(name, self._option_string_actions, n=1, cutoff=CLOSE):
            self.error(f"unrecognized arguments: {name}; did you mean {close[0]}?")

    def _get_values(self, action: Action, arg_strings: list[str]) -> Any:
        if not all(word.strip() for word in arg_strings):  # would be a default, or the working folder
            raise ArgumentError(action, "is empty; is a variable of the shell not set?")
        if action.option_strings and isinstance(action, _StoreAction):
            if action.dest in self._given:  # argparse would leave out the first value
                raise ArgumentError(action, "is given twice; name all values after one, or leave one out")
            self._given.add(action.dest)
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        refuse(self.prog.removeprefix("dcr-ds "), message)

    def print_help(self, file: Any = None) -> None:
        show(self.format_help())


def refuse(command: str, message: str) -> NoReturn:
    """Raise the UserError for wrong usage: names the command, what is wrong, and where the options are listed."""
    raise UserError(f"dcr-ds {command}: {message.removeprefix('argument ')}; see dcr-ds {command} --help")


@contextmanager
def options_in_messages() -> Iterator[None]:
    """Name in errors the options of a command, not the fields of a recipe that they set."""
    try:
        yield
    except UserError as error:
        raise UserError(FIELD.sub(lambda field: OPTIONS_OF_FIELDS[field[0]], str(error))) from None


def run_tool(command: str, description: str, tools: Sequence[str], arguments: list[str]) -> int:
    """Run `dcr-ds COMMAND TOOL …`, or print the help of COMMAND.

    Raises:
        UserError: wrong usage, or what the tool raises.
    """
    if not arguments or arguments[0] in ("--help", "-h"):
        command_parser(command, description).print_help()
        return 0
    module, options = parse_tool(command, tools, arguments)
    module.run(options)
    return 0


def parse_tool(command: str, tools: Sequence[str], arguments: list[str]) -> tuple[ModuleType, Namespace]:
    """The module of a tool, `dcr_ds.commands.COMMAND.TOOL`, and the options that its `parse` returns."""
    name, *rest = arguments
    if name not in tools:
        refuse(command, f"unknown tool {name!r}; there are {', '.join(tools)}")
    module = importlib.import_module(f"dcr_ds.commands.{command}.{name}")
    return module, module.parse(rest)


def add_template(parser: ArgumentParser) -> None:
    """Add the options that say which chat template renders prompts, and in which mode."""
    help_template = "Jinja file, or the name of a shipped template, for models without one"
    parser.add_argument("--chat-template", metavar="FILE", help=help_template)
    help_kwargs = "variables of the chat template, for example '{\"enable_thinking\": false}'"
    parser.add_argument("--chat-template-kwargs", type=json_mapping, metavar="JSON", help=help_kwargs)


def template_fields(options: Namespace) -> dict[str, Any]:
    """The fields of a recipe's model section that the options of `add_template` set."""
    names = ("chat_template", "chat_template_kwargs")
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def add_endpoint(parser: ArgumentParser) -> None:
    """Add the options of requests to a chat endpoint, for `endpoint_of`."""
    add = parser.add_argument
    add("--key-env", default="OPENAI_API_KEY", metavar="NAME", help="environment variable with the endpoint's key")
    add("--concurrency", type=positive_int, default=8, metavar="N", help="requests in flight (default: 8)")
    help_timeout = "retry a request after this many seconds without a reply (default: 60)"
    add("--timeout-seconds", type=positive_number, default=60.0, metavar="S", help=help_timeout)
    help_kwargs = "variables of the endpoint's chat template, for example '{\"enable_thinking\": false}'"
    add("--chat-template-kwargs", type=json_mapping, metavar="JSON", help=help_kwargs)


def endpoint_of(url: str, model: str, options: Namespace) -> "Endpoint":
    """The endpoint that is asked as the options of `add_endpoint` say."""
    from dcr_ds.models.endpoint import Endpoint
    from dcr_ds.models.request_fields import RequestFields

    endpoint = Endpoint(
        url, model, key_env=options.key_env, concurrency=options.concurrency, timeout=options.timeout_seconds
    )
    endpoint.fields = RequestFields(chat_template_kwargs=options.chat_template_kwargs)
    return endpoint


def refuse_overwriting(command: str, out: Path, inputs: Iterable[Path], option: str = "--out") -> None:
    """Refuse an output file that is one of the inputs."""
    for path in inputs:
        if _is_same_file(out, path):
            refuse(command, f"{option}: {out} is one of the input files; name another file")


def refuse_other_file(command: str, out: Path, mark: str) -> None:
    """Refuse an output file that exists and lacks the mark of what the command writes there."""
    if out.is_file() and mark.encode() not in out.read_bytes():
        refuse(command, f"--out: {out} exists and holds something else; name another file, or move this one away")


def _is_same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except (OSError, ValueError):  # missing, a URL, or no name of a file at all
        return False


def show(text: str) -> None:
    """Print a text; a reader that closes the pipe early, such as `head`, is not an error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again when it exits


# Kinds of option values, for `type=`


def positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def whole_number(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def json_mapping(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f'{text!r} is not a JSON object, such as {{"enable_thinking": false}}')
    return value


def positive_number(text: str) -> float:
    value = finite_number(text)
    if value <= 0:
        raise ArgumentTypeError(f"{text} is out of range; it must be above 0")
    return value


def fraction(text: str) -> float:
    """A number above 0 and at most 1."""
    value = positive_number(text)
    if value > 1:
        raise ArgumentTypeError(f"{text} is out of range; it is a fraction, so at most 1")
    return value


def fraction_below_one(text: str) -> float:
    """A number of at least 0 and below 1."""
    value = finite_number(text)
    if not 0 <= value < 1:
        raise ArgumentTypeError(f"{text} is out of range; it must be at least 0 and below 1")
    return value


def auto_or_positive_int(text: str) -> int | str:
    return text if text == "auto" else positive_int(text)


def comma_separated(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise ArgumentTypeError(f"{text!r} has an empty word between its commas")
    return words


def column_mapping(text: str) -> tuple[str, str]:
    """NAME=COLUMN: our name of a column, and its name in a file."""
    name, _, column = text.partition("=")
    if not name or not column:
        raise ArgumentTypeError(f"{text!r} is not of the form NAME=COLUMN, such as completion=response")
    return name, column


def checked_mapping(command: str, pairs: list[tuple[str, str]], known: tuple[str, ...]) -> dict[str, str]:
    """The pairs of --columns as a mapping; refuses unknown and repeated names."""
    if unknown := next((name for name, _ in pairs if name not in known), None):
        refuse(command, f"--columns: unknown name {unknown!r}; names: {', '.join(known)}")
    if len(dict(pairs)) < len(pairs):
        refuse(command, "--columns: a name is given twice")
    return dict(pairs)


def output_path(text: str) -> Path:
    """A file or folder to write on this machine, where it can be made: found before hours of work."""
    path = Path(text)
    try:
        refuse_store(text, "not written")
        refuse_device(path)
    except UserError as error:
        raise ArgumentTypeError(str(error)) from None
    above = existing_part(path.parent)
    if not above.is_dir() or not os.access(above, os.W_OK):
        reason = "it is not a folder" if not above.is_dir() else "permission denied"
        raise ArgumentTypeError(f"{text}: {above}: cannot be written ({reason}); name another place")
    return path


def output_folder(text: str) -> Path:
    path = output_path(text)
    if path.is_file():
        raise ArgumentTypeError(f"{text} is a file; name a folder")
    return path


def output_file(text: str) -> Path:
    path = output_path(text)
    if path.is_dir():
        raise ArgumentTypeError(f"{text} is a folder; name a file")
    return path


def finite_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a number") from None
    if not abs(value) < LARGEST:
        raise ArgumentTypeError(f"{text} is not a finite number, or too large for float32")
    return value


def _reflowed(text: str) -> str:
    """Prose wrapped to the width; paragraphs with indented lines, such as examples, as they are."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(p if "\n " in f"\n{p}" else textwrap.fill(p, _width()) for p in paragraphs)


def _width() -> int:
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
