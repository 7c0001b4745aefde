"""Text of a page that a command writes: it stands between two marks, which name the command."""

from pathlib import Path

from dcr_ds.errors import UserError


def replace_marked(page: Path, command: str, text: str) -> None:
    """Replace what stands between the marks of a command.

    Raises:
        UserError: the page does not have both marks once, in order.
    """
    begin, end = (f"<!-- {word}: {command} -->" for word in ("begin", "end"))
    old = page.read_text(encoding="utf-8")
    before, has_begin, rest = old.partition(begin)
    _, has_end, after = rest.partition(end)
    if not (has_begin and has_end) or begin in after or end in before + after:
        raise UserError(f"{page}: needs the line {begin} and, after it, {end}, once each")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
