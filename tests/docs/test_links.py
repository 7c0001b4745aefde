"""Links, images, and the pages and files that the text names, exist."""

import re
import subprocess

import pytest
from pages import PAGES, ROOT, anchors, inline_code, links, name_of

FOLDERS = ("benchmarks/", "dcr_ds/", "docs/", "ds_configs/", "kernels/", "recipes/", "slurm/", "tests/")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link} does not exist"
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)}: {link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_the_text_names_exist(page):
    for code in inline_code(page):
        if code.startswith(FOLDERS) and not re.search(r"[…*<{ ]", code):
            assert (ROOT / code.partition(":")[0]).exists(), f"{name_of(page)}: {code} does not exist"


def test_pages_that_the_code_names_exist():
    matches = subprocess.run(
        ["git", "grep", "-ohIE", r"docs/[A-Za-z_-]+\.md"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if matches.returncode:
        pytest.skip("not a git checkout")
    missing = {name for name in matches.stdout.split() if not (ROOT / name).is_file()}
    assert not missing


def test_every_page_is_in_the_index():
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    assert {page for page in PAGES if page.parent == index.parent and page != index} <= listed


def test_readme_fits_on_three_screens():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
