"""Files that come with the project: recipes/, ds_configs/ and slurm/.

They stand in the root of a source checkout. A wheel has copies of them in `dcr_ds/shipped/` (package data).
"""

import difflib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped_root() -> Path:
    """The folder that holds recipes/, ds_configs/ and slurm/: dcr_ds/shipped of a wheel, else the source checkout."""
    installed = PACKAGE / "shipped"
    return installed if installed.is_dir() else PACKAGE.parent


def shipped_file(relative: str) -> Path | None:
    """A file that comes with the project, e.g. `recipes/smollm2-135m.yaml`; None where there is no such file."""
    path = shipped_root() / relative
    return path if path.is_file() else None


def shipped_files(folder: str, suffix: str) -> list[Path]:
    """All files of recipes, ds_configs or slurm whose name ends in `suffix`, sorted by name."""
    return sorted((shipped_root() / folder).glob(f"*{suffix}"))


def similar_recipe(name: str) -> str:
    """A sentence that suggests the shipped recipe with the most similar name, for a message; '' without one."""
    recipes = {file.stem: file.name for file in shipped_files("recipes", ".yaml")}
    close = difflib.get_close_matches(Path(name).name.removesuffix(".yaml"), recipes, n=1, cutoff=0.75)
    return f" Did you mean recipes/{recipes[close[0]]}?" if close else ""


def source_checkout() -> Path | None:
    """The root of the source checkout that the package runs from; None when it was installed from a wheel."""
    root = shipped_root()
    return root if root != PACKAGE / "shipped" and (root / "train.py").is_file() else None
