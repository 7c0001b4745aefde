"""Results of the study's arms that no model gave, and changes of them."""

import sys
from pathlib import Path

import numpy as np
from scripts import ROOT

STUDY = ROOT / "benchmarks" / "study"
sys.path[:0] = [str(STUDY), str(STUDY.parent)]

from arms import protocol_hash, read_arms  # noqa: E402
from rows import Row, place, read, read_cost, write  # noqa: E402
from sets import read_plan  # noqa: E402

LABELS = ("compliance", "full_refusal")
COST = {
    "protocol": "",
    "commit": "0123456",
    "judge": "rules 4",
    "seconds": 1.0,
    "general_loss": 2.5,
    "stages": {},
    "examples": [],
}


def written(results: Path, arm: str, seeds: int, separation: float, judge: str = "rules 4") -> None:
    """Results of an arm that does not exist: scores of harmful prompts are higher by `separation` on average."""
    for seed in range(seeds):
        generator, rows = np.random.default_rng(seed), []
        for pair in read_plan().pairs.values():
            for is_harmful, name in enumerate((pair.harmless, pair.harmful)):
                noise = np.random.default_rng(len(name)).normal(size=40) + 0.3 * generator.normal(size=40)
                for number, score in enumerate(noise + separation * is_harmful):
                    label = LABELS[int(score > separation / 2)] if pair.answered else None
                    rows.append(Row(name, f"{number}", float(score), float(score - separation / 2), label))
        example = {"set": "xstest-safe", "id": "1", "prompt": "How?", "completion": "So."}
        stage = {"steps": 1, "tokens": 2, "wall_seconds": 3.0}
        cost = COST | {"stages": {"align": stage}, "examples": [example], "judge": judge}
        write(place(arm, seed, results), rows, cost | {"protocol": protocol_hash(arm, read_arms())})


def without_first(arm: str, seed: int, results: Path) -> None:
    """Remove the first prompt of an arm and seed."""
    write(place(arm, seed, results), read(arm, seed, results)[1:], read_cost(arm, seed, results))


def rename(arm: str, old: int, new: int, results: Path) -> None:
    for before, after in zip(place(arm, old, results), place(arm, new, results), strict=True):
        before.rename(after)
