"""Layers of the package: no import points to a higher layer, and rooms of one layer do not import each other."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (  # bottom up; rooms in one set are on the same layer
    {"dcr_kernels"},
    {"errors"},
    {"files", "progress", "retries", "statistics", "reasoning", "transcript"},
    {"recipe", "discernment", "label_agreement", "locks"},
    {"new_folder"},
    {"data", "models"},
    {"engine"},
    {"judges"},
    {"diagnose"},
    {"refine", "align", "baselines", "evaluate"},
    {"report", "plan", "datatools"},
    {"run", "export", "augment"},
    {"commands", "api"},
    {"cli"},
    {"__main__"},
)
HEAVY = ("torch", "transformers", "deepspeed", "datasets")
FILES = sorted([*(ROOT / "dcr_ds").rglob("*.py"), *(ROOT / "kernels" / "dcr_kernels").rglob("*.py")])


def floor_of(room: str) -> int:
    floors = [floor for floor, rooms in enumerate(FLOORS) if room in rooms]
    assert floors, f"{room}: a room without a floor; give it one in FLOORS"
    return floors[0]


def room_of(module: str) -> str:
    """dcr_kernels, or the package or module under dcr_ds."""
    parts = module.split(".")
    return parts[1] if parts[0] == "dcr_ds" and len(parts) > 1 else parts[0]


def module_of(file: Path) -> str:
    base = ROOT / "kernels" if "kernels" in file.relative_to(ROOT).parts else ROOT
    return ".".join(file.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path, only_at_import: bool = False) -> Iterator[str]:
    """Modules that a file imports, including inside functions unless `only_at_import`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body if only_at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield module_of(file).split(".")[0] + ".".join(["", node.module or ""])
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


ROOMS = sorted({room_of(module_of(file)) for file in FILES} - {"dcr_ds"})


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_downwards(room):
    for file in FILES:
        if room_of(module_of(file)) == room:
            ours = (name for name in imports(file) if name.split(".")[0] in ("dcr_ds", "dcr_kernels"))
            others = {room_of(name) for name in ours} - {room}
            upwards = {other for other in others if floor_of(other) >= floor_of(room)}
            assert not upwards, f"{module_of(file)} imports {upwards}"


def test_kernels_do_not_import_dcr_ds():
    for file in (ROOT / "kernels").rglob("*.py"):
        assert not [name for name in imports(file) if name.startswith("dcr_ds")], file


def test_kernels_folder_is_not_a_package():
    """A package named `kernels` at the root breaks `import transformers` where Hugging Face's is installed."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_reports_import_only_what_reads_files():
    for file in (ROOT / "dcr_ds" / "report").rglob("*.py"):
        rooms = {room_of(name) for name in imports(file) if name.startswith("dcr_ds")}
        below = {"errors", "files", "recipe", "reasoning", "statistics", "transcript", "discernment"}
        below |= {"label_agreement"}
        assert rooms <= {"report", *below}, file


def test_report_modules_import_in_one_direction():
    """numbers does not import render, render not sections, and sections not the modules of the whole report."""
    order = ["numbers", "render", "sections", "compose", "card", "write"]
    for file in (ROOT / "dcr_ds" / "report").rglob("*.py"):
        room = file.relative_to(ROOT / "dcr_ds" / "report").with_suffix("").parts[0]
        parts = {name.split(".")[2] for name in imports(file) if name.startswith("dcr_ds.report.")}
        later = {part for part in parts - {room} if room in order and order.index(part) > order.index(room)}
        assert not later, f"{module_of(file)} imports {later}"


@pytest.mark.parametrize(
    "room",
    [
        "errors.py",
        "files.py",
        "progress.py",
        "statistics.py",
        "label_agreement.py",
        "discernment",
        "recipe",
        "data",
    ],
)
def test_data_is_read_without_torch(room):
    place = ROOT / "dcr_ds" / room
    for file in place.rglob("*.py") if place.is_dir() else [place]:
        assert not {name.split(".")[0] for name in imports(file)} & {"torch", "transformers", "deepspeed"}, file


@pytest.mark.parametrize(
    "module",
    [
        "cli.py",
        "run/pipeline.py",
        "run/folder.py",
        "models/locate.py",
        "models/checkpoint_files.py",
        "engine/config.py",
    ],
)
def test_modules_that_run_before_torch_do_not_import_it(module):
    at_import = {name.split(".")[0] for name in imports(ROOT / "dcr_ds" / module, only_at_import=True)}
    assert not at_import & set(HEAVY)


def test_import_of_the_package_is_light():
    script = f"import sys\nimport dcr_ds\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
