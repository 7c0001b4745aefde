"""Sections on the stages: what they did and cost, on which data and with which settings."""

from collections.abc import Sequence
from shlex import quote
from typing import Any

from dcr_ds.report.numbers.columns import run_titles
from dcr_ds.report.numbers.read import Run
from dcr_ds.report.render.document import Block, Bullets, Commands, Paragraph, plain_table
from dcr_ds.report.render.tables import NOTHING, count, duration, gibibytes, number, percent, shortened
from dcr_ds.report.sections.results import loss_change

# Fields of the recipe that the numbers depend on; those of refine are shown only if a run has that stage.
SETTINGS = (
    "stages", "control", "model.source", "model.revision", "model.dtype", "model.attention", "model.chat_template",
    "model.chat_template_kwargs",
    "refine.layer", "refine.loss", "refine.form", "refine.margin", "refine.scale", "refine.temperature",
    "refine.pooling", "refine.pairs",
    "refine.global_batch", "refine.learning_rate", "refine.max_steps", "refine.target_gap", "refine.patience",
    "refine.min_steps", "refine.max_drift",
    "refine.retain_weight", "refine.retain_batch",
    "align.method", "align.loss_on", "align.learning_rate", "align.epochs", "align.global_batch", "align.safe_ratio",
    "align.max_length", "align.target_refusal", "align.adapter",
    "evaluate.judges", "evaluate.max_new_tokens", "evaluate.batch_size", "evaluate.engine", "deepspeed", "seed",
)  # fmt: skip
MAX_OVERLAPS = 20  # listed of one run
MAX_NOTE = 400  # characters
MAX_SETTING = 60


def refinement(runs: Sequence[Run]) -> list[Block]:
    titles = run_titles(runs) if len(runs) > 1 else ["refined"]
    refined = [(title, run, run.refine) for title, run in zip(titles, runs, strict=True) if run.refine]
    if not refined:
        return []
    summaries = [summary for _, _, summary in refined]
    rows = [["", *(title for title, _, _ in refined)]]
    rows.append(["layer", *(str(summary.get("layer", NOTHING)) for summary in summaries)])
    for label, key in (("cosine gap", "gap"), ("AUC", "auc"), ("drift", "drift")):
        changes = ((summary.get("start") or {}, exported(summary)) for summary in summaries)
        rows.append([f"{label}, start → exported", *(_arrow(start.get(key), end.get(key)) for start, end in changes)])
    rows += [
        ["loss, first → last", *(_arrow(entry.get("loss_first"), entry.get("loss_last")) for entry in summaries)],
        ["loss on held-out answers", *(_refined_loss(run) for _, run, _ in refined)],
        ["steps", *(count(summary.get("steps")) for summary in summaries)],
        ["exported step", *(count(summary.get("exported_step")) for summary in summaries)],
        ["prompts seen", *(count(summary.get("samples")) for summary in summaries)],
    ]
    stops = [
        Paragraph(f"{title} stopped because: {shortened(summary['stopped_because'], MAX_NOTE)}.")
        for title, _, summary in refined
        if summary.get("stopped_because")
    ]
    explanation = (
        "Measured on held-out prompts at the refined layer ℓ. Cosine gap: mean similarity within the sets minus that "
        "across them. AUC: how well the activations separate the two sets. Drift: change of the activations of general "
        "prompts, relative to their length. Exported are the weights of the step with the largest gap that passed."
    )
    return [plain_table("What the refine stage did.", rows), *stops, Paragraph(explanation)]


def cost(runs: Sequence[Run]) -> list[Block]:
    rows = [["", "wall time", "steps", "tokens", "tokens/s", "peak memory", "device"]]
    for run, title in zip(runs, run_titles(runs), strict=True):
        prefix = f"{title}: " if len(runs) > 1 else ""
        device = str(run.environment.get("device", NOTHING))
        for stage, summary in (("refine", run.refine), ("control", run.control), ("align", run.align)):
            if summary:
                rows.append(_stage_cost(prefix + stage, summary, device))
        for name, model in run.models.items():
            if model.cost:
                rows.append(_evaluation_cost(f"{prefix}evaluate {name}", model.cost))
    if len(rows) == 1:
        return []
    explanation = "Tokens of an evaluation are the generated ones; its wall time excludes loading the model."
    explanation += _log_odds_cost(runs) + _training_shares(runs)
    return [plain_table("Time, tokens and memory of each stage.", rows), Paragraph(explanation)]


def data(runs: Sequence[Run]) -> list[Block]:
    """Where the data came from; a set that several runs share is listed once."""
    rows = [["", "rows", "sha256", "source"]]
    for run in runs:
        for name, source in run.environment.get("data", {}).items():
            row = [name, count(source.get("rows")), source.get("sha256", "")[:12], shortened(source.get("source", ""))]
            if row not in rows:
                rows.append(row)
    return [plain_table("Data sets of the runs.", rows)] if len(rows) > 1 else []


def leakage(runs: Sequence[Run]) -> list[Block]:
    blocks: list[Block] = []
    for run in runs:
        overlaps = run.environment.get("overlaps", [])
        if overlaps:
            more = [f"and {len(overlaps) - MAX_OVERLAPS} more"] if len(overlaps) > MAX_OVERLAPS else []
            text = "training rows overlap with evaluation prompts (the run continued because of allow_leakage):"
            blocks.append(Paragraph(f"{run.name}: {len(overlaps)} {text}"))
            blocks.append(Bullets([*(shortened(overlap, MAX_NOTE) for overlap in overlaps[:MAX_OVERLAPS]), *more]))
    return blocks


def settings(runs: Sequence[Run]) -> list[Block]:
    names = [name for name in SETTINGS if any(_depends_on(run, name) for run in runs)]
    rows = [["", *(run.name for run in runs)], *([name, *(_setting(run, name) for run in runs)] for name in names)]
    return [plain_table("Fields of the recipes that the numbers depend on.", rows)]


def reproduction(runs: Sequence[Run], command: str) -> list[Block]:
    """The commands that repeat the runs and this report, and the versions they were made with."""
    lines = [line for run in runs if (line := _made_with(run))]
    commands = dict.fromkeys(
        run.environment.get("command") or f"python train.py {quote(str(run.folder / 'recipe.yaml'))} --output again"
        for run in runs
    )
    evaluated = any(run.environment.get("command") for run in runs)
    evaluates = (
        " To repeat an evaluation, change its --out: in the same folder it is already finished." if evaluated else ""
    )
    return [
        Paragraph(f"These commands repeat the runs; the last one writes this report.{evaluates}"),
        Commands([*commands, command]),
        *([Bullets(lines)] if lines else []),
    ]


def notes(runs: Sequence[Run]) -> list[Block]:
    """What was left out or chosen automatically; a note of several runs is listed once."""
    lines = dict.fromkeys(shortened(note, MAX_NOTE) for run in runs for note in run.environment.get("notes", []))
    return [Bullets(list(lines))] if lines else []


def exported(summary: dict) -> dict:
    """The figures of the weights that stage 1 exported; of the last ones, where a version kept only these."""
    return summary.get("best") or summary.get("final") or {}


def _arrow(first: float | None, last: float | None) -> str:
    return NOTHING if first is None and last is None else f"{number(first)} → {number(last)}"


def _refined_loss(run: Run) -> str:
    base, refined = (run.models[model].general_loss if model in run.models else None for model in ("base", "refined"))
    if not base or not refined:
        return NOTHING
    return f"{number(refined['loss'])} ({loss_change(refined['loss'], base['loss'])})"


def _stage_cost(name: str, summary: dict, device: str) -> list[str]:
    seconds, tokens = summary.get("wall_seconds"), summary.get("tokens")
    speed = tokens / seconds if tokens is not None and seconds else None
    memory = gibibytes(summary.get("peak_memory_bytes"))
    return [name, duration(seconds), count(summary.get("steps")), count(tokens), count(speed), memory, device]


def _evaluation_cost(name: str, spent: dict) -> list[str]:
    generating = sum(part["seconds"] for part in spent["parts"].values() if "generated_tokens" in part)
    speed = spent["generated_tokens"] / generating if generating else None
    tokens = count(spent["generated_tokens"] or None)
    return [name, duration(spent["seconds"]), NOTHING, tokens, count(speed), NOTHING, str(spent["device"])]


def _training_shares(runs: Sequence[Run]) -> str:
    """What part of the training measurements and the retain term were; empty if it is not known."""
    sentences = []
    for stage in ("refine", "align"):
        summaries = [summary for run in runs if (summary := getattr(run, stage)) and summary.get("wall_seconds")]
        seconds = sum(summary["wall_seconds"] for summary in summaries)
        parts = {
            what: sum(summary.get(name) or 0.0 for summary in summaries)
            for name, what in (("measure_seconds", "measuring"), ("retain_seconds", "the retain term"))
        }
        shares = [f"{what} took {spent / seconds:.0%}" for what, spent in parts.items() if spent]
        if shares:
            sentences.append(f" Of {stage}, {' and '.join(shares)} of the wall time.")
    return "".join(sentences)


def _log_odds_cost(runs: Sequence[Run]) -> str:
    """What part of the evaluations reading the log-odds was; empty if none were read."""
    costs = [model.cost for run in runs for model in run.models.values() if model.cost]
    log_odds = sum(cost["parts"].get("log_odds", {}).get("seconds", 0.0) for cost in costs)
    if not log_odds:
        return ""
    total = sum(cost["seconds"] for cost in costs)
    return f" Refusal log-odds took {duration(log_odds)}, {percent(log_odds / total)} of all evaluation."


def _depends_on(run: Run, name: str) -> bool:
    """Whether a run depends on a field of its recipe; that of an earlier version may lack some."""
    section, _, field = name.rpartition(".")
    stages = {"refine": run.has_refine, "align": run.kind is not None}
    stages |= dict.fromkeys(("control", "deepspeed"), any(stages.values()))
    return stages.get(section or name, True) and field in (run.recipe.get(section) or {} if section else run.recipe)


def _setting(run: Run, name: str) -> str:
    if not _depends_on(run, name):
        return NOTHING
    value: Any = run.recipe
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    if isinstance(value, dict):
        value = "see recipe.yaml" if value else None
    return NOTHING if value is None else shortened(str(value), MAX_SETTING)


def _made_with(run: Run) -> str:
    environment = run.environment
    parts = [f"{name} {version}" for name, version in (environment.get("packages") or {}).items()]
    if environment.get("commit"):
        changed = " with uncommitted changes" if environment.get("uncommitted_changes") else ""
        parts.insert(0, f"commit {environment['commit'][:12]}{changed}")
    if environment.get("device"):
        parts.append(f"{environment['device']}, ranks: {count(environment.get('world_size'))}")
    return f"{run.name}: {', '.join(parts)}" if parts else ""
