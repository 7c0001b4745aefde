"""The identity of a run: a stage is resumed only with the recipe, model, tokenizer, template and data it began with.

Each stage records them in identity.json, files by content, and each checkpoint records the hash of that identity. What
may change the rounding alone is recorded, too, but a difference is only reported: versions of packages, the commit of
the project, the number of ranks, and how DeepSpeed shards and offloads. A run must survive an upgrade or a bug fix.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from dcr_ds.data.load import RunData, sets_of_stage
from dcr_ds.engine.config import SHARDING
from dcr_ds.errors import UserError
from dcr_ds.files import hash_of, parse_json, read_json, write_json
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.models.hashes import file_states, weights_hash
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.layout import RunFolder, StageFolder, section_of
from dcr_ds.run.environment import describe_software
from dcr_ds.run.folder import differences, settings_of

DECAY = "matrices"  # what weight decay applies to
LOSSY = "zero_quantized"  # fields of zero_optimization that send or keep weights or gradients in fewer bits
# template and special tokens are part of these; the template is compared as it is used, by `template_hash`
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt")


def check_identity(
    recipe: Recipe, stage: str, start: Path, data: RunData, tokens: str | None, world_size: int
) -> tuple[dict[str, Any], list[str]]:
    """Compare what a stage depends on with what it recorded, if it has begun; nothing is written. Rank 0.

    Args:
        recipe: resolved.
        start: the folder of the model that the stage trains.
        tokens: hash of the stage's token ids; None for a stage that is done: they are not encoded again.

    Returns:
        The record that the stage is to keep, for `record_identity`, and notes to print: what differs and may change
        the rounding.

    Raises:
        UserError: the stage has results, and began with another recipe, model, tokenizer, chat template or data; or it
            is done, and its record is damaged.
    """
    folder = RunFolder(recipe.folder).stage(stage)
    saved: Any = read_json(folder.identity) if folder.has_results else None
    saved = saved if isinstance(saved, dict) else {}
    if folder.is_done and not saved and folder.identity.exists():  # else the checkpoints have its hash
        raise UserError(
            f"{folder.identity}: damaged, so what {stage} was trained with is unknown; restore it, or do the stage "
            f"again with --redo {section_of(stage)}{_about_redo(recipe)}"
        )
    current = _describe(recipe, stage, start, data, known=saved.get("weights"))
    current["software"] |= {"ranks": world_size, "sharding": _deepspeed(recipe)[1]}
    current["tokens"] = saved.get("tokens") if tokens is None else tokens
    if tokens is not None and folder.has_results:
        _check_decay(recipe, folder, stage, saved)
    if different := _what_differs(saved, current):
        raise UserError(
            f"{folder.folder}: {stage} began with something else:\n" + "\n".join(different) + "\nRestore what it began "
            f"with, give this run another --name or --output, or do the stage again with --redo {section_of(stage)}"
            + _about_redo(recipe)
        )
    notes = [
        f"{stage} began with {name} {before}, and now has {now}: results may differ in rounding"
        for name, before, now in _changes(saved.get("software"), current["software"])
    ]
    if folder.has_results and not saved:
        notes = [f"{stage} began before identities were recorded: its model and data are not compared"]
    record = current | {"software": saved.get("software", current["software"])}  # of the attempt that began the stage
    # The hash of the attempt that began the stage stands: its checkpoints carry it, and a newer version, which has more
    # fields than were recorded, would compute another one although nothing differs.
    record["sha256"] = saved.get("sha256") or _identity_hash(record)
    return record, notes


def record_identity(folder: StageFolder, record: dict[str, Any]) -> None:
    """Keep what a stage depends on. Rank 0."""
    if record != read_json(folder.identity):
        write_json(folder.identity, record)


def _check_decay(recipe: Recipe, folder: StageFolder, stage: str, saved: dict[str, Any]) -> None:
    """Raise UserError if a version that let all weights decay began a stage: its optimizer states are other ones."""
    section = getattr(recipe, section_of(stage))
    if section.weight_decay and saved.get("weight_decay") != DECAY:
        raise UserError(
            f"{folder.folder}: {stage} began in a version in which weight_decay also applied to norms, biases and "
            "embeddings, and cannot be resumed; do the stage again with --redo "
            f"{section_of(stage)}{_about_redo(recipe)}"
        )


def _describe(recipe: Recipe, stage: str, start: Path, data: RunData, known: Any) -> dict[str, Any]:
    from dcr_ds.models.tokenizer import load_tokenizer, template_hash

    section = getattr(recipe, section_of(stage))
    read = [f"data.{name}" for name in sets_of_stage(recipe, stage)]
    return {
        "weights": _describe_weights(start, known),
        "config": hash_of(model_config(start)),
        "tokenizer": _tokenizer_hash(start),
        "chat_template": template_hash(load_tokenizer(start, recipe.model.template)),
        "data": {name: rows.sha256 for name, rows in data.training_sets().items() if name in read},
        "recipe": settings_of(recipe, stage) | {"deepspeed": json.dumps(_deepspeed(recipe)[0], sort_keys=True)},
        "software": describe_software(),
    } | ({"weight_decay": DECAY} if section.weight_decay else {})


def _deepspeed(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a DeepSpeed configuration into what changes results and what changes rounding at most."""
    assert isinstance(recipe.deepspeed, dict)  # resolved
    config = {name: value for name, value in recipe.deepspeed.items() if value != "auto"}
    config["bf16"] = {name: value for name, value in (config.get("bf16") or {}).items() if name != "enabled"}
    zero = config.get("zero_optimization") or {}
    exact = {name: value for name, value in config.items() if name not in SHARDING and value not in ({}, None)}
    exact |= {name: value for name, value in zero.items() if name.startswith(LOSSY) and value}
    return exact, {name: value for name, value in zero.items() if not name.startswith(LOSSY)}


def _identity_hash(record: dict[str, Any]) -> str:
    """Hash of an identity without what may differ: where the weights are, and what changes the rounding alone."""
    parts = {name: value for name, value in record.items() if name not in ("software", "sha256", "weights", "tokens")}
    return hash_of(parts | {"weights": record["weights"]["sha256"]})


def _describe_weights(folder: Path, known: Any) -> dict[str, Any]:
    """Hash of a model's weights, of the kind that was recorded. Files untouched since then are not read again."""
    files = file_states(folder)
    recorded = _of(known, "sha256")
    if isinstance(known, dict) and known.get("files") == files and known.get("folder") == str(folder.absolute()):
        return known
    value = weights_hash(folder, recorded) if isinstance(recorded, str) else weights_hash(folder)
    return {"folder": str(folder.absolute()), "sha256": value, "files": files}


def _tokenizer_hash(folder: Path) -> str:
    """Hash of the tokenizer files of a model folder; JSON by its values, without the chat template."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)}):
        content = path.read_bytes()
        if path.suffix == ".json" and isinstance(values := parse_json(content), dict):
            values.pop("chat_template", None)
            content = json.dumps(values, sort_keys=True).encode()
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def _what_differs(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    if not saved:
        return []
    pairs = {
        f"weights of the model in {current['weights']['folder']}": (
            _of(saved.get("weights"), "sha256"),
            current["weights"]["sha256"],
        ),
        "config.json of the model": (saved.get("config"), current["config"]),
        "tokenizer": (saved.get("tokenizer"), current["tokenizer"]),
        "chat template": (saved.get("chat_template"), current["chat_template"]),
    }
    pairs |= {f"rows of {name}": (_of(saved.get("data"), name), value) for name, value in current["data"].items()}
    fields = differences(saved.get("recipe"), current["recipe"]) if isinstance(saved.get("recipe"), dict) else []
    tokens = {"token ids of the data": (saved.get("tokens"), current["tokens"])}  # they follow from the others
    return [f"  {name}: {before} there, {now} now" for name, before, now in fields] + (
        _unequal(pairs) or _unequal(tokens)
    )


def _unequal(pairs: dict[str, tuple[Any, Any]]) -> list[str]:
    return [
        f"  {name}: {before[:16]} there, {now[:16]} now"
        for name, (before, now) in pairs.items()
        if isinstance(before, str) and isinstance(now, str) and before != now
    ]


def _of(values: Any, name: str) -> Any:
    return values.get(name) if isinstance(values, dict) else None


def _changes(before: Any, now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    if not isinstance(before, dict):
        return []
    return [(name, before[name], now[name]) for name in now if name in before and before[name] != now[name]]


def _about_redo(recipe: Recipe) -> str:
    redo = RunFolder(recipe.folder).redo
    return f" (after removing {redo}, which records a redo that has begun)" if redo.exists() else ""
