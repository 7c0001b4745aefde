"""`dcr-ds diagnose pca`: held-out prompts before and after refine on the same two axes."""

import csv
import io
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcr_ds.commands.diagnose.models import Target, targets_of
from dcr_ds.commands.diagnose.prompts import PAIRED, add_prompts, encoder, read_sets
from dcr_ds.commands.parser import command_parser, output_folder, show
from dcr_ds.errors import UserError
from dcr_ds.files import write_atomically
from dcr_ds.recipe import RefineSection, load_recipe
from dcr_ds.recipe.layout import REFINED, RunFolder

if TYPE_CHECKING:
    import numpy as np

    from dcr_ds.data.records import Prompt
    from dcr_ds.diagnose.pca import Projection

DESCRIPTION = """\
PCA of the hidden states of held-out prompts at refine.layer, for the base and the refined model of a run, on two axes
that both share.
"""


def parse(arguments: list[str]) -> Namespace:
    parser = command_parser("diagnose pca", DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="run folder with a refined model")
    add_prompts(parser, PAIRED, split="held_out", count=None)
    text = "write pca.png and pca.csv into DIR (default: RUN/diagnose/pca)"
    parser.add_argument("--out", type=output_folder, metavar="DIR", help=text)
    return parser.parse_args(arguments)


def run(options: Namespace) -> None:
    """Project the prompts, print what the axes explain, and write coordinates and picture."""
    from dcr_ds.diagnose.pca import draw_pca, project
    from dcr_ds.diagnose.prompts import labels_and_pairs

    folder = RunFolder(Path(options.run))
    if not folder.is_run or not folder.stage("refine").is_done:
        raise UserError(f"{options.run}: not a run folder with a refined model; dcr-ds diagnose pca needs one")
    refine = load_recipe(str(folder.recipe), []).refine
    sets = read_sets(options, PAIRED)
    labels, _ = labels_and_pairs(*sets.values())
    rows = [row for of_set in sets.values() for row in of_set]
    base, *trained = targets_of([options.run])
    refined = next(target for target in trained if target.title == REFINED)
    projection = project(*(_states(target, rows, refine) for target in (base, refined)))
    out = options.out or folder.diagnosis("pca")
    write_atomically(out / "pca.csv", _csv(sets, projection))
    draw_pca(projection, labels, out / "pca.png", ("before refine", "after refine"))
    show(
        f"layer {refine.layer}, {len(rows)} prompts: the two axes explain {projection.explained_before:.0%} of the "
        f"variance before refine and {projection.explained_after:.0%} after it\n{out / 'pca.png'}"
    )


def _states(target: Target, rows: "Sequence[Prompt]", refine: RefineSection) -> "np.ndarray":
    """States [n, D] at the layer of stage 1."""
    from dcr_ds.diagnose.layers import hidden_by_layer

    encode = encoder(target.tokenizer())
    states = hidden_by_layer(target.load(), [encode(row) for row in rows], refine.pooling)
    return states[int(refine.layer) - 1].numpy()


def _csv(sets: "dict[str, list[Prompt]]", projection: "Projection") -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["set", "id", "before_1", "before_2", "after_1", "after_2"])
    names = [(name, row.id) for name, rows in sets.items() for row in rows]
    for prompt, before, after in zip(names, projection.before, projection.after, strict=True):
        writer.writerow([*prompt, *(f"{value:.6g}" for value in (*before, *after))])
    return stream.getvalue()
