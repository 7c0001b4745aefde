"""The page: model output is shown as text, nothing is downloaded, and the structure supports screen readers."""

import re
from html.parser import HTMLParser
from itertools import combinations

import pytest
from run_folders import report_of, write_benchmark, write_run

from dcr_ds.errors import UserError
from dcr_ds.report import write_report
from dcr_ds.report.numbers.tradeoff import ModelPoint
from dcr_ds.report.render import png
from dcr_ds.report.render.labels import Label
from dcr_ds.report.sections.tradeoff import tradeoff_figure

ATTACKS = [
    '<script>alert(1)</script><img src=x onerror="alert(2)">',
    "</p></details></style><iframe src='https://evil.example'></iframe>",
    '" onmouseover="alert(3)" x="',
    "![a](https://evil.example/a.png) [b](javascript:alert(4)) <!-- --> {{ 7 * 7 }} {% raw %}",
]
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Elements, attributes, text and ids of a page; raises if tags are not closed properly."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(folders, tmp_path):
    write_report(folders, tmp_path / "report.md")
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def attacked(tmp_path):
    run = write_run(tmp_path / "run")
    for model in ("base", "aligned"):
        for benchmark, behaviour in (("seeming", "comply"), ("toxic", "refuse")):
            answers = ["y", "n", "y", "n"] if model == "base" else ["y", "y", "n", "n"]
            write_benchmark(run / "evaluate" / model / benchmark, behaviour, answers, texts=ATTACKS)
    return run


def test_text_of_models_cannot_become_markup(attacked, tmp_path):
    page = page_of([attacked], tmp_path)
    for attack in ATTACKS:
        assert attack in page.text
    allowed = {"charset", "name", "content", "http-equiv", "class", "id", "href", "lang", "dir", "role", "tabindex"}
    allowed |= {"scope", "colspan", "style", "viewbox", "d", "x", "y", "transform", "text-anchor", "paint-order"}
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "img", "link", "object", "form")
        assert {name for name in attributes if not name.startswith("aria-")} <= allowed | {"points"}, tag
    assert all(link["href"].startswith("#") for link in page.all("a"))


def test_text_of_models_cannot_become_markup_in_markdown(attacked, tmp_path):
    text = report_of([attacked], tmp_path / "report.md")
    for raw in ("<script", "<img", "<iframe", "](https", "](javascript", "<!--"):
        assert raw not in text.replace("\\" + raw, "")
    assert r"\<script\>" in text and r"\!\[" not in text and r"!\[a\](https\://evil.example/a.png)" in text


def test_names_of_judges_and_runs_are_escaped_too(tmp_path):
    run = write_run(tmp_path / "run")
    folder = run.rename(tmp_path / "<b>run<b>")
    write_benchmark(
        folder / "evaluate/aligned/<i>x<i>", "comply", ["y", "n"], categories=["<u>", "&lt;"], **{"<s>": "yn"}
    )
    page = page_of([folder], tmp_path)
    assert not [tag for tag, _ in page.elements if tag in ("b", "i", "u", "s")]
    assert "<i>x<i>" in page.text and "&lt;" in page.text


def test_the_page_is_self_contained_and_has_no_script(attacked, tmp_path):
    write_report([attacked], tmp_path / "report.md")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in html
    assert not [attributes for _, attributes in Page(html).elements if "src" in attributes]


def test_the_page_structure_supports_screen_readers(attacked, tmp_path):
    page = page_of([attacked], tmp_path)
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert len(page.all("table")) == len(page.all("caption")) > 3
    assert all(attributes.get("scope") in ("col", "row", "rowgroup") for attributes in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) and {link["href"][1:] for link in page.all("a")} <= set(ids)
    (figure,) = page.all("svg")
    assert figure["role"] == "img" and {figure["aria-labelledby"], figure["aria-describedby"]} <= set(ids)


def test_answers_to_harmful_prompts_and_long_answers_are_collapsed(tmp_path):
    run = write_run(tmp_path / "run")
    long = "very long " * 200
    for model, texts in (("base", ["short", long]), ("aligned", ["short too", long])):
        write_benchmark(run / "evaluate" / model / "seeming", "comply", ["y", "n"], texts=texts)
        write_benchmark(run / "evaluate" / model / "toxic", "refuse", ["n"], texts=["never mind"])
    page = page_of([run], tmp_path)
    assert page.text.count("Show the answer to a harmful prompt") == 2
    assert len(page.all("details")) == 4
    assert page.text.index("Content note") < page.text.index("prompt 0?")


def test_the_figure_is_also_a_png_and_matplotlib_is_optional(attacked, tmp_path, monkeypatch):
    text = report_of([attacked], tmp_path / "with/report.md")
    assert (tmp_path / "with/figures/report-tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert "](figures/report-tradeoff.png)" in text
    monkeypatch.setattr(png, "find_spec", lambda name: None)
    text = report_of([attacked], tmp_path / "without/report.md")
    assert not (tmp_path / "without/figures").exists() and "report-tradeoff" not in text
    assert "<svg" in (tmp_path / "without/report.html").read_text()


def test_categories_are_plotted(tmp_path):
    run = write_run(tmp_path / "run")
    for model in ("base", "aligned"):
        write_benchmark(run / "evaluate" / model / "seeming", "comply", ["y", "n"], categories=["$a", "b_$x$"])
    write_report([run], tmp_path / "report.md")
    assert (tmp_path / "figures/report-seeming.png").read_bytes().startswith(b"\x89PNG")


POINTS = {
    "all alike": [(0.9, 0.98)] * 8,
    "close": [(0.13, 0.9), (0.78, 0.51), (0.86, 0.54)],  # those of base, STL and DCR in a demo
    "corners": [(0, 0), (0, 1), (1, 0), (1, 1)],
}


@pytest.mark.parametrize("case", POINTS)
def test_labels_overlap_neither_each_other_nor_marks(case):
    points = [ModelPoint(f"model {i}", x, y, (x, x), (y, y), True) for i, (x, y) in enumerate(POINTS[case])]
    page = Page(tradeoff_figure(points, None).svg)
    texts = [element for element in page.all("text") if "paint-order" in element]
    boxes = [
        Label(0, 0, text["text-anchor"]).box((float(text["x"]), float(text["y"])), point.title)
        for text, point in zip(texts, points, strict=True)
    ]
    assert all(box.left >= 0 and box.top >= 0 and box.right <= 400 and box.bottom <= 400 for box in boxes)
    assert not any(box.overlap(other) for box, other in combinations(boxes, 2))
    marks = [
        re.match(r"translate\((\S+) (\S+)\)", path["transform"]) for path in page.all("path") if "transform" in path
    ]
    assert len(marks) == len(points)
    assert not any(box.contains((float(mark[1]), float(mark[2]))) for box in boxes for mark in marks)


def test_a_long_name_stays_inside_the_drawing():
    titles = ("a-run-" + "of-many-words-" * 9 + "7", "base")
    points = [ModelPoint(title, 0.5, 0.5, (0.4, 0.6), (0.4, 0.6), True) for title in titles]
    page = Page(tradeoff_figure(points, None).svg)
    shown = re.search(r"a-run-\S*-words-7", page.text)[0]
    text, _ = (element for element in page.all("text") if "paint-order" in element)
    box = Label(0, 0, text["text-anchor"]).box((float(text["x"]), float(text["y"])), shown)
    assert box.left >= 0 and box.right <= 400


def test_the_report_links_to_the_page(attacked, tmp_path):
    with pytest.raises(UserError, match=r"--out .*report\.html: must name the Markdown file"):
        write_report([attacked], tmp_path / "report.html")
