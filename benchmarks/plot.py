"""Time and memory against N, from the rows of contrastive.py: one column of panels per D.

    python benchmarks/plot.py benchmarks/results/cpu.csv --out benchmarks/results/cpu.png
    python benchmarks/plot.py benchmarks/results/h200.csv --dtype bf16 --tflops 790 --gbs 4300 --out h200.png

--tflops, and --gbs for the minimal memory traffic, draw the roofline of the device; without them the rows of gemm3 are
the floor. A cross above a panel marks a size that a provider could not run. If several rows measure the same, the last
is used. Needs matplotlib, which is in the extra `eval`.
"""

import argparse
import csv
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

SAME = ("device", "loss", "dtype", "classes", "data", "scale", "threads")  # in one picture
CHOSEN = ("mode", "commit", *SAME)
ITEM_BYTES = {"fp32": 4, "bf16": 2}
PRODUCTS = {"fwd": 2, "bwd": 4, "full": 6}
WHAT = {"fwd": "forward", "bwd": "gradient (full − forward)", "full": "forward + backward"}
CLOCK = {"cpu": "CPU time", "device": "GPU time"}
FLOOR = "#444444"
# Okabe and Ito's colours, which are distinguishable with all common kinds of colour vision; and different markers
STYLES = {
    "pml": ("#D55E00", "o", "-"),
    "pml_fp32": ("#D55E00", "^", "--"),
    "pml_tf32": ("#D55E00", "v", ":"),
    "eager": ("#E69F00", "s", "-"),
    "eager_tf32": ("#E69F00", "D", ":"),
    "compile": ("#CC79A7", "P", "-"),
    "compile_bf16": ("#CC79A7", "X", "--"),
    "chunked": ("#56B4E9", "D", "-"),
    "chunked_tf32": ("#56B4E9", "p", ":"),
    "triton": ("#0072B2", "*", "-"),
    "triton_tf32": ("#0072B2", "h", ":"),
    "gemm3": (FLOOR, "", "--"),
}


def read(options: argparse.Namespace, fail: Callable[[str], None]) -> list[dict[str, str]]:
    """The rows that match the options; a column without an option must have the same value in all of them."""
    if not options.file.is_file():
        fail(f"{options.file}: no such file")
    with options.file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if rows and not {"provider", "n", "d", "q50_ms", *CHOSEN} <= rows[0].keys():
        fail(f"{options.file}: not the rows of contrastive.py")
    for column in CHOSEN:
        if (value := getattr(options, column)) is not None:
            rows = [row for row in rows if row[column] == value]
    if not rows:
        fail(f"{options.file}: no row matches the options")
    for column in SAME:
        if len(values := {row[column] for row in rows}) > 1:
            fail(f"{options.file}: several values of {column}: {', '.join(sorted(values))}; choose one with --{column}")
    return list({(row["provider"], row["n"], row["d"]): row for row in rows}.values())


def roofline(n: int, d: int, options: argparse.Namespace, item: int) -> float:
    """Seconds that the arithmetic or the least traffic takes, the larger one.

    The traffic of a forward pass is h read twice; a gradient besides is written and read in float32 and written.
    """
    traffic = (2 * item + (8 + item) * (options.mode != "fwd")) * n * d
    arithmetic = PRODUCTS[options.mode] * n * n * d / options.tflops / 1e12
    return max(arithmetic, traffic / options.gbs / 1e9 if options.gbs else 0)


def draw(rows: list[dict[str, str]], options: argparse.Namespace) -> None:
    from matplotlib import pyplot

    widths, sizes = (sorted({int(row[column]) for row in rows}) for column in ("d", "n"))
    figure, panels = pyplot.subplots(
        2,
        len(widths),
        figsize=(2.6 + 3.4 * len(widths), 7),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for (above, below), d in zip(panels.T, widths, strict=True):
        here = [row for row in rows if int(row["d"]) == d]
        draw_lines(above, here, "q50_ms", 1e-3)
        draw_lines(below, [row for row in here if row["provider"] != "gemm3"], "peak_mb", 1e6)
        if options.tflops:
            floor = [roofline(n, d, options, ITEM_BYTES[rows[0]["dtype"]]) for n in sizes]
            above.plot(sizes, floor, color=FLOOR, linestyle=":", label="roofline")
        above.set_title(f"D = {d}", fontsize=11, pad=18)
        below.set_xlabel("rows N")
        for panel, unit in ((above, "s"), (below, "B")):
            set_axes(panel, sizes, unit)
    first = rows[0]
    panels[0, 0].set_ylabel(f"{CLOCK[first['clock']]}, {WHAT[options.mode]} (s)")
    panels[1, 0].set_ylabel("peak memory beyond the inputs (B)")
    figure.suptitle(title(rows), fontsize=11)
    lines = {line.get_label(): line for panel in panels.flat for line in panel.get_legend_handles_labels()[0]}
    figure.legend(lines.values(), lines.keys(), loc="outside right center", frameon=False)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=150)


def draw_lines(panel, rows: list[dict[str, str]], column: str, unit: float) -> None:
    """Draw a line per provider, and a cross above each size that a provider could not run."""
    crosses: dict[int, list[str]] = {}
    for name, (color, marker, line) in STYLES.items():
        own = sorted((row for row in rows if row["provider"] == name), key=lambda row: int(row["n"]))
        points = [(int(row["n"]), unit * float(row[column])) for row in own if row[column] and float(row[column]) > 0]
        if points:
            label = "three products" if name == "gemm3" else name
            panel.plot(*zip(*points, strict=True), color=color, marker=marker, linestyle=line, label=label)
        for row in own:
            if row["outcome"] != "ok":
                crosses.setdefault(int(row["n"]), []).append(color)
    for n, colors in crosses.items():
        for place, color in enumerate(colors):
            offset = (8 * (place - (len(colors) - 1) / 2), 3)  # points: side by side above the panel
            cross = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center"}
            panel.annotate("×", (n, 1), offset, color=color, weight="bold", fontsize=12, **cross)
    if crosses:
        panel.plot([], [], color=FLOOR, marker="x", linestyle="", label="did not run")


def set_axes(panel, sizes: list[int], unit: str) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator

    panel.set(xscale="log", yscale="log")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(sizes, [f"{n // 1024}k" if n % 1024 == 0 else str(n) for n in sizes])
    low, high = panel.get_ylim()
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 3e3 * low else (1,), numticks=12))
    panel.yaxis.set_major_formatter(EngFormatter(unit))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(color="#DDDDDD", linewidth=0.7)
    panel.spines[["top", "right"]].set_visible(False)


def title(rows: list[dict[str, str]]) -> str:
    row = rows[0]
    threads = f", {row['threads']} thread{'s' * (row['threads'] != '1')}" if row["clock"] == "cpu" else ""
    scale = f", γ = {float(row['scale']):g}" if row["loss"] == "circle" else ""
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    problem = f"{row['loss']} loss{scale}, {row['dtype']}, {row['classes']} classes, {row['data']} rows"
    return f"{problem}\n{row['device']}{threads}, commit {commits}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="csv of contrastive.py")
    parser.add_argument("--out", type=Path, required=True, help="the picture: .png, .svg or .pdf")
    parser.add_argument("--mode", choices=PRODUCTS, default="full")
    for column in ("commit", *SAME):
        parser.add_argument(f"--{column}", help="use only the rows with this value")
    parser.add_argument("--tflops", type=float, help="peak of the device in TFLOP/s, for the roofline")
    parser.add_argument("--gbs", type=float, help="memory bandwidth in GB/s, for the roofline")
    options = parser.parse_args()
    if find_spec("matplotlib") is None:
        parser.error("this needs matplotlib: pip install -e '.[eval]'")
    if options.out.suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"--out {options.out}: .png, .svg or .pdf")
    options.rows = read(options, parser.error)
    return options


def main() -> None:
    options = parse()
    draw(options.rows, options)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
