"""Examples: prompts that two models answer differently, as the judge sees it."""

from collections import Counter
from collections.abc import Sequence

from dcr_ds.report.read import Answer, read_answers
from dcr_ds.report.results import Column
from dcr_ds.report.tables import plain

EXAMPLES_A_CHANGE = 2  # shown of each kind of change on a benchmark, so that losses show beside gains


def compared_columns(columns: Sequence[Column]) -> tuple[Column, Column] | None:
    """The two columns whose answers are compared: STL and DCR; base and aligned; else the first two runs."""
    by_title = {column.title: column for column in columns if column.results}
    for pair in (("STL", "DCR"), ("base", "aligned")):
        if all(title in by_title for title in pair):
            return by_title[pair[0]], by_title[pair[1]]
    runs = [column for column in by_title.values() if column.model == "aligned"]
    return (runs[0], runs[1]) if len(runs) > 1 else None


def example_section(columns: Sequence[Column]) -> list[str]:
    """Markdown paragraphs: how many labels differ on each benchmark, and a few of the prompts."""
    pair = compared_columns(columns)
    if pair is None:
        return []
    paragraphs = []
    first, second = pair
    for benchmark in first.results.scores:
        if benchmark not in second.results.scores:
            continue
        one, other = read_answers(first.results, benchmark), read_answers(second.results, benchmark)
        common = [key for key in one if key in other]
        changed = [key for key in common if one[key].label != other[key].label]
        changes = Counter((one[key].label, other[key].label) for key in changed)
        listed = "; ".join(f"{n} × {_words(old)} → {_words(new)}" for (old, new), n in sorted(changes.items()))
        paragraphs.append(
            f"**{benchmark}**, {first.title} → {second.title}: {len(changed)} of {len(common)} labels differ"
            + (f" ({listed})." if listed else ".")
        )
        for change in sorted(changes):
            keys = [key for key in changed if (one[key].label, other[key].label) == change]
            paragraphs += [
                _example(first.title, one[key], second.title, other[key]) for key in keys[:EXAMPLES_A_CHANGE]
            ]
    return paragraphs


def _example(first: str, one: Answer, second: str, other: Answer) -> str:
    lines = [f"- **{plain(one.prompt)}**"]
    for title, answer in ((first, one), (second, other)):
        lines.append(f"  - {title}, {_words(answer.label)}: {plain(answer.completion) or '(nothing)'}")
    return "\n".join(lines)


def _words(label: str) -> str:
    return label.replace("_", " ")
