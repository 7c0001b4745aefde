"""Recipe fields, options, recipes and configurations that the pages name exist."""

import re

import pytest
import yaml
from pages import PAGES, ROOT, blocks, inline_code, name_of

from dcr_ds.baselines.prompts import ROLES, option_of
from dcr_ds.recipe import DataSource, Recipe, field_rows, load_recipe, section_rows
from dcr_ds.recipe.describe import DATA_SET
from dcr_ds.recipe.other_names import OTHER_NAMES

FIELDS = {row.name for row in field_rows()}
SETS = {row.name for row in field_rows() if row.type == DATA_SET}
SECTIONS = {row.name for row in section_rows()}
FILES = (".py", ".md", ".json", ".jsonl", ".yaml", ".safetensors", ".sh", ".txt", ".csv", ".png", ".gguf")
FIELD = re.compile(rf"(?:--)?((?:{'|'.join(name for name in sorted(SECTIONS) if '.' not in name)})\.[a-z0-9_.]+)")
OPTION = re.compile(r"(?<!\S)--[a-z][a-z_-]+")
# Options of programs that are not part of dcr-ds: sbatch, srun, py-spy, deepspeed, pytest.
FOREIGN = {
    "--kill-on-bad-exit", "--gpus-per-node", "--gpus-per-task", "--gpus-per-socket", "--gpu-bind", "--gpus", "--gres",
    "--ntasks", "--ntasks-per-node", "--nodes", "--signal", "--jobid", "--overlap", "--hostfile", "--num_gpus",
    "--array", "--dependency", "--nproc_per_node", "--no-python", "--pid", "--full-kernels",
}  # fmt: skip


def is_field(name: str) -> bool:
    """Whether a dotted name is a field, a section, or a field of a data set."""
    if name in FIELDS | SECTIONS | SETS:
        return True
    return any(name.startswith(f"{data}.") and name.split(".")[2] in DataSource.model_fields for data in SETS)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_fields_exist(page):
    for code in inline_code(page):
        for name in FIELD.findall(code) if not code.endswith(FILES) else ():
            assert is_field(name.rstrip(".")), f"{name_of(page)}: no field {name} (in `{code}`)"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_exist(page):
    known = known_options()
    for code in inline_code(page):
        for option in OPTION.findall(code):
            name = option.removeprefix("--")
            assert option in known or is_field(name), f"{name_of(page)}: no option {option} (in `{code}`)"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_yaml_blocks_are_recipes(page, tmp_path):
    for block in blocks(page, "yaml"):
        fields = yaml.safe_load(block)
        if not isinstance(fields, dict):  # a list of judges
            fields = {"evaluate": {"judges": fields}}
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(fields))
        assert isinstance(load_recipe(str(file), []), Recipe)


def test_every_shipped_recipe_is_in_the_guide():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    missing = [file.stem for file in (ROOT / "recipes").glob("*.yaml") if f"`{file.stem}`" not in text]
    assert not missing


def test_names_of_other_trainers_are_in_the_guide_and_lead_to_fields():
    text = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    table = text.partition("## Names of options")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    listed = {
        theirs: re.findall(r"`([^`]+)`", ours)[:1] for names, ours in rows for theirs in re.findall(r"`(.+?)`", names)
    }
    assert {theirs: ours[0] for theirs, ours in listed.items() if ours} == OTHER_NAMES
    assert all(is_field(name) for name in OTHER_NAMES.values())


def test_wrong_names_are_detected():
    assert FIELD.findall("`--refine.layers 3` and refine.layer") == ["refine.layers", "refine.layer"]
    assert not is_field("refine.layers") and not is_field("data.toxic.colums.prompt")
    assert is_field("data.toxic.columns.prompt") and is_field("align.lora.rank") and is_field("align.lora")
    assert "--dry-runs" not in known_options()


def known_options() -> set[str]:
    """The options of every command of dcr-ds, of train, and of the scripts in benchmarks/."""
    options = {"--help", "--dry-run", "--redo", *FOREIGN, *map(option_of, ROLES)}
    sources = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "dcr_ds" / "commands").rglob("*.py")]
    for file in sources:
        options |= set(re.findall(r'"(--[a-z][a-z0-9_-]+)"', file.read_text(encoding="utf-8")))
    return options
