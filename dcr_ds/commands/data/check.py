"""`dcr-ds data check`: what a run would read of files or of a recipe's data sets, and what it would refuse."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from dcr_ds.commands.parser import comma_separated, command_parser, output_file, refuse, refuse_overwriting, show
from dcr_ds.data.load import SETS, needed_sets
from dcr_ds.errors import UserError
from dcr_ds.files import expand_user, write_json
from dcr_ds.models.locate import prepare_source
from dcr_ds.recipe import ModelSection, Recipe, load_recipe
from dcr_ds.recipe.arguments import parse_train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DESCRIPTION = f"""\
Say what a run would read of data sets, through the same reader: rows used and left out, columns, duplicates, overlaps
with benchmarks, confounds, lengths, languages, pairs and licences. Exit code 2: a run would refuse the data.

A FILE is NAME=SOURCE, where SOURCE is what a recipe takes (a file, a URL, a hub id or builtin) and NAME one of
{", ".join(SETS)}. A file that is called like a set needs no NAME=.
Fields of a recipe set the details, such as --data.toxic.columns.prompt goal.

  dcr-ds data check seemingly_toxic=safe.csv toxic=harmful.csv
  dcr-ds data check toxic=harmful.csv --data.toxic.columns.prompt goal --benchmarks xstest-unsafe
  dcr-ds data check --recipe recipes/smollm2-135m.yaml --json check.json
"""


def parse(arguments: list[str]) -> Namespace:
    """The options, with the `recipe` that names all sources, and the `sets` to check."""
    parser = command_parser("data check", DESCRIPTION, usage="FILES… | --recipe RECIPE [options] [--FIELD VALUE …]")
    parser.add_argument("--recipe", metavar="RECIPE", help="check the data sets that the stages of a recipe need")
    parser.add_argument("--model", metavar="MODEL", help="lengths in tokens of this model (default: in characters)")
    help_benchmarks = "with FILES: benchmarks or suites that must not overlap with them (default: builtin)"
    parser.add_argument("--benchmarks", type=comma_separated, metavar="NAME[,NAME…]", help=help_benchmarks)
    parser.add_argument("--local-data", metavar="DIR", help="with FILES: folder of local copies of the benchmarks")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the report as JSON")
    options, words = parser.parse_known_args(arguments)
    files, fields = _split(words)
    if bool(files) == bool(options.recipe):
        refuse("data check", "name either files, such as toxic=prompts.csv, or --recipe RECIPE")
    if options.recipe and (options.benchmarks or options.local_data):
        refuse("data check", "--benchmarks and --local-data are for FILES; the recipe names its own")
    sources = _sources(files)
    if options.json:
        inputs = map(Path, (*sources.values(), *filter(None, [options.recipe])))
        refuse_overwriting("data check", options.json, inputs, "--json")
    if options.recipe:
        options.recipe = parse_train([options.recipe, *fields]).load()
        options.sets = needed_sets(options.recipe)
    else:
        overrides = parse_train(fields).overrides
        _refuse_unused(overrides, sources)
        options.recipe = _recipe_of(sources, options, overrides)
        options.sets = [name for name in SETS if name in sources]
    return options


def run(options: Namespace) -> None:
    """Check, print and write the report.

    Raises:
        UserError: a run would refuse the data; the report is printed and written first.
    """
    from dcr_ds.datatools.check.facts import check_data
    from dcr_ds.datatools.check.render import text_of

    tokenizer = _tokenizer(options.model, options.recipe) if options.model else None
    facts = check_data(options.recipe, options.sets, tokenizer)
    if text := text_of(facts):
        show(text + "\n")
    if options.json:
        write_json(options.json, facts)
    if errors := facts["errors"]:
        raise UserError("a run would refuse this data:\n" + "\n".join(errors))
    count = len(facts["warnings"])
    show(f"A run would read this data ({count} warning{'s' if count != 1 else ''}).")


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """The files, and the fields with their values."""
    files, fields = [], []
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            files.append(word)
            continue
        fields.append(word)
        if "=" not in word and words:
            fields.append(words.pop(0))
    return files, fields


def _sources(files: list[str]) -> dict[str, str]:
    """Source by name of the set."""
    sources: dict[str, str] = {}
    for file in files:
        name, equals, source = file.partition("=")
        if not equals or name not in SETS:
            name, source = Path(file).name.partition(".")[0], file
        if name not in SETS:
            refuse("data check", f"{_unnamed(file)}NAME is one of {', '.join(SETS)}")
        if not source:
            refuse("data check", f"{file} names no file")
        if name in sources:
            refuse("data check", f"{name} is given twice: {sources[name]} and {source}")
        sources[name] = source
    return sources


def _unnamed(file: str) -> str:
    """What is wrong with a file of no set, up to the names that there are."""
    if not file:
        return "an empty FILE; is a variable of the shell not set? Write NAME=FILE; "
    name, equals, source = file.partition("=")
    if equals and source and name.isidentifier():  # not a path in which = occurs
        return f"{file}: {name} is not a set; in NAME={source}, "
    return f"which set is {file}? Write NAME={file}; "


def _refuse_unused(overrides: list[tuple[str, str]], sources: dict[str, str]) -> None:
    """Refuse settings of training sets that are not checked, or another source of one."""
    for field, _ in overrides:
        section, name, *rest = *field.split("."), ""
        if section == "data" and name in SETS and (name not in sources or rest[:1] in (["source"], [""])):
            refuse("data check", f"--{field}: name the file of the set as {name}=FILE")


def _recipe_of(sources: dict[str, str], options: Namespace, overrides: list[tuple[str, str]]) -> Recipe:
    """A recipe of defaults with these data sets and benchmarks."""
    fields = [(f"data.{name}.source", source) for name, source in sources.items()]
    if options.benchmarks:
        fields.append(("evaluate.benchmarks", f"[{', '.join(options.benchmarks)}]"))
    if options.local_data:
        fields.append(("evaluate.local_data", options.local_data))
    return load_recipe(None, [*fields, *overrides])


def _tokenizer(model: str, recipe: Recipe) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder, which needs no weights for this, or of any other source of a model."""
    from dcr_ds.models.tokenizer import load_tokenizer

    folder = expand_user(model)
    if not folder.is_dir():
        folder = prepare_source(ModelSection(source=model))
    return load_tokenizer(folder, recipe.model.template)
