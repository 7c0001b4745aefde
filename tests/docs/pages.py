"""Reads the pages of the documentation: fenced blocks, shell commands, links and inline code.

A fenced block without a language holds shell commands that can be pasted; `text` is output, other languages are code.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from processes import ROOT

PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / name / "README.md" for name in ("benchmarks", "ds_configs", "slurm", "kernels")),
        *(ROOT / "docs").glob("*.md"),
    ]
)
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=.*", re.DOTALL)
LOOP = re.compile(r"(for \w+ in .*; do|done)$")


@dataclass(frozen=True)
class Command:
    """A shell command of a page, split into words; comments and assignments before it are left out."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a page in one language."""
    return [block for label, block in FENCE.findall(page.read_text(encoding="utf-8")) if label == language]


def commands(page: Path) -> Iterator[Command]:
    """The commands of a page in order; loops are unrolled once, with variables replaced by 0."""
    for block in blocks(page):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if LOOP.match(line.strip()):
                continue
            line = re.sub(r"(^|\s)#.*", "", line)
            line = re.sub(r"\$(?!PWD|HOME)\w+", "0", line)
            for part in line.split(" && "):
                words = shlex.split(part)
                while words and ASSIGNMENT.fullmatch(words[0]):
                    words.pop(0)
                if words:
                    yield Command(name_of(page), tuple(words))


def prose(page: Path) -> str:
    """The text of a page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def links(page: Path) -> list[str]:
    """The targets of links and images that are not URLs."""
    targets = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", prose(page))
    return [target for pair in targets for target in pair if target and "://" not in target]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
