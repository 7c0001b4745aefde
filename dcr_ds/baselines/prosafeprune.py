"""ProSafePrune (Chen et al., "Projected Safety Pruning for Mitigating Over-Refusal in LLMs", ICLR 2026).

For each changed linear module, U_s, U_u and U_p are the first r left singular vectors of its outputs [D, n] on
harmless, harmful and pseudo-harmful prompts, each output a mean over the tokens of a prompt, and Π = U Uᵀ:

    W ← W − λ (I − Π_s) Π_u Π_p W

The change has rank r at most. Biases stay. The formula, the pooling and the score of layers (silhouette of the three
sets) are those of the authors' toolkit (github.com/SparkShieldLab/OverRefusalToolkit), which takes the mean score of
all modules of a layer, not only of those that are changed. It leaves layers, rank and λ to the user, and the defaults
for rank, λ and modules are those of its example.

Legend: n prompts, D outputs, r rank.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from dcr_ds.baselines.activations import outputs
from dcr_ds.baselines.edits import Edit, Edited
from dcr_ds.baselines.projections import blocks_of, linears
from dcr_ds.baselines.subject import Subject
from dcr_ds.errors import UserError

MODULES = {
    "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    "mlp": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
}
MIDDLE = (0.3, 0.7)  # shares of the blocks between which the layers are chosen
ROUNDING = 1e-6  # of outputs in float32, relative to the largest singular value
WINDOW = 5  # layers around the best one
BASES = {"safe": "harmless", "unsafe": "harmful", "pseudo": "seemingly_toxic"}  # the paper's sets and ours


@dataclass(frozen=True)
class ProSafePruneSettings:
    """
    Attributes:
        rank: r.
        strength: λ.
        modules: keys of `MODULES`.
        layers: blocks from 0; None: the window around the middle block whose outputs separate the sets best.
    """

    rank: int = 16
    strength: float = 0.9
    modules: tuple[str, ...] = ("attention",)
    layers: tuple[int, ...] | None = None


def prosafeprune(
    subject: Subject, settings: ProSafePruneSettings, report: Callable[[str], None] = lambda line: None
) -> Edited:
    """Compute the pruned weights of a model.

    Raises:
        UserError: fewer prompts than the rank, a rank as large as an output, a layer that the model does not have, or
            other modules.
    """
    prompts = {name: subject.prompts[set_name].train for name, set_name in BASES.items()}
    if few := next((name for name in prompts if len(prompts[name]) < settings.rank), None):
        raise UserError(
            f"prosafeprune: {len(prompts[few])} prompts of the set {BASES[few]}, fewer than --rank {settings.rank}; "
            "lower it, or name a larger set"
        )
    paths = paths_of(settings.modules)
    modules = linears(subject.model, paths)
    _check_layers(settings.layers, len(blocks_of(subject.model)))
    narrow = min(modules, key=lambda name: modules[name].out_features)
    if (width := modules[narrow].out_features) <= settings.rank:
        raise UserError(
            f"prosafeprune: --rank {settings.rank} is the whole output of {narrow}, which has {width} features, so "
            "that nothing would be pruned; lower it"
        )
    report(f"outputs of {len(modules)} modules on {sum(map(len, prompts.values()))} prompts")
    states = {
        name: outputs(subject.model, modules, part.tokens, "mean", subject.batch_size) for name, part in prompts.items()
    }
    scores = _scores_of_layers(states, len(paths))
    layers = settings.layers or chosen_layers(scores)
    report(f"layers {', '.join(map(str, layers))}, rank {settings.rank}, λ {settings.strength:g}")
    edits: dict[str, Edit] = {}
    for number, name in enumerate(modules):
        if number // len(paths) in layers:
            safe, unsafe, pseudo = (basis(states[kind][name], settings.rank) for kind in BASES)
            edits[f"{name}.weight"] = pruning(safe, unsafe, pseudo, settings.strength)
    figures = {"layers": list(layers), "silhouette": scores, "rank": settings.rank} | {
        "prompts": {name: len(part) for name, part in prompts.items()}
    }
    return Edited(edits, figures)


def paths_of(modules: Sequence[str]) -> list[str]:
    """The linear modules of a block that are changed."""
    return [path for key in modules for path in MODULES[key]]


def basis(states: torch.Tensor, rank: int) -> torch.Tensor:
    """The first left singular vectors [D, r] of the outputs of prompts, which are the rows of `states` [n, D].

    Raises:
        UserError: the outputs span fewer dimensions, up to rounding, so that further vectors would be arbitrary.
    """
    vectors, lengths, _ = torch.linalg.svd(states.double().T, full_matrices=False)
    if (spanned := int((lengths > ROUNDING * lengths.max()).sum())) < rank:
        raise UserError(
            f"prosafeprune: the outputs of {len(states)} prompts span {spanned} dimensions, fewer than --rank {rank}; "
            "lower it, or name a set of more different prompts"
        )
    return vectors[:, :rank]


def pruning(safe: torch.Tensor, unsafe: torch.Tensor, pseudo: torch.Tensor, strength: float) -> Edit:
    """The function from a weight [D, in] to the pruned one; from three bases [D, r]."""
    overlap = unsafe @ (unsafe.T @ pseudo)  # Π_u U_p
    left = overlap - safe @ (safe.T @ overlap)

    def prune(weight: torch.Tensor) -> torch.Tensor:
        return weight - strength * left.to(weight.dtype) @ (pseudo.T.to(weight.dtype) @ weight)

    return prune


def silhouette(states: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean silhouette of points [n, D] in clusters [n] (Rousseeuw 1987), by Euclidean distance.

    (b − a) / max(a, b) per point: a is its mean distance to the others of its cluster, b the smallest mean distance to
    another cluster.
    """
    distances, own = torch.cdist(states.double(), states.double()), torch.nn.functional.one_hot(labels).double()
    counts = own.sum(0)
    means = distances @ own / counts
    inside = (distances @ own * own).sum(1) / (counts[labels] - 1).clamp_min(1)
    outside = means.masked_fill(own.bool(), torch.inf).min(1).values
    values = (outside - inside) / torch.maximum(inside, outside)
    return float(torch.where(counts[labels] > 1, values, 0.0).nan_to_num().mean())


def chosen_layers(scores: Sequence[float]) -> tuple[int, ...]:
    """The window of layers around the best one in the middle of the model."""
    count = len(scores)
    low, high = int(count * MIDDLE[0]), int(count * MIDDLE[1])
    best = max(range(low, min(high, count - 1) + 1), key=lambda layer: scores[layer])
    return tuple(range(max(0, best - WINDOW // 2), min(count, best + WINDOW // 2 + 1)))


def _scores_of_layers(states: Mapping[str, Mapping[str, torch.Tensor]], modules_of_layer: int) -> list[float]:
    """The mean silhouette of the modules of each layer."""
    names = list(states["safe"])
    labels = torch.cat([torch.full((len(states[kind][names[0]]),), index) for index, kind in enumerate(BASES)])
    scores = [silhouette(torch.cat([states[kind][name] for kind in BASES]), labels) for name in names]
    starts = range(0, len(scores), modules_of_layer)
    return [sum(scores[start : start + modules_of_layer]) / modules_of_layer for start in starts]


def _check_layers(layers: Sequence[int] | None, count: int) -> None:
    if beyond := [layer for layer in layers or () if layer >= count]:
        raise UserError(f"--layers: there is no layer {beyond[0]}; the model has {count} blocks, so 0 to {count - 1}")
