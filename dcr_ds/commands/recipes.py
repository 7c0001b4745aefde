"""`dcr-ds recipes`: list the shipped recipes, and copy one to edit it."""

import argparse
import re
from pathlib import Path

from dcr_ds.commands.parser import command_parser, output_file, refuse, show
from dcr_ds.errors import UserError
from dcr_ds.recipe import shipped_files, similar_recipe

DESCRIPTION = """\
List the shipped recipes, or copy one to edit it. A copy that extends a shipped recipe still does.

  dcr-ds recipes
  dcr-ds recipes copy qwen2.5-7b --to my-recipe.yaml
"""
EXTENDS = re.compile(r"^extends: *(\S+\.yaml)", re.MULTILINE)


def run(arguments: list[str]) -> int:
    """List or copy recipes.

    Raises:
        UserError: wrong usage, an unknown recipe, or a file that exists already.
    """
    options = _parse(arguments)
    if options.action == "copy":
        _copy(options.name, options.to)
    else:
        show(_listing())
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = command_parser("recipes", DESCRIPTION)
    parser.add_argument("action", nargs="?", choices=("list", "copy"), default="list", help="default: list")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the shipped recipe to copy")
    parser.add_argument("--to", type=output_file, metavar="FILE", help="file to write (default: NAME.yaml)")
    options = parser.parse_args(arguments)
    if options.action == "copy" and not options.name:
        refuse("recipes", "copy needs the NAME of a shipped recipe")
    if options.action == "list" and (options.name or options.to):
        refuse("recipes", f"list takes no {'NAME' if options.name else '--to'}; copy does")
    return options


def _listing() -> str:
    """Name and first comment line of each shipped recipe."""
    files = shipped_files("recipes", ".yaml")
    width = max(len(file.stem) for file in files)
    return "\n".join(f"{file.stem:<{width}}  {_first_comment(file)}" for file in files)


def _first_comment(file: Path) -> str:
    return file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


def _copy(name: str, to: Path | None) -> None:
    recipes = {file.stem: file for file in shipped_files("recipes", ".yaml")}
    stem = Path(name).name.removesuffix(".yaml")
    if stem not in recipes:
        raise UserError(f"{name}: not a shipped recipe.{similar_recipe(name)} Shipped: {', '.join(recipes)}")
    target = to or Path(f"{stem}.yaml")
    text = EXTENDS.sub(r"extends: recipes/\1", recipes[stem].read_text(encoding="utf-8"))
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UserError(f"{target}: exists already; name another file with --to") from None
    print(f"{target}: copied from recipes/{stem}.yaml. Change its name (the run folder) and what you like, then")
    print(f"  deepspeed train.py {target}        or: dcr-ds train {target}")
