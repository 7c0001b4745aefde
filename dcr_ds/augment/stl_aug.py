"""STL-aug: STL on the prompts that refine sees, with answers, for as many steps as refine and align take together.

With the recipe's own prompts it is the equal-data control of DCR: it decides whether the contrastive loss or the
additional prompts make the difference.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dcr_ds.align.mix import encode_mix
from dcr_ds.align.state import num_steps
from dcr_ds.augment.answers import answer, judged
from dcr_ds.augment.folder import (
    ANSWERS,
    GENERAL,
    RECIPE,
    REFUSALS,
    baseline_recipe,
    check_alignment,
    check_output,
    write_conversations,
    write_recipe,
    written_at_once,
)
from dcr_ds.augment.prompts import other_prompts, prompts_of_refine, refine_steps
from dcr_ds.augment.stock_refusals import stock_refusal
from dcr_ds.data.load import RunData, load_data
from dcr_ds.data.records import Conversation, Prompt
from dcr_ds.engine.distributed import Ranks, decide_on_main
from dcr_ds.errors import UserError
from dcr_ds.evaluate.generate import Decoding
from dcr_ds.evaluate.model import EvaluatedModel
from dcr_ds.files import write_jsonl
from dcr_ds.recipe import Recipe

NAME = "stl-aug"


@dataclass(frozen=True)
class Options:
    """What the recipe does not say.

    Attributes:
        answers: files of earlier calls, whose answers are reused.
        refine_steps: steps of stage 1; None: as its run took, or at most takes.
        files: prompts to use in place of the recipe's, by name of the set.
    """

    out: Path
    max_new_tokens: int
    answers: tuple[Path, ...]
    refine_steps: int | None
    files: dict[str, str | None]


class Rows(NamedTuple):
    """The training data of stage 2."""

    general: list[Conversation]
    refusals: list[Conversation]


def read_data(recipe: Recipe, out: Path) -> RunData:
    """The data of a recipe with its stage-1 sets, whether or not refine is one of its stages.

    Raises:
        UserError: the recipe has no alignment by SFT, the output exists, or the data cannot be used.
    """
    check_alignment(recipe, NAME)
    check_output(out)
    return load_data(recipe.model_copy(update={"stages": ["refine", *(s for s in recipe.stages if s != "refine")]}))


def write_stl_aug(recipe: Recipe, model: EvaluatedModel, data: RunData, options: Options, ranks: Ranks) -> list[str]:
    """Answer the prompts, and write training data and recipe; returns notes with the counts. All ranks.

    Args:
        model: that of the recipe; new answers are kept in its folder until all files are written.
        data: that of the recipe.

    Raises:
        UserError: no answer is left, or the prompts, the written data or a file of answers cannot be used.
    """
    steps, why = (options.refine_steps, "--refine-steps") if options.refine_steps else refine_steps(recipe)
    chosen = prompts_of_refine(recipe, data, model.tokenizer, steps)
    if any(options.files.values()):
        chosen = other_prompts(recipe, data, chosen, options.files)
    decoding = Decoding(options.max_new_tokens, recipe.evaluate.batch_size)
    answers = answer(model, chosen.seemingly_toxic, decoding, options.answers, ranks)
    given, left_out = judged(chosen.seemingly_toxic, answers)
    if not any(item.text for item in given):
        raise UserError(
            f"{NAME}: no answer is left to train on: {'; '.join(left_out)}. The recipe's model refuses, or does not "
            "answer; use a base or instruction-tuned model that answers these prompts, or raise --max-new-tokens"
        )
    own = _rows_of_align(recipe, data, model)
    taken = num_steps(recipe.align.epochs, len(own.general) + len(own.refusals), recipe.align.global_batch)
    notes = [*chosen.notes, *left_out, f"steps: {taken} of align, and {steps} of refine ({why})"]
    answered = [_conversation(item.prompt, item.text) for item in given if item.text]
    refused = [_conversation(prompt, stock_refusal(prompt.prompt, recipe.seed)) for prompt in chosen.toxic]

    def write() -> list[str]:
        with written_at_once(options.out) as folder:
            write_conversations(folder / GENERAL, [*own.general, *answered])
            write_conversations(folder / REFUSALS, [*own.refusals, *refused])
            write_jsonl(
                folder / ANSWERS, ({**row, "label": item.label} for row, item in zip(answers, given, strict=True))
            )
            trained = _samples(recipe, folder, model)
            epochs = (taken + steps - 0.5) * recipe.align.global_batch / trained  # rounded up to whole steps
            notes.append(f"{trained} samples, {taken + steps} steps")
            written = _written(recipe, options.out, epochs=round(epochs, 6))
            write_recipe(folder / RECIPE, written, [f"{NAME} of {recipe.name}", *notes])
            shutil.rmtree(model.folder.folder, ignore_errors=True)
        return notes

    return decide_on_main(write, ranks)


def _rows_of_align(recipe: Recipe, data: RunData, model: EvaluatedModel) -> Rows:
    """The conversations that the recipe's own alignment trains on, after its filters and its ratio of refusals."""
    mix = encode_mix(recipe.align, data, model.tokenizer, recipe.seed)
    assert data.general is not None and data.refusals is not None  # load_data reads them for SFT
    count = len(mix.ids) - mix.num_refusals
    general, refusals = set(mix.ids[:count]), set(mix.ids[count:])
    return Rows(
        [row for row in data.general.rows if row.id in general],
        [row for row in data.refusals.rows if row.id in refusals],
    )


def _conversation(prompt: Prompt, response: str) -> Conversation:
    return Conversation(f"{NAME}/{prompt.id}", (*prompt.messages, {"role": "assistant", "content": response}), NAME)


def _samples(recipe: Recipe, folder: Path, model: EvaluatedModel) -> int:
    """The number of samples that a run on the written data trains on; it is checked as that of any recipe."""
    written = _written(recipe, folder)
    return len(encode_mix(written.align, load_data(written), model.tokenizer, written.seed).samples)


def _written(recipe: Recipe, folder: Path, **align: float) -> Recipe:
    """The recipe of the run, on the data in a folder; its rows are those after the ratio of refusals was applied."""
    files = {"general": folder / GENERAL, "refusals": folder / REFUSALS}
    return baseline_recipe(recipe, NAME, files, safe_ratio="auto", **align)
