"""A plan as plain text, at most 100 columns wide."""

import textwrap
from collections.abc import Sequence

from dcr_ds.plan.choose import GIB, Option, Stage, best, remedy
from dcr_ds.plan.clock import Rates
from dcr_ds.plan.memory import Memory
from dcr_ds.plan.states import Zero

NAMES = {"refine": "cut trunk", "whole": "whole model", "align": "stage 2"}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left and the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def prose(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False)


def gib(size: float) -> str:
    size /= GIB
    return "–" if size == 0 else f"{size:.2f}" if size < 10 else f"{size:.1f}"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def rates_in_words(rates: Rates, measured: bool) -> str:
    """The assumed rates of computation and links."""
    computing = "the measured rates" if measured else f"{rates.flops / 1e12:.0f} TFLOP/s per GPU at {rates.mfu:.0%}"
    links = f"{rates.node_link / 1e9:.0f} GB/s within a node, {rates.network / 1e9:.0f} GB/s per GPU between nodes"
    return f"{computing}; links {links}, at {rates.share:.0%}"


def memory_table(columns: dict[str, tuple[int, Memory]], unit: str) -> str:
    """Memory by part, a column per layout with its micro-batch."""
    parts = list(next(iter(columns.values()))[1].parts())
    rows = [["micro-batch", *(str(rows) for rows, _ in columns.values())]]
    rows += [[part, *(gib(memory.parts()[part]) for _, memory in columns.values())] for part in parts]
    rows.append(["peak of a step", *(gib(memory.peak) for _, memory in columns.values())])
    rows.append(["peak in the", *(memory.peak_phase for _, memory in columns.values())])
    rows.append(["host memory", *(gib(memory.host) for _, memory in columns.values())])
    return table([f"GiB on each {unit}", *columns], rows)


def options_table(options: Sequence[Option], chosen: Option | None) -> str:
    """Memory, traffic and time per ZeRO stage."""
    rows = []
    for option in options:
        verdict = "does not fit" if not option.fits else "<- chosen" if option is chosen else ""
        rows.append(
            [
                option.zero.name,
                str(option.micro_batch),
                gib(option.memory.peak),
                gib(option.sent),
                f"{option.time.overlapped:.3g}–{option.time.serial:.3g}",
                verdict,
            ]
        )
    return table(["", "micro-batch", "peak GiB", "sent GiB/step", "step s", ""], rows)


def which_applies(zero: Zero) -> str:
    """Which of the two times a configuration approaches."""
    if not zero.overlap:
        return "the second applies, since overlap_comm is off"
    check = " if the check of overlap_comm passes at the first step" if zero.stage == 3 else ""
    return f"the first is approached{check}"


def total_time(option: Option, steps: int, ranks: int, unit: str) -> str:
    """The time of all steps with and without overlap, and which of the two applies."""
    times = [option.time.overlapped, option.time.serial] if option.traffic else [option.time.serial]
    seconds = " to ".join(duration(steps * time) for time in times)
    hours = " to ".join(f"{steps * time * ranks / 3600:.3g}" for time in times)
    text = f"{steps} steps: {seconds}, {hours} {unit}-hours"
    if not option.traffic:
        return f"{text}."
    return f"{text} (traffic fully overlapped with computation, or not at all; {which_applies(option.zero)})."


def describe(stage: Stage, steps: int | None) -> tuple[str, Option | None]:
    """The plan of a stage as text, and the chosen option."""
    options = stage.options()
    chosen = best(options)
    shown = chosen or min(options, key=lambda option: option.memory.peak)
    lines = [options_table(options, chosen)]
    columns = {f"{NAMES[stage.name]}, {shown.zero.name}": (shown.micro_batch, shown.memory)}
    if stage.name == "refine":
        whole = Stage(stage.recipe, stage.folder, "whole", stage.cluster, stage.lengths)
        uncut = whole.at(shown.zero, shown.micro_batch)
        columns["whole model"] = (uncut.micro_batch, uncut.memory)
        lines.append(
            f"Without the cut (the whole model, with blocks 1 to {stage.section.layer} trained in full) a step takes "
            f"{uncut.time.serial / shown.time.serial:.2f} times as long and "
            f"{uncut.memory.peak / shown.memory.peak:.2f} times the memory."
        )
    elif stage.section.has_reference:
        second = f"; a second model would add {gib(shown.memory.states.parameters)} GiB"
        lines.append(
            "The reference needs no memory: the engine computes its log-probabilities before the first step"
            + (f"{second}." if stage.section.adapter == "none" else ".")
        )
    lines.insert(1, memory_table(columns, stage.cluster.unit))
    lines.append(_why(stage, options, chosen))
    if stage.cluster.gpus > (batch := stage.section.global_batch):
        lines.append(
            f"{stage.cluster.gpus - batch} of the {stage.cluster.gpus} {stage.cluster.unit}s get no sample in a step; "
            f"raise {stage.name}.global_batch = {batch}, or use fewer."
        )
    if chosen and steps:
        lines.append(total_time(chosen, steps, stage.cluster.gpus, stage.cluster.unit))
    elif chosen:
        lines.append("The number of steps is unknown without the data; set it with --steps.")
    return "\n\n".join(line if "\n" in line else prose(line) for line in lines), chosen


def _why(stage: Stage, options: Sequence[Option], chosen: Option | None) -> str:
    usable = stage.cluster.usable / GIB
    if chosen is None:
        least = min(options, key=lambda option: option.memory.peak)
        text = (
            f"Nothing fits: the least is {gib(least.memory.peak)} GiB of {usable:.1f} usable, under "
            f"ZeRO-{least.zero.stage}, micro-batch {least.micro_batch}."
        )
        if change_and_option := remedy(stage):
            change, option = change_and_option
            return (
                f"{text} With {change} it fits: {gib(option.memory.peak)} GiB under ZeRO-{option.zero.stage}, "
                f"micro-batch {option.micro_batch}."
            )
        return f"{text} Use more GPUs, GPUs with more memory, ds_configs/zero3_offload.json or a smaller model."
    text = f"{chosen.zero.name}: the fastest that fits in {usable:.1f} GiB"
    if chosen.zero.partition > 1:
        text += f" (ds_configs/zero3_hpz.json); {gib(chosen.sent_within)} of {gib(chosen.sent)} GiB stay in the node"
    if over := [option for option in options if not option.fits and option.zero.stage < chosen.zero.stage]:
        text += f"; ZeRO-{over[-1].zero.stage} would need {gib(over[-1].memory.peak)} GiB"
    three = next((option for option in options if option.zero.stage == 3), None)
    if three and chosen.zero.stage != 3 and three.fits and three.traffic:
        ratio = three.sent / max(1, chosen.sent)
        text += f"; ZeRO-3 sends {ratio:.1f} times the bytes" + (
            ", because it gathers the frozen base in every pass" if stage.section.adapter == "lora" else ""
        )
    return text + "."
