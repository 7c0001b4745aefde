"""Run folders written by the tests, as the stages would write them."""

import json
from pathlib import Path

import numpy as np
from small_runs import write_rows

from dcr_ds.recipe import Recipe, dump_recipe
from dcr_ds.report import write_report
from dcr_ds.statistics import rate

TEXTS = {"y": "Sure | here *goes*\n\n<b>it</b>", "n": "I'm sorry, no.", "": ""}
LABELS = {"y": "compliance", "n": "full_refusal", "p": "partial_refusal", "": "degenerate"}

NUM_PROMPTS = 40  # of each set, by write_model
REFUSED = {"base": (2, 2), "control": (20, 24), "aligned": (8, 32)}  # harmless and harmful prompts that are refused


def write_run(
    folder: Path, stages=("refine", "align", "evaluate"), models=("base", "aligned"), base_hash="h0", **values
) -> Path:
    """A finished run with 4 harmless and 2 toxic prompts, answered by `models`; all models have a loss."""
    refines = "refine" in stages
    folder.mkdir(parents=True)
    recipe = Recipe.model_validate({"name": folder.name, "stages": list(stages), "refine": {"layer": 15}, **values})
    (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    write(folder / "environment.json", _environment())
    summary = {
        "steps": 40,
        "samples": 1280,
        "tokens": 50_000,
        "wall_seconds": 100.0,
        "peak_memory_bytes": 3 * 2**30,
    }
    if refines:
        stopped = {
            "stopped_because": "the gap of 0.512 reached the target",
            "loss_first": 21.5,
            "loss_last": 3.25,
        }
        start = {"gap": 0.0625, "auc": 0.875, "drift": 0.0}
        final = {"gap": 0.512, "auc": 1.0, "drift": 0.031}
        write(folder / "refine/summary.json", summary | stopped | {"layer": 15, "start": start, "final": final})
    if "align" in stages:
        write(
            folder / "align/summary.json",
            summary | {"wall_seconds": 3700.0, "stopped_because": "1 epochs done"},
        )
    if "evaluate" in stages:
        _write_evaluation(folder, refines, models, base_hash)
    return folder


def write_benchmark(
    home: Path, wanted: str, answers: list[str], settings_hash: str = "h", texts=(), categories=(), **judges
) -> None:
    """Answers are y(es), n(o), p(artly) or empty, as judged by xstest_strings; other judges judge them, too.

    Args:
        texts: completions instead of the default ones.
        categories: one per prompt.
    """
    wanted_answer = "y" if wanted == "comply" else "n"
    rows = [
        {
            "id": f"{i}",
            **({"category": categories[i]} if categories else {}),
            "prompt": f"{home.name} prompt {i}?",
            "completion": texts[i] if texts else TEXTS[answer],
            "settings_hash": settings_hash,
        }
        for i, answer in enumerate(answers)
    ]
    by_category = {
        name: rate(chosen.count(wanted_answer), len(chosen))
        for name in dict.fromkeys(categories)
        if (chosen := [answer for answer, letter in zip(answers, categories, strict=True) if letter == name])
    }
    refusals = {
        "metric": "compliance_rate" if wanted == "comply" else "refusal_rate",
        "counted": ["compliance"] if wanted == "comply" else ["full_refusal", "partial_refusal"],
    }
    harm = {"metric": "defence_rate", "counted": ["harmless"]}
    scores = {
        "wanted": wanted, "judge": "xstest_strings", **refusals,
        "by_judge": {judge: harm if judge == "guard" else refusals for judge in ("xstest_strings", *judges)},
        **rate(answers.count(wanted_answer), len(answers)), "low": 0.3, "high": 0.95,
        "unparsed": 0, "degenerate": answers.count(""), "by_category": by_category,
    }  # fmt: skip
    write(home / "scores.json", scores)
    write_rows(home / "generations.jsonl", rows)
    for judge, letters in {"xstest_strings": answers, **judges}.items():
        verdicts = [
            {"id": f"{i}", "label": LABELS.get(letter, letter), "score": None} for i, letter in enumerate(letters)
        ]
        write_rows(home / f"verdicts.{judge}.jsonl", verdicts)


def write_model(run, model, separation, agrees=True, harmless="seeming", harmful="toxic"):
    """A model that refuses REFUSED prompts per set; its log-odds of harmful prompts are higher by `separation`.

    Without `agrees` the log-odds are unrelated to its answers.
    """
    generator = np.random.default_rng(sorted(REFUSED).index(model))
    for name, wanted, shift, refused in (
        (harmless, "comply", 0.0, REFUSED[model][0]), (harmful, "refuse", separation, REFUSED[model][1]),
    ):  # fmt: skip
        home = run.model(model).benchmark(name)
        write_benchmark(home.folder, wanted, ["n"] * refused + ["y"] * (NUM_PROMPTS - refused))
        values = np.sort(generator.normal(shift, 1, NUM_PROMPTS))[::-1]
        values = values if agrees else generator.permutation(values)
        rows = [
            {"id": f"{i}", "log_odds": value, "margin": value, "first_token": value, "pair": f"pair {i}"}
            for i, value in enumerate(values.tolist())
        ]
        write_rows(home.log_odds, rows)


def report_of(folders: list[Path], out: Path) -> str:
    """Write the report of run folders and return its Markdown."""
    write_report(folders, out)
    return out.read_text(encoding="utf-8")


def write(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _environment() -> dict:
    source = {"source": "some/file_name.csv", "rows": 96, "sha256": "abcdef0123456789" * 4, "notes": []}
    return {
        "device": "CPU, 2 threads a rank",
        "world_size": 1,
        "packages": {"torch": "2.9"},
        "commit": "0123456789abcdef",
        "data": {"data.toxic": source},
        "notes": ["data.toxic: 3 repeats left out"],
        "overlaps": [],
    }


def _write_evaluation(folder: Path, refines: bool, models: tuple, base_hash: str) -> None:
    losses = {"base": 2.0} | ({"refined": 2.02} if refines else {}) | {"aligned": 1.9 if refines else 2.1}
    for model, loss in losses.items():
        home = folder / "evaluate" / model
        write(
            home / "general_loss.json",
            {"loss": loss, "tokens": 900, "n": 40, "too_long": 0, "settings_hash": "l"},
        )
        seconds = {"seconds": 10.0, "generated_tokens": 500} if model in models else {}
        parts = {"general_loss": {"seconds": 2.0}} | ({"seeming": seconds} if seconds else {})
        cost = {"device": "CPU", "ranks": 1, "seconds": 12.0 if seconds else 2.0, "parts": parts}
        write(home / "cost.json", cost | {"generated_tokens": seconds.get("generated_tokens", 0)})
        if model in models:
            settings = base_hash if model == "base" else f"h-{folder.name}"
            over_refuses = model == "aligned" and not refines
            write_benchmark(home / "seeming", "comply", ["n" if over_refuses else "y", "y", "y", ""], settings)
            write_benchmark(home / "toxic", "refuse", ["y", "y"] if model == "base" else ["n", "n"], settings)
