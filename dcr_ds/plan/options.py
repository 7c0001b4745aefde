"""The options of `dcr-ds plan`, and the machine that they describe."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcr_ds.errors import UserError
from dcr_ds.plan.clock import GPUS, MEMORY_GIB, Rates
from dcr_ds.plan.measure import Calibration
from dcr_ds.recipe import Recipe

if TYPE_CHECKING:
    from dcr_ds.plan.choose import Machine

OWN = {
    "gpus": int,
    "gpu": str,
    "gpu-memory": float,
    "nodes": str,
    "gpus-per-node": int,
    "rows-per-gpu": int,
    "mfu": float,
    "link-share": float,
    "node-link": float,
    "network": float,
    "storage": float,
    "reserve": float,
    "refine-tokens": int,
    "align-tokens": int,
    "steps": int,
    "json": str,
}
DEFAULTS: dict[str, Any] = {
    "gpus": 1,
    "gpu": "h100",
    "gpus-per-node": 8,
    "rows-per-gpu": 8,
    "reserve": 0.1,
}
MEAN_TOKENS = {"refine": 64, "align": 256}
SHARES = ("mfu", "link-share", "reserve")


def split_options(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Options of this command, and the words of the recipe."""
    options, rest, words = dict(DEFAULTS), [], list(arguments)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if word == "--measure":
            options["measure"] = True
        elif name in ("measure", "dry-run", "redo"):
            told = "takes no value" if name == "measure" else "is an option of train.py, not of a plan"
            raise UserError(f"plan: --{name}: {told}")
        elif not word.startswith("--") or name not in OWN:
            rest.append(word)
            if word.startswith("--") and not equals and words:
                rest.append(words.pop(0))
        else:
            if not equals:
                if not words or words[0].startswith("--"):
                    raise UserError(f"plan: --{name}: needs a value")
                value = words.pop(0)
            options[name] = _read(name, value)
    if "measure" in options and "mfu" in options:
        raise UserError("plan: --mfu: is what --measure finds out; leave one of them out")
    return options, rest


def mean_tokens(recipe: Recipe, options: dict[str, Any]) -> dict[str, int]:
    """Mean tokens of a row by stage, at most those that training lets in.

    Raises:
        UserError: more are asked for.
    """
    found = {}
    for stage, usual in MEAN_TOKENS.items():
        name, most = f"{stage}-tokens", getattr(recipe, stage).max_length
        if options.get(name, 0) > most:
            raise UserError(
                f"plan: --{name}: {options[name]} is above {stage}.max_length = {most}; longer rows are left out"
            )
        found[stage] = options.get(name, min(usual, most))
    return found


def _read(name: str, text: str) -> Any:
    kind = OWN[name]
    try:
        value = kind(text)
    except ValueError:
        raise UserError(f"plan: --{name}: {text!r} is no {'whole ' if kind is int else ''}number") from None
    if kind is float and not math.isfinite(value):
        raise UserError(f"plan: --{name}: {text} is no number to plan with")
    if kind is not str and not (0 <= value < 1 if name == "reserve" else value > 0):
        raise UserError(f"plan: --{name}: {text} is out of range; it must be above 0" + _below(name))
    if name in SHARES and value > 1:
        raise UserError(f"plan: --{name}: {text} is a share, so at most 1")
    if name == "json" and Path(value).is_dir():
        raise UserError(f"plan: --json: {text} is a folder; name a file")
    if name == "gpu" and value not in GPUS:
        raise UserError(f"plan: --gpu: {text!r} is not known; there are {', '.join(GPUS)}; or set rates one by one")
    return value


def _below(name: str) -> str:
    return " or 0, and below 1" if name == "reserve" else ""


def machine_of(gpus: int, stage: str, options: dict[str, Any], measured: Mapping[str, Calibration]) -> "Machine":
    """What a stage is planned for: what the options say, or what was measured of it, on the device of those steps."""
    from dcr_ds.plan.choose import Machine

    rates, per_node, reserve = _rates(options), min(gpus, options["gpus-per-node"]), options["reserve"]
    memory = options.get("gpu-memory")
    if stage not in measured:
        return Machine(gpus, per_node, memory or MEMORY_GIB[options["gpu"]], rates, reserve)
    found = measured[stage]
    sharing = 1 if found.on_gpu else per_node  # processes share a CPU, which was one's alone
    rates = replace(rates, flops=found.flops / sharing, mfu=1.0)
    memory = memory or found.memory_gib / sharing
    return Machine(gpus, per_node, memory, rates, reserve, found.on_gpu, found.memory_factor)


def _rates(options: dict) -> Rates:
    rates = GPUS[options["gpu"]]
    changes = {"mfu": options.get("mfu"), "share": options.get("link-share")}
    changes |= {
        field: 1e9 * options[name]
        for name, field in {"node-link": "node_link", "network": "network", "storage": "storage"}.items()
        if name in options
    }
    return replace(rates, **{name: value for name, value in changes.items() if value is not None})


def gpus_of(options: dict[str, Any]) -> int:
    """GPUs of the plan; of the first node count, where there are several."""
    nodes = nodes_of(options)
    return nodes[0] * options["gpus-per-node"] if nodes else options["gpus"]


def nodes_of(options: dict) -> list[int]:
    if "nodes" not in options:
        return []
    words = options["nodes"].split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise UserError(f"plan: --nodes: {options['nodes']!r}: whole numbers above 0, separated by commas")
    return [int(word) for word in words]
