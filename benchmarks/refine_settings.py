"""Settings of stage 1 on SmolLM2-135M, compared on development sets: built-in held-out twins and JailbreakBench.

    python benchmarks/refine_settings.py --data public --csv benchmarks/results/refine_settings.csv
    python benchmarks/refine_settings.py --data public --only scale-32 scale-4
    python benchmarks/refine_settings.py --data public --measure runs/seed-0

The defaults of the schema, with the batches of the demo and one field changed at a time, without an early stop. A row
per setting: gap and AUC of the class means at layer ℓ after refine, drift of general conversations, and the loss on
held-out general answers. Models are kept under --out, so a second call continues.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from discernment import Sets, joined, read_pair
from record import append, commit

import dcr_ds
from dcr_ds.data.conversations import read_conversations
from dcr_ds.diagnose.layers import hidden_by_layer
from dcr_ds.engine.distributed import Ranks
from dcr_ds.evaluate.general_loss import general_loss
from dcr_ds.files import read_json
from dcr_ds.models.chat import encode_conversation, encode_prompt
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.tokenizer import load_tokenizer
from dcr_ds.recipe import DataSource, Recipe
from dcr_ds.recipe.layout import RunFolder
from dcr_ds.refine.separation import separation

SETTINGS: dict[str, dict[str, object]] = {
    "defaults": {},
    "layer-20": {"layer": 20},
    "layer-26": {"layer": 26},
    "scale-4": {"scale": 4},
    "scale-32": {"scale": 32},
    "learning_rate-1.25e-4": {"learning_rate": 1.25e-4},
    "learning_rate-5e-4": {"learning_rate": 5e-4},
    "retain_weight-10": {"retain_weight": 10},
    "retain_weight-100": {"retain_weight": 100},
    "pairs-matched": {"pairs": "matched"},
}
LAYER = 23  # what `refine.layer: auto` gives for this model and the built-in training prompts


def main() -> None:
    options = parse()
    for name in [] if options.measure else options.only or SETTINGS:
        if not RunFolder(options.out / name).stage("refine").is_done:
            dcr_ds.train(recipe_of(name, SETTINGS[name], options))
        write(name, options.out / name, options)
    for run in options.measure:
        write(run.name, run, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, tuple(SETTINGS))
    return parser.parse_args()


def add_options(parser: argparse.ArgumentParser, names: tuple[str, ...]) -> None:
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME")
    parser.add_argument(
        "--measure", nargs="+", type=Path, default=[], metavar="RUN", help="refined runs; train nothing"
    )
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--data", help="folder of local copies of the public sets")
    parser.add_argument("--out", type=Path, default=Path("runs/refine-settings"))
    parser.add_argument("--csv", type=Path, help="append the rows to this file")


def write(name: str, run: Path, options: argparse.Namespace) -> None:
    row = {"commit": commit(), "setting": name, **figures_of(read_refined(run, options.data))}
    print(row)
    if options.csv:
        append(options.csv, row)


def recipe_of(name: str, fields: dict[str, object], options: argparse.Namespace) -> Recipe:
    refine = {"layer": LAYER, "max_steps": options.steps, "measure_every": 6, "target_gap": 2, "on_failure": "continue"}
    refine |= {"global_batch": 28, "retain_batch": 4}  # as in the demo
    return Recipe.model_validate(
        {
            "name": name,
            "output": str(options.out),
            "model": {"source": "smollm2-135m"},
            "stages": ["refine"],
            "refine": refine | fields,
        }
    )


@dataclass
class Refined:
    """A refined run: its summary, the development sets and their hidden states at layer ℓ, by name of the set.

    Attributes:
        general_loss: on held-out general answers.
    """

    summary: dict
    sets: dict[str, Sets]
    hidden: dict[str, torch.Tensor]
    general_loss: float

    def labels_and_pairs(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        of_set = self.sets[name]
        keys = [pair or f"row {number}" for number, pair in enumerate(of_set.pairs)]
        return torch.tensor(of_set.harmful.astype(int)), torch.tensor(np.unique(keys, return_inverse=True)[1])


def read_refined(run: Path, data: str | None) -> Refined:
    folder = RunFolder(run).stage("refine")
    summary, device = read_json(folder.summary), torch.device("cpu")
    model, tokenizer = load_causal_lm(folder.model, torch.float32, "eager", device).eval(), load_tokenizer(folder.model)
    sets = {name: joined(*read_pair(name, data, None)) for name in ("builtin", "jailbreakbench")}
    hidden = {
        name: hidden_by_layer(model, [encode_prompt(tokenizer, prompt.prompt) for prompt in of_set.prompts])
        for name, of_set in sets.items()
    }
    answers = read_conversations(DataSource(split="held_out"), "general").rows
    encoded = [encode_conversation(tokenizer, answer.messages) for answer in answers]
    loss = general_loss(model, encoded, 16, Ranks(0, 1, 0, device))["loss"]
    return Refined(summary, sets, {name: layers[summary["layer"] - 1] for name, layers in hidden.items()}, loss)


def figures_of(refined: Refined) -> dict[str, float | int]:
    summary = refined.summary
    row = {"layer": summary["layer"], "steps": summary["exported_step"], "drift": summary["best"]["drift"]}
    for name, hidden in refined.hidden.items():
        figures = separation(hidden, *refined.labels_and_pairs(name))
        row |= {f"{name}_gap": figures["gap"], f"{name}_auc": figures["auc"]}
    return row | {"general_loss": refined.general_loss}


if __name__ == "__main__":
    main()
