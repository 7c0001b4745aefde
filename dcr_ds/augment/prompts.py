"""The prompts of STL-aug: those that refine trains on, or others that are not held out."""

from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from dcr_ds.data.leakage import find_overlaps
from dcr_ds.data.load import RunData, check_leakage, refuse_common_prompts
from dcr_ds.data.prompts import read_prompts
from dcr_ds.data.records import Prompt, PromptSet
from dcr_ds.errors import UserError
from dcr_ds.files import read_object
from dcr_ds.recipe import DataSource, Recipe
from dcr_ds.recipe.layout import RunFolder
from dcr_ds.refine.prompts import encode_refine_prompts

OPTIONS = {"seemingly_toxic": "--seemingly-toxic", "toxic": "--toxic"}


class Chosen(NamedTuple):
    """The prompts to answer and the prompts to refuse; and the recipe's prompts that refine does not train on."""

    seemingly_toxic: list[Prompt]
    toxic: list[Prompt]
    held_out: list[Prompt]
    notes: list[str]


def refine_steps(recipe: Recipe) -> tuple[int, str]:
    """Steps of stage 1: those that the recipe's run took if it is done, else the most that it may take; and why."""
    stage = RunFolder(recipe.folder).stage("refine")
    taken = read_object(stage.summary).get("steps")
    if isinstance(taken, int) and taken > 0:
        return taken, f"taken in {stage.folder}"
    return recipe.refine.max_steps, f"refine.max_steps, as {stage.folder} is not done"


def prompts_of_refine(recipe: Recipe, data: RunData, tokenizer: PreTrainedTokenizerBase, steps: int) -> Chosen:
    """The prompts in the batches of the first `steps` steps of stage 1, in the order of their sets."""
    sampler = encode_refine_prompts(recipe, data, tokenizer).sampler
    seen = {(label, row.id) for step in range(steps) for row, label in sampler.batch(step)}
    chosen = [[row for row in rows if (label, row.id) in seen] for label, rows in enumerate(sampler.rows)]
    assert data.seemingly_toxic is not None and data.toxic is not None  # load_data reads them with refine
    sets = (data.seemingly_toxic, data.toxic)
    trained = [{row.id for row in rows} for rows in sampler.rows]
    held_out = [row for read, ids in zip(sets, trained, strict=True) for row in read.rows if row.id not in ids]
    notes = [
        f"prompts: {len(rows)} of {read.name} ({read.source}), all that {steps} steps of refine see"
        for rows, read in zip(chosen, sets, strict=True)
    ]
    return Chosen(chosen[0], chosen[1], held_out, notes)


def other_prompts(recipe: Recipe, data: RunData, own: Chosen, files: dict[str, str | None]) -> Chosen:
    """The prompts of files in place of the recipe's, without those that occur in the recipe's held-out part.

    Args:
        own: the prompts of refine, used for a set without a file.
        files: by name of the set.

    Raises:
        UserError: a file cannot be read, a prompt is in both sets, the prompts overlap with the evaluation, or none is
            left.
    """
    sets, notes = {}, []
    for name, rows in zip(OPTIONS, (own.seemingly_toxic, own.toxic), strict=True):
        source = files[name]
        if source is None:
            sets[name] = PromptSet(name, f"data.{name}", rows, "")
            continue
        read = read_prompts(DataSource(source=source), name, OPTIONS[name])
        known = {overlap.training_id for overlap in find_overlaps({name: read.rows}, {"held out": own.held_out})}
        left = [row for row in read.rows if row.id not in known]
        notes.append(
            f"prompts: {len(left)} of {len(read.rows)} of {read.source}; {len(known)} are held out by the recipe"
        )
        if not left:
            raise UserError(f"{OPTIONS[name]}: {read.source}: the recipe holds out all of its prompts")
        sets[name] = PromptSet(name, read.source, left, "")
    seemingly_toxic, toxic = sets["seemingly_toxic"], sets["toxic"]
    refuse_common_prompts(seemingly_toxic, toxic, (OPTIONS["seemingly_toxic"], OPTIONS["toxic"]))
    trained = RunData(seemingly_toxic, toxic, benchmarks=data.benchmarks, evaluate_general=data.evaluate_general)
    check_leakage(trained, recipe.allow_leakage)
    return Chosen(seemingly_toxic.rows, toxic.rows, own.held_out, notes)
