from dcr_ds.report.render.tables import (
    duration,
    literal,
    markdown_table,
    number,
    percent,
    points,
    shortened,
    text_table,
)


def test_markdown_tables_are_aligned_as_plain_text():
    assert markdown_table([["", "n"], ["a long name", "1"], ["b", "100,000"]]).splitlines() == [
        "|             |       n |",
        "| :---------- | ------: |",
        "| a long name |       1 |",
        "| b           | 100,000 |",
    ]


def test_wide_text_tables_are_split_into_blocks():
    rows = [["", *(f"column {i}" for i in range(9))], ["row", *(str(i) for i in range(9))]]
    text = text_table(rows, width=40)
    blocks = text.split("\n\n")
    assert len(blocks) == 3 and all(block.splitlines()[2].startswith("row") for block in blocks)
    assert all(len(line) <= 40 for line in text.splitlines())
    assert [word for word in text.split() if word.isdigit()] == [
        *"012",
        *"012",
        *"345",
        *"345",
        *"678",
        *"678",
    ]


def test_a_column_wider_than_the_terminal_still_gets_its_block():
    assert "x" * 200 in text_table([["", "a", "b"], ["row", "x" * 200, "y"]], width=50)


def test_external_text_is_shown_literally_in_markdown():
    assert literal("| b | `c` [d](e) <f> &amp;") == r"\| b \| \`c\` \[d\](e) \<f\> \&amp;"
    assert literal("see https://a.b, www.c.d, HTTP://e") == r"see https\://a.b, www\.c.d, HTTP\://e"


def test_external_text_is_a_single_line_of_limited_length():
    assert shortened("a\n\n# b\t c") == "a # b c"
    assert len(shortened("word " * 500, 80)) <= 80 and shortened("word " * 500, 80).endswith("…")


def test_underscores_are_escaped_only_where_they_are_markup():
    assert literal("_so_ xstest_strings, __init__") == r"\_so\_ xstest_strings, \_\_init\_\_"


def test_long_names_keep_their_start_and_their_metric():
    text = text_table([["", "a"], ["b" * 60 + ": compliance ↑", "1"]])
    assert "bbb…" in text and ": compliance ↑  1" in text and len(text.splitlines()[2]) == 38 + 3


def test_numbers_are_formatted():
    assert [percent(0.5), percent(1), percent(None), percent(0.555, 0)] == ["50.0%", "100.0%", "–", "56%"]
    assert [points(0.1234), points(-0.5), points(-0.0001)] == ["+12.3", "−50.0", "0.0"]
    assert [number(1.23456), number(None)] == ["1.235", "–"]
    assert [duration(seconds) for seconds in (0.04, 59.4, 61, 3600, None)] == [
        "0.0 s", "59.4 s", "1 min 01 s", "1 h 00 min", "–",
    ]  # fmt: skip
