"""The section of examples: answers of two models to the same prompts, by how the label changed."""

from collections import Counter
from collections.abc import Sequence

from dcr_ds.reasoning import after_reasoning
from dcr_ds.report.numbers.columns import Column, reference_column
from dcr_ds.report.numbers.measured import keyed_answers
from dcr_ds.report.numbers.read import Answer, BenchmarkResults
from dcr_ds.report.render.document import Block, Example, Examples, Paragraph, Reply
from dcr_ds.report.render.tables import words

EXAMPLES_PER_KIND = 2  # per kind of change and benchmark, so that both gains and losses are shown
MAX_COMPLETION = 4000  # characters; longer answers are cut
STATES = {"compliance": "answered", "full_refusal": "refused", "partial_refusal": "refused"}
STATES |= {"harmful": "harmful", "harmless": "harmless"}  # of a judge of harm
KINDS = (
    *(f"newly {state}" for state in ("answered", "refused", "harmful", "harmless")),
    *(f"still {state}" for state in ("refused", "answered", "harmless", "harmful")),
    "degenerate or unparsed",
)


def compared_columns(columns: Sequence[Column]) -> tuple[Column, Column] | None:
    """The two columns whose answers are compared: the reference and the last of the others."""
    reference = reference_column(columns)
    others = [column for column in columns if column is not reference and column.is_judged]
    return (reference, others[-1]) if reference and others else None


def change_kind(old: str, new: str) -> str:
    """The kind of change between the labels of two models on a prompt."""
    if old not in STATES or new not in STATES:
        return "degenerate or unparsed"
    return f"{'still' if STATES[old] == STATES[new] else 'newly'} {STATES[new]}"


def examples(columns: Sequence[Column]) -> list[Block]:
    """The number of labels that differ on each benchmark, and a few prompts of every kind of change."""
    pair = compared_columns(columns)
    if pair is None:
        return []
    first, second = pair
    ours, theirs = first.results[0].benchmarks, second.results[0].benchmarks
    names = [name for name in ours if name in theirs and ours[name].attacked is None]
    names.sort(key=lambda name: (ours[name].score["wanted"], name))
    return [block for name in names for block in _benchmark_examples(first, second, ours[name], theirs[name], name)]


def _benchmark_examples(
    first: Column, second: Column, ours: BenchmarkResults, theirs: BenchmarkResults, name: str
) -> list[Block]:
    old, new = keyed_answers(ours), keyed_answers(theirs)
    labels = {key: (old[key].labels[ours.judge], new[key].labels[theirs.judge]) for key in old if key in new}
    if not labels:
        return []
    changes = Counter(pair for pair in labels.values() if pair[0] != pair[1])
    listed = "; ".join(f"{n} × {words(before)} → {words(after)}" for (before, after), n in sorted(changes.items()))
    seed = " (first seed)" if len(first.runs) > 1 or len(second.runs) > 1 else ""
    summary = f"{name}, {first.title} → {second.title}{seed}: {changes.total()} of {len(labels)} labels differ"
    blocks: list[Block] = [Paragraph(f"{summary} ({listed})." if listed else f"{summary}.")]
    for kind in KINDS:
        keys = [key for key, pair in labels.items() if change_kind(*pair) == kind]
        if keys:
            shown = [
                Example(key[1], [_reply(first, old[key]), _reply(second, new[key])]) for key in keys[:EXAMPLES_PER_KIND]
            ]
            title = f"{name}: {kind}, {len(keys)} of {len(labels)}"
            blocks.append(Examples(title, ours.score["wanted"] == "refuse", shown))
    return blocks


def _reply(column: Column, answer: Answer) -> Reply:
    """An answer with its labels; judges that agree with each other are named together."""
    judges: dict[str, list[str]] = {}
    for judge, label in answer.labels.items():
        judges.setdefault(label, []).append(judge)
    labels = [f"{words(label)} ({', '.join(names)})" for label, names in judges.items()]
    text = after_reasoning(answer.completion) or answer.completion
    return Reply(column.title, labels, text if len(text) <= MAX_COMPLETION else text[:MAX_COMPLETION] + " …")
