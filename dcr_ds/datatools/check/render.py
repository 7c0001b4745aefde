"""The report of `dcr-ds data check` for a terminal."""

from collections.abc import Iterator
from typing import Any

from dcr_ds.data.leakage import KINDS

LABEL_WIDTH = 12
MAX_COLUMNS = 12  # languages and columns listed


def text_of(facts: dict[str, Any]) -> str:
    """The facts of `check_data` as text, without `errors`, which the command prints as its error."""
    blocks = [[*_set_lines(name, described)] for name, described in facts["sets"].items()]
    blocks += [[*_between_lines(facts)], [*_leakage_lines(facts), *_benchmark_lines(facts)], [*_confound_lines(facts)]]
    blocks += [[f"note: {note}" for note in facts["notes"]], [f"WARNING: {text}" for text in facts["warnings"]]]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def _set_lines(name: str, described: dict[str, Any]) -> Iterator[str]:
    yield f"{name}: {described['source']}"
    left_out = sum(part["count"] for part in described["left_out"])
    used, read, records = described["rows_used"], described["rows_read"], described["rows"]
    answers = f" ({records:,} answers)" if records != used else ""
    sampled = f", {read - left_out - used:,} not sampled" if read - left_out - used else ""
    yield _line("rows", f"{used:,} used of {read:,}{answers}, {left_out:,} left out{sampled}")
    for part in described["left_out"]:
        places = ", ".join(part["places"]) + (", …" if part["count"] > len(part["places"]) else "")
        yield _line("", f"{part['count']:,} left out: {part['reason']} ({places})")
    columns = [ours if ours == theirs else f"{theirs} as {ours}" for ours, theirs in described["columns"].items()]
    yield _line("columns", ", ".join(columns))
    found = described["duplicates"]
    examples = "; ".join(" and ".join(ids) for ids in found["examples"])
    yield _line(
        "duplicates",
        f"{found['exact']:,} exact (left out), {found['normalised']:,} but for case and punctuation"
        + (f" ({examples})" if examples else ""),
    )
    length = described["length"]
    yield _line(
        "length",
        f"{length['min']:,} to {length['max']:,} {length['unit']}, median {length['median']:,}, 95% have at most "
        f"{length['p95']:,}",
    )
    counts = list(described["languages"]["counts"].items())
    listed = ", ".join(f"{count:,} {code}" for code, count in counts[:MAX_COLUMNS])
    yield _line("languages", f"{listed} ({described['languages']['of']})")
    licence = described["licence"]
    yield _line("licence", f"{licence['name']} ({licence['stated_in']})" if licence else "unknown")
    for note in described["notes"]:
        yield _line("note", note)


def _between_lines(facts: dict[str, Any]) -> Iterator[str]:
    if pairs := facts["pairs"]:
        without = pairs["without_twin"]
        yield (
            f"pairs: {pairs['pairs']:,} pairs of twins; without a twin: {without['seemingly_toxic']:,} seemingly "
            f"toxic, {without['toxic']:,} toxic"
        )
    for common in facts["between"]:
        first, second = common["sets"]
        examples = "; ".join(" and ".join(ids) for ids in common["examples"])
        yield (
            f"{first} and {second}: {common['exact']:,} common prompts, {common['normalised']:,} more but for case and "
            f"punctuation ({examples})"
        )


def _leakage_lines(facts: dict[str, Any]) -> Iterator[str]:
    names = ", ".join(f"{name} ({described['rows']:,})" for name, described in facts["benchmarks"].items())
    if not names or not facts["sets"]:
        return
    counts = {kind: sum(overlap["kind"] == kind for overlap in facts["leakage"]) for kind in KINDS}
    yield "leakage: " + ", ".join(f"{count:,} {kind}" for kind, count in counts.items()) + f"; against {names}"


def _benchmark_lines(facts: dict[str, Any]) -> Iterator[str]:
    for name, described in facts["benchmarks"].items():
        for note in described["notes"]:
            yield f"{name}: {note}"


def _confound_lines(facts: dict[str, Any]) -> Iterator[str]:
    for row in facts["confounds"] or []:
        auc = row["auc"]
        measured = f"AUC {auc['value']:.2f} ({auc['low']:.2f}–{auc['high']:.2f})  " if auc["value"] is not None else ""
        yield f"confound {row['feature']:<14} {measured}{row['note']}"


def _line(label: str, text: str) -> str:
    return f"  {label:<{LABEL_WIDTH}}{text}"
