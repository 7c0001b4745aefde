"""The refusal openings that log-odds are read from, in short."""

from collections.abc import Sequence

from dcr_ds.report.numbers.columns import Column
from dcr_ds.report.render.document import Block, Paragraph, plain_table
from dcr_ds.report.render.tables import count, percent, shortened

MAX_OPENINGS = 8  # shown, the most frequent ones
MAX_FIRST_TOKENS = 8
MAX_TEXT = 60  # characters of an opening


def openings(columns: Sequence[Column]) -> list[Block]:
    """A table of the most frequent openings and what they cover; once per distinct set of openings."""
    distinct: list[tuple[dict, list[str]]] = []
    for column in columns:
        for content in [model.openings for model in column.results if model.openings][:1]:
            titles = next((titles for other, titles in distinct if other == content), None)
            if titles is None:
                distinct.append((content, [column.title]))
            else:
                titles.append(column.title)
    return [block for content, titles in distinct for block in _openings(content, titles if len(distinct) > 1 else [])]


def _openings(content: dict, titles: Sequence[str]) -> list[Block]:
    """The openings of one tokenizer and data set; `titles` of the models that they are of, empty for all."""
    ordered = sorted(content["openings"], key=lambda opening: -opening["refusals"])
    shown = ordered[:MAX_OPENINGS]
    rows = [["", "refusals", "ordinary answers", "from"]]
    rows += [
        [_quoted(opening["text"]), percent(opening["refusals"]), percent(opening["ordinary"]), opening["source"]]
        for opening in shown
    ]
    of_models = f" of {', '.join(titles)}" if titles else ""
    size = f"{count(len(ordered))} in all"
    if len(ordered) > len(shown):
        size = f"the {count(len(shown))} most frequent of {count(len(ordered))}"
    caption = f"Refusal openings{of_models}, {size}, and the share of training answers that begin with each."
    covered = (
        f"The openings begin {percent(content['refusals_covered'])} of the refusals in the training data and "
        f"{percent(content['ordinary_covered'])} of the ordinary answers. Log-odds miss refusals that begin otherwise."
    )
    return [plain_table(caption, rows), Paragraph(f"{covered}{_shared(content['first_tokens'])}")]


def _shared(first_tokens: Sequence[dict]) -> str:
    """Which first tokens of openings also begin ordinary answers."""
    shared = [token for token in first_tokens if token["shared"]]
    if not shared:
        return ""
    names = [_quoted(token["text"]) for token in shared[:MAX_FIRST_TOKENS]]
    more = f" and {len(shared) - len(names)} more" if len(shared) > len(names) else ""
    return (
        f" {len(shared)} of {len(first_tokens)} first tokens can also begin ordinary answers ({', '.join(names)}"
        f"{more}), so the log-odds use openings of several tokens."
    )


def _quoted(text: str) -> str:
    return f"“{shortened(text, MAX_TEXT)}”"
