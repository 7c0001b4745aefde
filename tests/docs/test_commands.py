"""Every shell command of the README and the guides is accepted by the program that it names.

- `train.py`, however launched, is dry-run in this process. Only what needs a download is replaced: the model by a tiny
  random one (and `refine.layer` by `auto`), data sets and benchmarks by the built-in ones.
- Other commands of dcr-ds go through their own parser, which also reads the recipe; `recipes` runs.
- make targets, extras of pip, scripts and their options must exist. Other programs must be listed in FOREIGN.
"""

import importlib
import importlib.util
import os
import re
import tomllib
from functools import cache
from unittest.mock import patch

import pytest
import yaml
from pages import PAGES, ROOT, Command, commands
from tiny import make_model

from dcr_ds.cli import COMMANDS
from dcr_ds.data.shipped import FOLDER as BUILTIN_FOLDER
from dcr_ds.engine.launcher import set_environment
from dcr_ds.errors import UserError
from dcr_ds.files import read_jsonl
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.arguments import parse_train
from dcr_ds.recipe.messages import refuse_unknown

FOREIGN = {"apptainer", "cd", "docker", "enroot", "git", "hadolint", "llama-quantize", "pre-commit", "source", "tail"}
FOREIGN |= {"vllm", "sky"}
SBATCH = {"--nodes", "--gpus-per-node", "--ntasks-per-node", "--time", "--partition", "--account", "--constraint"}
TEXT_OF_BENCHMARKS = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "benchmarks").glob("*.py"))
ALL = [command for page in PAGES for command in commands(page)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder as the guides assume it: the project's files, prompts.csv and my-recipe.yaml."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("recipes", "ds_configs", "slurm", "benchmarks", "tests", "train.py", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    prompts = [row["toxic"] for row in read_jsonl(BUILTIN_FOLDER / "pairs.jsonl") if row["split"] == "train"]
    (folder / "prompts.csv").write_text("goal,label\n" + "".join(f'"{prompt}",unsafe\n' for prompt in prompts))
    make_model(folder / "tiny")
    with patch.dict(os.environ):
        set_environment()
        yield folder


@pytest.mark.parametrize("command", dict.fromkeys(ALL), ids=str)
def test_command(command: Command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    check(list(command.words))


def check(words: list[str]) -> None:
    program, rest = words[0], words[1:]
    if program in FOREIGN:
        return
    if "train.py" in words:
        at = words.index("train.py")
        check_launcher(words[:at])
        dry_run(tuple(words[at + 1 :]))
    elif "dcr-ds" in words:
        at = words.index("dcr-ds")
        check_launcher(words[:at])
        check_subcommand(words[at + 1], words[at + 2 :])
    elif program == "sbatch":
        check_sbatch(rest)
    elif program in ("slurm/pipeline.sh", "slurm/sweep.sh"):
        check_script(program, rest)
    elif program == "make":
        assert re.search(rf"^{rest[0]}:" if rest else "^help:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program.endswith("pip") or words[1:3] == ["-m", "pip"]:
        check_pip(words)
    elif program in ("python", "python3", "torchrun"):
        check_python(rest)
    elif program == "export":
        assert all(is_setting(word.partition("=")[0]) for word in rest)
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in rest if not word.startswith("-"))
    elif program == ".ci/run":
        assert (ROOT / program).is_file()
    elif program == "lm_eval":
        assert (ROOT / rest[rest.index("--include_path") + 1]).is_dir()
    else:
        pytest.fail(f"{program}: add a check for it, or name it in FOREIGN")


def check_launcher(words: list[str]) -> None:
    """Parse `python`, `deepspeed …` or `torchrun …` with the launcher's own parser."""
    program, options = words[0] if words else "python", words[1:]
    if program == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        parse_args([*options, "train.py"])
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args([*map(as_number, options), "train.py"])
    else:
        assert program == "python" and not options


def as_number(word: str) -> str:
    """A number in place of a placeholder, such as the N of `--nnodes N`."""
    return "2" if word == "N" else word


@cache
def dry_run(words: tuple[str, ...]) -> None:
    from dcr_ds.run.pipeline import run

    if "--help" in words:
        from dcr_ds.cli import main

        assert main(["train", *words]) == 0
        return
    arguments = parse_train(["recipes/smollm2-135m.yaml" if word == "RECIPE" else word for word in words])
    recipe = available_offline(arguments.load())
    assert recipe.stages
    run(recipe, redo=arguments.redo, dry_run=True)


def available_offline(recipe: Recipe) -> Recipe:
    """The recipe, with replacements for everything that would be downloaded or that the reader provides."""
    fields = yaml.safe_load(recipe.model_dump_json())
    fields["model"] |= {"source": "tiny", "revision": None}
    fields["refine"]["layer"] = "auto"
    for name, value in fields["data"].items():
        if isinstance(value, dict) and not is_at_hand(value["source"]):
            fields["data"][name] = {"source": "builtin"}
    if not is_at_hand(fields["evaluate"]["general"]["source"]):
        fields["evaluate"]["general"] = {"source": "builtin", "split": "held_out"}
    fields["evaluate"] |= {"benchmarks": ["builtin"], "local_data": None}
    return Recipe.model_validate(fields)


def is_at_hand(source: str) -> bool:
    return source == "builtin" or source == "prompts.csv"


def check_subcommand(name: str, words: list[str]) -> None:
    assert name in COMMANDS
    if name == "train":
        dry_run(tuple(words))
        return
    module = importlib.import_module(f"dcr_ds.commands.{name.replace('-', '_')}")
    if "--help" in words:
        return
    if name == "recipes":
        module.run(words)
    elif name == "repair":
        dry_run(tuple(module._parse(words)))
    elif name == "slurm":
        options, fields = module._parse(words)
        check_script(f"slurm/{options.kind}.sh", fields)
    elif name != "schema":
        module._parse(words)


def check_sbatch(words: list[str]) -> None:
    while words and words[0].startswith("--"):
        assert words[0].partition("=")[0] in SBATCH, f"{words[0]}: not an option of sbatch"
        words = words[1:]
    check_script(words[0], words[1:])


def check_script(script: str, words: list[str]) -> None:
    """Check that a SLURM script exists, and its recipe and fields; each value of a sweep is tried."""
    assert (ROOT / script).is_file()
    words = [word for word in words if word not in ("--", "--dry-run")]
    if script.endswith("sweep.sh"):
        words = [word.split(",")[0] for word in words]
    parse_train(words).load()


def check_pip(words: list[str]) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in words:
        if extras := re.search(r"(?:\.|dcr-ds)\[(.+)\]", word):
            assert set(extras[1].split(",")) <= set(known)


def check_python(words: list[str]) -> None:
    """Check that a script of the project exists and has the options, or that a module exists."""
    if "-m" in words:
        module = words[words.index("-m") + 1]
        assert importlib.util.find_spec(module)
        return
    script = next((word for word in words if word.endswith(".py")), None)
    assert script and (ROOT / script).is_file(), f"{script} does not exist"
    for option in words[words.index(script) + 1 :]:
        if option.startswith("--") and "." in option:  # a field of the recipes that the script runs
            refuse_unknown(option.removeprefix("--"), script)
        elif option.startswith("--"):
            assert f'"{option.partition("=")[0]}"' in TEXT_OF_BENCHMARKS, f"{script}: no option {option}"


def is_setting(name: str) -> bool:
    """Whether a variable is one of the SLURM scripts, of sbatch, or of a library."""
    scripts = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "slurm").glob("*.sh"))
    return name in scripts or name.startswith("SBATCH_") or name in ("PYTHONPATH", "LLAMA_CPP")


def test_a_wrong_field_in_a_command_is_detected(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="refine.layers"):
        check(["python", "train.py", "--refine.layers", "3"])
    with pytest.raises(UserError, match="--colour"):
        check(["dcr-ds", "report", "runs/x", "--colour", "red"])
