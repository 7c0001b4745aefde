"""Read run folders: whatever of a run is there, as plain records."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dcr_ds.errors import UserError

MODELS = ("base", "refined", "aligned")


@dataclass(frozen=True)
class ModelResults:
    """What was measured on one model of a run; benchmarks by name, the files as they are."""

    folder: Path
    scores: dict[str, dict]
    general_loss: dict | None
    cost: dict | None


@dataclass(frozen=True)
class Run:
    """A run folder; a stage or model of which there is nothing yet is None or missing."""

    folder: Path
    name: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    refine: dict[str, Any] | None
    align: dict[str, Any] | None
    models: dict[str, ModelResults]

    @property
    def has_refine(self) -> bool:
        return self.refine is not None or "refine" in self.recipe["stages"]

    @property
    def kind(self) -> str | None:
        """DCR: refined, then aligned. STL: aligned only. None: not aligned."""
        if self.align is None and "align" not in self.recipe["stages"]:
            return None
        return "DCR" if self.has_refine else "STL"


@dataclass(frozen=True)
class Answer:
    """A completion and what the judge made of it."""

    prompt: str
    completion: str
    label: str


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: it is no run folder, or a file in it cannot be read.
    """
    recipe = _read_recipe(folder)
    return Run(
        folder=folder,
        name=recipe["name"],
        recipe=recipe,
        environment=_read_json(folder / "environment.json") or {},
        refine=_read_json(folder / "refine" / "summary.json"),
        align=_read_json(folder / "align" / "summary.json"),
        models={name: found for name in MODELS if (found := _read_model(folder / "evaluate" / name))},
    )


def read_answers(model: ModelResults, benchmark: str) -> dict[str, Answer]:
    """The judged answers of a model to a benchmark, by id of the prompt."""
    home = model.folder / benchmark
    verdicts = _read_rows(home / f"verdicts.{model.scores[benchmark]['judge']}.jsonl")
    labels = {row["id"]: row["label"] for row in verdicts}
    return {
        row["id"]: Answer(row["prompt"], row["completion"], labels[row["id"]])
        for row in _read_rows(home / "generations.jsonl")
        if row["id"] in labels
    }


def settings_hash(model: ModelResults, benchmark: str) -> str | None:
    """The hash of what the answers to a benchmark depend on: model, prompts, template, decoding."""
    rows = _read_rows(model.folder / benchmark / "generations.jsonl")
    return rows[0]["settings_hash"] if rows else None


def _read_recipe(folder: Path) -> dict[str, Any]:
    path = folder / "recipe.yaml"
    if not path.is_file():
        what = "no run folder, there is no recipe.yaml in it" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {what}. A run folder is <output>/<name> of a recipe, by default runs/<name>")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    if not isinstance(recipe, dict) or "stages" not in recipe or "name" not in recipe:
        raise UserError(f"{path}: no resolved recipe, name or stages are missing; run the recipe to make one")
    return recipe


def _read_model(home: Path) -> ModelResults | None:
    """What there is of a model; None where nothing was measured yet."""
    scores = {path.parent.name: _read_json(path) for path in home.glob("*/scores.json")}
    ordered = dict(sorted(scores.items(), key=lambda item: (item[1]["wanted"], item[0])))
    general_loss = _read_json(home / "general_loss.json")
    if not scores and general_loss is None:
        return None
    return ModelResults(home, ordered, general_loss, _read_json(home / "cost.json"))


def _read_json(path: Path) -> Any:
    """The content of a JSON file, None where there is none."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); run the stage again that writes it") from None


def _read_rows(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]
    except ValueError as error:
        raise UserError(f"{path}: a line is not JSON ({error}); run the evaluation again") from None
