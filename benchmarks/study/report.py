"""docs/RESULTS.md and its figures, from the committed results of the study.

    python benchmarks/study/report.py

The text between the tables that a person wrote is in reading.md. Needs matplotlib, which is in the extra `eval`.
"""

import argparse
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # marks.py

import numpy as np
from ablations import DEVELOPMENT, compared, default_recipe
from analysis import PLAN, Endpoint, Study, difference, figures, primary, rates, reading_that_agrees, t_interval
from arms import ATTACKED_SEEDS, HERE, ROOT, read_arms, refuse_other_protocols
from figures import STYLES, Bar, draw_forest, draw_fronts
from headline import headline
from marks import replace_marked
from rows import RESULTS
from secondary import arms_table, compliance_table, cost_table

from dcr_ds.discernment.measures import COMPLIED, Result
from dcr_ds.errors import EXIT_USER_ERROR, UserError
from dcr_ds.report.render.tables import literal, markdown_table, number, shortened, signed

TITLES = {"xstest": "XSTest", "or-bench": "OR-Bench", "builtin": "built-in twins"}
MEASURES = {"auc": "AUC", "youden_j": "Youden's J, judged answers"}
READING_NAMES = {"log_odds": "log-odds", "margin": "margins", None: ""}
COMPLIANCE = "**Compliance at given refusal** of the main arms, by the reading that the endpoints of hypothesis 1 use."
WEAKER_REFUSALS = (
    "**Weaker refusals** (exploratory, added after seed 0): −2 on the logits of the refusal openings of both arms."
)
REPAIR = "**Repair**: STL's result, refined and aligned half as long, against STL. No hypothesis of the protocol."
REPAIR_CONTROL = (
    "**Repair without refine** (exploratory): the same short alignment of STL's result, `align-again`, against repair."
)
ABLATIONS = (
    "## Ablations",
    "Each changes one thing of DCR's recipe ([STUDY.md](STUDY.md#arms)). By the log-odds, less DCR at the same seeds, "
    "whose number is in parentheses; the ablations gave no answers.",
    "![AUC of the ablations less DCR's](images/study-ablations.png)",
)
FRONTS = (
    "![Compliance against refusal](images/study-fronts.png)",
    "Lines: what the scores allow, mean of the seeds; bands: from the lowest to the highest seed; marks: the judged "
    "answers of a seed.",
)
COST = (
    "Training on one core of a machine that did other work at the same time, so that seconds compare arms only "
    "roughly. Means over the seeds. The cost of the model that an arm starts from is not included."
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "RESULTS.md")
    parser.add_argument("--readme", type=Path, help="page with marks for the table of the main arms")
    options = parser.parse_args()
    if find_spec("matplotlib") is None:
        parser.error("this needs matplotlib: pip install -e '.[eval]'")
    if options.readme and not options.readme.is_file():
        parser.error(f"--readme {options.readme}: no such file")
    try:
        refuse_other_protocols(read_arms(), options.results)
        main_arms = write(Study(options.results), options.out)
        if options.readme:
            replace_marked(options.readme, "make study-report", main_arms)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    print(f"wrote {options.out}" + (f" and the table of {options.readme}" if options.readme else ""))
    return 0


def write(study: Study, out: Path) -> str:
    """Write the page and its figures.

    Returns:
        The table of the main arms.

    Raises:
        UserError: STL or DCR has no results, or results are damaged.
    """
    arms = [name for name in read_arms() if study.seeds(name)]
    if missing := {"stl", "dcr"} - set(arms):
        raise UserError(f"{study.results}: no results of {' and '.join(sorted(missing))}; run `make study` first")
    if not study.common("stl", "dcr"):
        raise UserError(f"{study.results}: stl and dcr have no seed in common; run `make study` first")
    for arm in arms:  # damaged rows are found before anything is written
        study.attacks(arm)
        for pair in PLAN.pairs.values():
            study.readings(arm, pair)
    main_arms = headline(study)
    ablations = [name for name in arms if read_arms()[name].group == "ablation"]
    draw(study, arms, ablations, out.parent / "images")
    out.write_text("\n\n".join(page(study, arms, ablations, main_arms)) + "\n", encoding="utf-8")
    return main_arms


def draw(study: Study, arms: list[str], ablations: list[str], images: Path) -> None:
    draw_fronts(study, [arm for arm in STYLES if arm in arms], images / "study-fronts.png")
    others = bars(study, [name for name in arms if name not in ablations], "stl", "margin")
    draw_forest(others, "AUC of the margins on XSTest less STL's, 95 % interval", images / "study-arms.png")
    if ablations:
        changed = bars(study, ablations, "dcr", "log_odds")
        draw_forest(changed, "AUC of the log-odds on XSTest less DCR's, 95 % interval", images / "study-ablations.png")


def page(study: Study, arms: list[str], ablations: list[str], main_arms: str) -> list[str]:
    """The paragraphs, tables and figures from top to bottom."""
    return [
        "# Results of the study",
        "Written by `make study-report` from [the rows](../benchmarks/results/study); the protocol is "
        "[STUDY.md](STUDY.md). Intervals are 95 %, over prompts and seeds; with one seed, over prompts alone. "
        f"{made_at(study, arms)}",
        *FRONTS,
        f"The main arms, with the number of seeds of each (attacks: seeds below {ATTACKED_SEEDS}):",
        main_arms,
        "## Hypothesis 1: DCR against STL",
        endpoint_section(study, "stl"),
        *hypothesis_3(study),
        "## Hypothesis 2: DCR against the knob",
        knob_table(study),
        COMPLIANCE,
        compliance_table(study, [arm for arm in STYLES if arm in arms]),
        *described(study, "dcr-knob-down", "knob-down", WEAKER_REFUSALS),
        *described(study, "repair", "stl", REPAIR),
        *described(study, "repair", "align-again", REPAIR_CONTROL),
        *reading_text(),
        "## All arms",
        arms_table(study, arms),
        discernment_table(study, arms, TITLES),
        "Development sets:",
        discernment_table(study, arms, DEVELOPMENT),
        "![AUC of the arms less STL's](images/study-arms.png)",
        *([*ABLATIONS, *development_section(study, ablations)] if ablations else []),
        "## Cost",
        COST,
        cost_table(study, arms),
        "## Examples",
        "Harmless prompts of XSTest (CC BY 4.0, Röttger et al., NAACL 2024): those of the first 12 that STL and DCR "
        "answer in different numbers of seeds. The texts are the answers of the first seed, cut.",
        example_table(study),
    ]


def made_at(study: Study, arms: list[str]) -> str:
    """The commits of the rows: the protocol's hash does not cover the code."""
    commits = {cost["commit"] for arm in arms for cost in study.costs(arm)}
    return f"Rows of {len(commits)} commit{'s' * (len(commits) > 1)}; the JSON file of each seed names its own."


def reading_text() -> list[str]:
    file = HERE / "reading.md"
    return ["## Reading", file.read_text(encoding="utf-8").strip()] if file.is_file() else []


def interval(result: Result) -> str:
    """A value with its interval."""
    if result["value"] is None:
        return "–"
    if result["low"] is None:
        return number(result["value"], 2)
    return f"{number(result['value'], 2)} ({number(result['low'], 2)} to {number(result['high'], 2)})"


def signed_interval(result: Result) -> str:
    if result["low"] is None:
        return signed(result["value"])
    return f"{signed(result['value'])} ({number(result['low'], 2)} to {number(result['high'], 2)})"


def hypothesis_3(study: Study) -> list[str]:
    if not study.common("dcr", "equal-data"):
        return []
    return ["## Hypothesis 3: DCR against equal data", endpoint_section(study, "equal-data")]


def endpoint_section(study: Study, other: str) -> str:
    """The primary endpoints of DCR and another arm, and what they say by the rule of the protocol."""
    endpoints, common = primary(study, "dcr", other), study.common("dcr", other)
    planned = min(read_arms()[arm].seeds for arm in ("dcr", other))
    is_done = len(common) >= planned
    so_far = "" if is_done else f"{len(common)} of {planned} seeds are done, so this is no result yet. "
    return f"{endpoint_table(study, endpoints, 'dcr', other)}\n\n{so_far}{verdict(endpoints, other)}"


def described(study: Study, ours: str, other: str, what: str) -> list[str]:
    """Two arms that no hypothesis compares, by the primary endpoints."""
    if not study.common(ours, other):
        return []
    return [what, endpoint_table(study, primary(study, ours, other), ours, other)]


def endpoint_table(study: Study, endpoints: list[Endpoint], arm: str, other: str) -> str:
    rows = [["", "seeds", other, arm, "difference", "p, Holm"]]
    for endpoint in endpoints:
        pair = PLAN.pairs[endpoint.pair]
        theirs, ours = (study.readings(name, pair) for name in (other, arm))
        common = [seed for seed in ours.seeds if seed in theirs.seeds]
        values = [
            figures(readings.of_seeds(common), endpoint.reading or "log_odds")[endpoint.measure]
            for readings in (theirs, ours)
        ]
        reading = f" of the {READING_NAMES[endpoint.reading]}" if endpoint.reading else ""
        rows.append(
            [
                f"{TITLES[endpoint.pair]}: {MEASURES[endpoint.measure]}{reading}",
                str(len(common)),
                *map(interval, values),
                signed_interval(endpoint.result),
                number(endpoint.p_holm),
            ]
        )
    return markdown_table(rows)


def verdict(endpoints: list[Endpoint], other: str) -> str:
    """The protocol's rule in one sentence."""
    positive = all((endpoint.result["value"] or 0) > 0 for endpoint in endpoints)
    sets = {endpoint.pair for endpoint in endpoints}
    significant = {endpoint.pair for endpoint in endpoints if endpoint.p_holm < 0.05}
    names = [f"{TITLES[endpoint.pair]}, {MEASURES[endpoint.measure]}" for endpoint in endpoints]
    highest = [endpoint.result["high"] or 0 for endpoint in endpoints]
    unclear = [
        name
        for name, endpoint, high in zip(names, endpoints, highest, strict=True)
        if (endpoint.result["low"] or 0) <= 0 <= high
    ]
    harmed = [name for name, high in zip(names, highest, strict=True) if high < 0]
    said = "supported" if positive and significant == sets else "not supported"
    text = f"By the rule of the protocol: **{said}** (DCR against {other})."
    text += f" Harm: {'; '.join(harmed)}." if harmed else ""
    return text + (f" No difference shown: {'; '.join(unclear)}." if unclear else "")


def knob_table(study: Study) -> str:
    """DCR's compliance at given refusal rates less that of the knob, which STL's own curve gives."""
    rows = [["", "80 % refusal", "90 % refusal", "judged compliance less the knob's at the same refusal"]]
    for name in ("xstest", "or-bench"):
        ours, theirs = (study.readings(arm, PLAN.pairs[name]) for arm in ("dcr", "stl"))
        reading = reading_that_agrees(ours, theirs)
        results = difference(ours, theirs, reading)
        cells = [results[f"compliance_at_{rate}_refusal"] for rate in (80, 90)]
        label = f"{TITLES[name]}, {READING_NAMES[reading]}"
        rows.append([label, *map(signed_interval, cells), over_knob(study, name)])
    return markdown_table(rows)


def over_knob(study: Study, name: str) -> str:
    """Judged: DCR's compliance less that of the line through knob-down, STL and knob-up, mean over seeds."""
    arms = ("knob-down", "stl", "knob-up", "dcr")
    common = study.common(*arms)
    if len(common) < 2:
        return "–"
    by_arm = {arm: rates(study.readings(arm, PLAN.pairs[name]).of_seeds(common)) for arm in arms}
    gains = []
    for place in range(len(common)):
        line = sorted((by_arm[arm][1][place], by_arm[arm][0][place]) for arm in arms[:3])
        refusal, compliance = zip((0.0, 1.0), *line, (1.0, 0.0), strict=True)
        gains.append(by_arm["dcr"][0][place] - np.interp(by_arm["dcr"][1][place], refusal, compliance))
    mean, low, high = t_interval(np.array(gains))
    return f"{signed(mean)} ({number(low, 2)} to {number(high, 2)}, t over {len(gains)} seeds)"


def discernment_table(study: Study, arms: list[str], titles: dict[str, str]) -> str:
    """AUC of log-odds and margins, with the agreement with the judged answers where there are any."""
    rows = [["", *(f"{title}: {what}" for title in titles.values() for what in ("log-odds", "margins"))]]
    for arm in arms:
        cells = []
        for name in titles:
            readings = study.readings(arm, PLAN.pairs[name])
            for reading in ("log_odds", "margin"):
                results = figures(readings, reading)
                agreed = results.get("agreement", {}).get("value")
                cells.append(interval(results["auc"]) + (f", agreement {number(agreed, 2)}" if agreed else ""))
        rows.append([arm, *cells])
    return markdown_table(rows)


def bars(study: Study, arms: list[str], other: str, reading: str) -> list[Bar]:
    """AUC on XSTest of each arm less that of another arm at the same seeds.

    Args:
        reading: "margin", which agrees with the answers of all arms, or "log_odds".
    """
    pair = PLAN.pairs["xstest"]
    theirs = study.readings(other, pair)
    found = []
    for arm in arms:
        if arm != other and (common := study.common(arm, other)):
            result = difference(study.readings(arm, pair), theirs, reading)["auc"]
            found.append(Bar(f"{arm} ({len(common)})", result["value"] or 0.0, result["low"], result["high"]))
    return found


def development_section(study: Study, arms: list[str]) -> list[str]:
    """The ablations less DCR on the development sets, and what that means for the default recipe."""
    ablations = compared(study, arms)
    rows = [["", "seeds", *(cell for title in DEVELOPMENT.values() for cell in (title, "p, Holm"))]]
    for ablation in ablations:
        tests = zip(ablation.results, ablation.p_holm, strict=True)
        cells = [cell for result, p in tests for cell in (signed_interval(result), number(p))]
        rows.append([ablation.name, str(ablation.num_seeds), *cells])
    intro = "AUC of the log-odds on the development sets, less DCR's at the same seeds; by these the default is chosen."
    return [intro, markdown_table(rows), default_recipe(study, ablations)]


def example_table(study: Study) -> str:
    """The first harmless prompts: how many seeds of STL and DCR answer each, and the answers of one seed."""
    arms = ("stl", "dcr")
    common = study.common(*arms)
    answers = {arm: {row["id"]: row for row in study.examples(arm, common[0])} for arm in arms}
    complied = {arm: Counter(_answered(study, arm, common)) for arm in arms}
    rows = [["prompt", f"STL answers, of {len(common)}", f"DCR answers, of {len(common)}", "STL", "DCR"]]
    for name, row in answers["stl"].items():
        counts = [complied[arm][name] for arm in arms]
        if counts[0] != counts[1] and name in answers["dcr"]:
            texts = (answers[arm][name]["completion"] for arm in arms)
            first, *cut = [literal(shortened(text, 120)) for text in (row["prompt"], *texts)]
            rows.append([first, *map(str, counts), *cut])
    return markdown_table(rows)


def _answered(study: Study, arm: str, seeds: list[int]) -> list[str]:
    """The ids of the harmless prompts that an arm answers, once per seed."""
    rows = [row for seed in seeds for row in study.rows(arm, seed)]
    return [row.id for row in rows if row.set == "xstest-safe" and row.label == COMPLIED]


if __name__ == "__main__":
    sys.exit(main())
