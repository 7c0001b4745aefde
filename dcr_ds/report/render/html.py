"""A report as one self-contained HTML page: no request leaves it, and it holds no script."""

from importlib import resources

from dcr_ds.report.render.document import Document
from dcr_ds.report.render.templating import render

FOLDED_CHARACTERS = 400  # longer answers are folded away


def html_page(document: Document) -> str:
    """The page; whatever text a model wrote is escaped by the template, and shown as it is."""
    style = (resources.files("dcr_ds.report.render") / "templates" / "style.css").read_text(encoding="utf-8")
    return render("report.html.jinja", document=document, style=style.strip(), folded_characters=FOLDED_CHARACTERS)
