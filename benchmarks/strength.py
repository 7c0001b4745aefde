"""The strength of stage 1: discernment on the development sets against the loss on general answers, as a picture.

    python benchmarks/strength.py benchmarks/results/refine_settings.csv --out docs/images/strength.png

Draws the rows of refine_settings.py. Three lines go through the defaults: the steps of training, which `target_gap` and
`max_steps` end, with the gap on the twins reached at each; the retain weight; the learning rate. Other settings are
points. The x axis is the loss relative to the base model's, the y axis the AUC of the class means at layer ℓ. If
several rows measure the same, the last is used. Needs matplotlib, which is in the extra `eval`.
"""

import argparse
import csv
from importlib.util import find_spec
from pathlib import Path

BASE, DEFAULTS = "base-23", "defaults"
FULL = "full-defaults"  # trained to the target gap, with the batches of the defaults, which are larger
SETS = {"builtin": "built-in held-out twins", "jailbreakbench": "JailbreakBench"}
# name of a line: (prefix of its settings, value of the defaults, colour and marker of Okabe and Ito's palette)
LINES = {
    "retain weight": ("retain_weight-", "30", "#0072B2", "s"),
    "learning rate": ("learning_rate-", "2.5e-4", "#D55E00", "^"),
}
STEPS, OTHER = "#000000", "#777777"
NOT_DRAWN = ("base-24", "seed-0")  # the demo has another layer, other pairs and twice the steps
PLACES = {
    "above": {"xytext": (0, 6), "ha": "center", "va": "bottom"},
    "below": {"xytext": (0, -6), "ha": "center", "va": "top"},
    "right": {"xytext": (7, 0), "ha": "left", "va": "center"},
}

Row = dict[str, str]


def read(file: Path) -> dict[tuple[str, int], Row]:
    """The rows by setting and steps."""
    with file.open(newline="", encoding="utf-8") as stream:
        rows = {(row["setting"], int(row["steps"])): row for row in csv.DictReader(stream)}
    if missing := {(BASE, 0), (DEFAULTS, 12)} - rows.keys():
        raise SystemExit(f"{file}: no row of {', '.join(f'{name} after {steps} steps' for name, steps in missing)}")
    return rows


def draw(rows: dict[tuple[str, int], Row], out: Path) -> None:
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(SETS), figsize=(11, 4.8), layout="constrained")
    for panel, (name, title) in zip(panels, SETS.items(), strict=True):
        draw_set(panel, rows, name)
        panel.set_title(title, fontsize=11)
        panel.set_xlabel("loss on held-out general answers, change from the base model (%)")
        panel.set_ylabel("AUC of the class means at layer ℓ, after refine")
        panel.margins(0.12)
        panel.grid(color="#DDDDDD", linewidth=0.7)
        panel.spines[["top", "right"]].set_visible(False)
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def draw_set(panel, rows: dict[tuple[str, int], Row], name: str) -> None:
    from matplotlib.patheffects import withStroke

    base = rows[BASE, 0]
    defaults = rows[DEFAULTS, 12]

    def point(row: Row) -> tuple[float, float]:
        return 100 * (float(row["general_loss"]) / float(base["general_loss"]) - 1), float(row[f"{name}_auc"])

    def label(row: Row, text: str, color: str, place: str) -> None:
        options = {"textcoords": "offset points", "fontsize": 8, "color": color}
        note = panel.annotate(text, point(row), **options, **PLACES[place])
        note.set_path_effects([withStroke(linewidth=2, foreground="white")])

    drawn = {(BASE, 0), (DEFAULTS, 12)}
    for title, (prefix, default, color, marker) in LINES.items():
        own = {setting: row for (setting, _), row in rows.items() if setting.startswith(prefix)}
        drawn |= {key for key in rows if key[0] in own}
        by_value = {float(setting.removeprefix(prefix)): row for setting, row in own.items()} | {
            float(default): defaults
        }
        path = [by_value[value] for value in sorted(by_value)]
        panel.plot(*zip(*map(point, path), strict=True), color=color, marker=marker, label=title)
        for setting, row in own.items():
            label(row, setting.removeprefix(prefix), color, "below")
    trajectory = [row for (setting, _), row in sorted(rows.items(), key=by_steps) if setting in (BASE, DEFAULTS, FULL)]
    drawn |= {key for key in rows if key[0] in (DEFAULTS, FULL)}
    panel.plot(*zip(*map(point, trajectory), strict=True), color=STEPS, marker="o", label="steps (target gap)")
    for row in trajectory:
        steps = f"{row['steps']} steps, gap {float(row['builtin_gap']):.2f}"
        place = "above" if row is defaults else "right" if row["setting"] == FULL else "below"
        label(row, "base" if row is base else steps, STEPS, place)
    others = {key: row for key, row in rows.items() if key not in drawn and key[0] not in NOT_DRAWN}
    if others:
        panel.plot(*zip(*map(point, others.values()), strict=True), "x", color=OTHER, label="other settings")
    for (setting, _), row in others.items():
        label(row, setting.replace("-", " ", 1), OTHER, "below" if setting.startswith("pairs") else "above")


def by_steps(item: tuple[tuple[str, int], Row]) -> int:
    return item[0][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="csv of refine_settings.py")
    parser.add_argument("--out", type=Path, required=True, help="the picture: .png, .svg or .pdf")
    options = parser.parse_args()
    if find_spec("matplotlib") is None:
        parser.error("this needs matplotlib: pip install -e '.[eval]'")
    if not options.file.is_file():
        parser.error(f"{options.file}: no such file")
    draw(read(options.file), options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
