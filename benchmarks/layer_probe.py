"""The layer probe and the confound check on the built-in prompt sets: the tables of docs/diagnose.md.

    python benchmarks/layer_probe.py                                       table of the layers of the demo's model
    python benchmarks/layer_probe.py --pooling mean
    python benchmarks/layer_probe.py --refined runs/smollm2-135m/refine/model --layer 24 --pca pca.png
    python benchmarks/layer_probe.py --confounds                           no model

The prompts are those of the training split; with --refined those of the held-out split, because refine trained on the
others. --pairs 32,64,100 also prints the layers that the rule chooses from that many random pairs, ten times each.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

from dcr_ds.data.prompts import read_prompts
from dcr_ds.diagnose.confounds import check_confounds
from dcr_ds.diagnose.layers import LayerFigures, choose_layer, hidden_by_layer, probe_layers
from dcr_ds.diagnose.pca import draw_pca, project
from dcr_ds.discernment.couples import AucInterval
from dcr_ds.models.chat import encode_prompt
from dcr_ds.models.locate import prepare_source
from dcr_ds.models.tokenizer import load_tokenizer
from dcr_ds.recipe import DataSource, ModelSection

REPEATS = 10


def main() -> None:
    arguments = parse()
    sets = [
        read_prompts(DataSource(split="held_out" if arguments.refined else "train"), name).rows
        for name in ("seemingly_toxic", "toxic")
    ]
    if arguments.confounds:
        print_confounds(sets)
        return
    source = prepare_source(ModelSection(source=arguments.model))
    rows = [row for rows in sets for row in rows]
    labels = np.repeat([0, 1], [len(rows) for rows in sets])
    pairs = np.unique([row.pair for row in rows], return_inverse=True)[1]
    tokenizer = load_tokenizer(source)
    prompts = [encode_prompt(tokenizer, row.prompt) for row in rows]
    states, refined = (states_of(folder, prompts, arguments.pooling) for folder in (source, arguments.refined))
    print(f"{len(labels)} prompts, {len(set(pairs))} pairs, pooling {arguments.pooling}\n")
    print_layers(probe_layers(states, labels, pairs, refined))
    if refined is not None:
        print_layers(probe_layers(refined, labels, pairs))
    if arguments.pca:
        both = (hidden[arguments.layer - 1].numpy() for hidden in (states, refined))
        draw_pca(project(*both), labels, arguments.pca, ("before refine", "after refine"))
    for count in arguments.pairs:
        print(f"{count} pairs:", *chosen_from_fewer(states, labels, pairs, count))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--refined", type=Path, help="folder of a refined model, for drift and PCA")
    parser.add_argument("--pooling", choices=("last", "mean"), default="last")
    parser.add_argument("--pca", type=Path, help="picture of the hidden states at --layer before and after refine")
    parser.add_argument("--layer", type=int, default=24)
    parser.add_argument("--pairs", type=lambda text: [int(count) for count in text.split(",")], default=[])
    parser.add_argument("--confounds", action="store_true")
    return parser.parse_args()


def states_of(folder: Path | None, prompts: list[list[int]], pooling: str) -> torch.Tensor | None:
    if folder is None:
        return None
    return hidden_by_layer(
        AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False), prompts, pooling
    )


def print_layers(figures: list[LayerFigures]) -> None:
    print("| layer | AUC, class means | AUC, logistic | Fisher ratio | cosine within | cosine across | drift |")
    print("|---|---|---|---|---|---|---|")
    for row in figures:
        drift = "" if row.drift is None else f"{row.drift:.3f}"
        aucs = f"{interval(row.class_mean_auc)} | {interval(row.probe_auc)}"
        print(f"| {row.layer} | {aucs} | {row.fisher:.4f} | {row.within:.4f} | {row.across:.4f} | {drift} |")
    layer, reason = choose_layer(figures, len(figures) + 1)
    print(f"\nrefine.layer: auto → {layer} ({reason})\n")


def interval(auc: AucInterval) -> str:
    return f"{auc.value:.3f} ({auc.low:.3f}–{auc.high:.3f})"


def print_confounds(sets: list[list]) -> None:
    print("| feature | held-out AUC | |")
    print("|---|---|---|")
    for confound in check_confounds(*sets):
        print(f"| {confound.name} | {interval(confound.auc)} | {confound.note}{', warning' * bool(confound.warning)} |")


def chosen_from_fewer(states: torch.Tensor, labels: np.ndarray, pairs: np.ndarray, count: int) -> list[int]:
    """The layers that the rule chooses from random subsets of `count` pairs."""
    rng = np.random.default_rng(0)
    layers = []
    for _ in range(REPEATS):
        chosen = np.isin(pairs, rng.choice(np.unique(pairs), count, replace=False))
        figures = probe_layers(states[:, chosen], labels[chosen], pairs[chosen])
        layers.append(choose_layer(figures, len(states) + 1)[0])
    return layers


if __name__ == "__main__":
    main()
