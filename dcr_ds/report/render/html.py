"""A report as a self-contained HTML page without scripts; it sends no requests."""

from importlib import resources

from dcr_ds.report.render.document import Document
from dcr_ds.report.render.templating import render

FOLDED_CHARACTERS = 400  # longer answers are folded away


def html_page(document: Document) -> str:
    """The page; the template escapes all text, so that text of models is shown literally."""
    style = (resources.files("dcr_ds.report.render") / "templates" / "style.css").read_text(encoding="utf-8")
    return render("report.html.jinja", document=document, style=style.strip(), folded_characters=FOLDED_CHARACTERS)
