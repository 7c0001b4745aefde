"""`dcr-ds baseline scans`: SCANS' directions, reference and threshold from a model and two sets of prompts."""

from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dcr_ds.commands.baseline.shared import (
    add_prompt_sets,
    baseline_parser,
    check_out,
    locate_source,
    read_prompt_sets,
    write,
)
from dcr_ds.commands.parser import finite_number, positive_int, positive_number, show
from dcr_ds.data.records import PromptSet
from dcr_ds.models.checkpoint_files import model_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DESCRIPTION = """\
SCANS (Cao et al., 2025): classifies each prompt by its activations, and steers the middle blocks away from refusal if
it is safe, towards refusal if it is not. Anchors are sampled from the two sets of prompts; as many others tune the
threshold.
"""
ROLES = ("harmful", "harmless")
STRENGTH, ANCHORS = 3.5, 64  # as published for Llama-2-7B


def parse(name: str, arguments: list[str]) -> Namespace:
    parser = baseline_parser(name, DESCRIPTION)
    help_strength = f"α: how far activations are moved (default: {STRENGTH}, as published for Llama-2-7B)"
    parser.add_argument("--strength", type=positive_number, default=STRENGTH, metavar="ALPHA", help=help_strength)
    help_threshold = "score from which a prompt is unsafe (default: best balanced accuracy on held-out anchors)"
    parser.add_argument("--threshold", type=_score, metavar="T", help=help_threshold)
    help_anchors = f"prompts per set (default: {ANCHORS})"
    parser.add_argument("--anchors", type=positive_int, default=ANCHORS, metavar="N", help=help_anchors)
    add_prompt_sets(parser, ROLES)
    return parser.parse_args(arguments)


def run(name: str, arguments: list[str]) -> int:
    """Compute the vectors, tune the threshold, and write the baseline folder."""
    options = parse(name, arguments)
    check_out(options.out)
    source = locate_source(options)
    from dcr_ds.baselines.scans import Anchors, Blocks, best_threshold, compute_vectors, scores_of, sure_tokens

    blocks = Blocks.of(model_config(source.files.source)["num_hidden_layers"])
    sets, tokenizer = _samples(options), source.tokenizer()
    ids = {role: [_encoded(role, part, tokenizer) for part in parts] for role, parts in sets.items()}
    sure, model = sure_tokens(tokenizer), source.load()
    vectors = compute_vectors(model, blocks, Anchors(ids["harmful"][0], ids["harmless"][0]), sure)
    threshold, origin = options.threshold, "--threshold"
    if threshold is None:
        scores = [scores_of(model, blocks, vectors, ids[role][1], sure) for role in ROLES]
        threshold, accuracy = best_threshold(*scores)
        origin = f"balanced accuracy {accuracy:.3f} on {options.anchors} + {options.anchors} held-out anchors"
    settings = {
        "strength": options.strength,
        "threshold": threshold,
        "steered": blocks.steered,
        "classified": blocks.classified,
        "sure": sure,
        "threshold_from": origin,
    }
    data = {
        f"{role}{'' if number == 0 else ' (threshold)'}": part
        for role, parts in sets.items()
        for number, part in enumerate(parts)
    }
    write(name, source, settings, data, options.out, vectors.tensors)
    scale = f"the means of both sets are {vectors.distance:.3g} apart there (norm of activations: {vectors.norm:.3g})"
    show(f"steers blocks {_span(blocks.steered)} by α = {options.strength:g}; {scale}")
    show(f"classifies by blocks {_span(blocks.classified)}; unsafe from {threshold:.4f} ({origin})")
    show(f"{options.out}: dcr-ds evaluate scans={options.out} --suite quick --out runs")
    return 0


def _samples(options: Namespace) -> dict[str, list[PromptSet]]:
    """The anchors of each role, and as many prompts for the threshold unless it is given."""
    from dcr_ds.baselines.prompts import sample

    counts = [options.anchors] * (1 if options.threshold is not None else 2)
    return {role: sample(rows, counts, options.seed, role) for role, rows in read_prompt_sets(options, ROLES).items()}


def _encoded(role: str, prompts: PromptSet, tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    from dcr_ds.models.chat import encode_within_context
    from dcr_ds.models.rows import encode_row

    return [
        encode_row(f"--{role}", row, lambda row: encode_within_context(tokenizer, row.messages)) for row in prompts.rows
    ]


def _span(layers: Sequence[int]) -> str:
    return f"{layers[0]} to {layers[-1]}"


def _score(text: str) -> float:
    if abs(value := finite_number(text)) > 1:
        raise ArgumentTypeError(f"{text} is out of range; a score is a mean of cosines, from -1 to 1")
    return value
