"""The tutorial notebook: small, with links that exist, and its cells run."""

import json
import re

import pytest
from processes import ROOT
from tiny import make_model

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
CONTENT = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in CONTENT["cells"] if cell["cell_type"] == "code"]
MAX_BYTES = 300_000
LOCAL_PATH = re.compile(r"(?<![\w.~])/(?:root|home|tmp|work|usr|opt|mnt)/")
# a tiny random model, and as few steps as there can be
SHORT = {
    "refine.layer": 2,
    "refine.max_steps": 1,
    "refine.on_failure": "continue",
    "refine.global_batch": 4,
    "refine.retain_batch": 2,
    "align.epochs": 0.05,
    "evaluate.max_new_tokens": 2,
}


def test_it_is_small_and_names_no_folder_of_a_machine():
    assert NOTEBOOK.stat().st_size < MAX_BYTES
    assert not LOCAL_PATH.search(NOTEBOOK.read_text(encoding="utf-8"))


def test_its_links_exist():
    text = "".join("".join(cell["source"]) for cell in CONTENT["cells"] if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links and all((NOTEBOOK.parent / link).is_file() for link in links)


@pytest.mark.slow
def test_its_cells_run_with_a_tiny_model(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    fields = SHORT | {"model.source": str(make_model(tmp_path / "tiny"))}
    names: dict = {}
    for source in CODE:
        exec(source.replace("without_refine =", f"changes |= {fields}\nwithout_refine =", 1), names)
    assert (tmp_path / "runs" / "tutorial-dcr" / "report" / "report.md").is_file()
    assert len(names["three"]) == 3 and len(names["harmful"]) == 64
    assert 0 <= names["auc"]["DCR"]["value"] <= 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_runs_in_a_kernel(tmp_path):
    """With the demo's model, in minutes."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in str(output)]
    assert len(pictures) == 1
