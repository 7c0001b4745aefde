"""The data of a run as tokens: encoded once, before anything is trained, and compared over ranks and attempts."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from dcr_ds.align.objective import AnySamples, encode_samples
from dcr_ds.align.order import num_steps
from dcr_ds.align.refusals import RefusalProbe, build_probe
from dcr_ds.data.load import RunData
from dcr_ds.evaluate.run import encode_evaluation
from dcr_ds.models.chat import encode_prompt, turn_end_ids
from dcr_ds.models.limits import limits_of
from dcr_ds.models.tokenizer import load_tokenizer
from dcr_ds.recipe import Recipe, StageSection
from dcr_ds.recipe.layout import section_of
from dcr_ds.refine.prompts import RefinePrompts, encode_refine_prompts, split_prompts


class RunTokens:
    """The tokens of each stage, encoded when they are first asked for. The stages of a run have the same tokenizer.

    Everything may raise a UserError that names data set and row: a row that cannot be encoded, a token that the model
    does not have, or too few rows that are short enough.
    """

    def __init__(self, recipe: Recipe, source: Path, data: RunData):
        """
        Args:
            recipe: resolved, without any `auto`.
        """
        self.recipe, self.source, self.data = recipe, source, data
        self._hashes: dict[str, str] = {}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.source, self.recipe.model.template)

    @cached_property
    def prompts(self) -> RefinePrompts:
        """Of stage 1."""
        return encode_refine_prompts(self.recipe, self.data, self.tokenizer)

    @cached_property
    def samples(self) -> AnySamples:
        """Of stage 2 and of the control."""
        return encode_samples(self.recipe, self.data, self.tokenizer)

    @cached_property
    def probe(self) -> RefusalProbe | None:
        """Prompts whose refusal log-odds are measured in stage 2."""
        if not self.recipe.align.measure_every:
            return None
        tokens, split = split_prompts(self.recipe, self.data, self.tokenizer, [])
        return build_probe(self.data, self.tokenizer, tokens, split, self.recipe.seed)

    def hash_of(self, stage: str) -> str:
        """Hash of all token ids of a training stage."""
        name = section_of(stage)
        if name not in self._hashes:
            rows = _prompt_rows(self.prompts) if name == "refine" else _sample_rows(self.samples, self.probe)
            self._hashes[name] = hash_rows(rows)
        return self._hashes[name]

    def evaluation_hashes(self) -> dict[str, str]:
        """Hash of the prompts of each benchmark, and of the general answers."""
        return encode_evaluation(self.data, self.recipe.evaluate, self.tokenizer, limits_of(self.tokenizer).context)

    def describe(self, stages: Iterable[str]) -> dict[str, str]:
        """Hashes of the tokens of training stages, and of the evaluation if it is a stage of the run."""
        turn_end_ids(self.tokenizer)  # renders a conversation: an invalid template is not an error of the first row
        evaluated = self.evaluation_hashes() if "evaluate" in self.recipe.stages else {}
        return {f"hash of the tokens of {stage}": self.hash_of(stage) for stage in stages} | evaluated

    def drop_prompts(self) -> None:
        """Free the prompts of stage 1, which no later stage needs."""
        vars(self).pop("prompts", None)

    def notes(self, stages: Iterable[str]) -> list[str]:
        """Warnings about the schedule and the batches of stages, and about prompts without BOS."""
        recipe = self.recipe
        retained = recipe.refine.retain_batch if recipe.refine.retain_weight else 0
        batches = {
            "refine": lambda: repeats_note("refine.retain_batch", retained, len(self.prompts.general)),
            "align": lambda: repeats_note("align.global_batch", recipe.align.global_batch, len(self.samples.samples)),
        }
        steps = {"refine": lambda: recipe.refine.max_steps, "align": self.align_steps}
        named = list(dict.fromkeys(section_of(stage) for stage in stages))
        notes = [note for name in named if (note := warmup_note(name, getattr(recipe, name), steps[name]()))]
        notes += [note] if (note := bos_note(self.tokenizer)) else []
        return notes + [note for name in named if (note := batches[name]())]

    def align_steps(self) -> int:
        """Optimizer steps of stage 2."""
        return num_steps(self.recipe.align.epochs, len(self.samples.samples), self.recipe.align.global_batch)


def bos_note(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A warning if texts begin with BOS and prompts do not; some models need it, such as Gemma."""
    bos = tokenizer.bos_token_id
    if bos is None or tokenizer("a").input_ids[:1] != [bos] or encode_prompt(tokenizer, "a")[:1] == [bos]:
        return None
    return (
        f"WARNING: model.chat_template: the tokenizer begins texts with {tokenizer.bos_token}, and the template does "
        "not write it: prompts begin otherwise than what the model was pretrained on; begin the template with "
        "{{ bos_token }}"
    )


def warmup_note(name: str, stage: StageSection, total_steps: int) -> str | None:
    """A warning if the learning rate never reaches its peak."""
    if stage.warmup_steps < max(1, total_steps):
        return None
    share = (total_steps - 1) / stage.warmup_steps
    return (
        f"WARNING: {name}: warmup_steps = {stage.warmup_steps}, and the stage has {total_steps} steps, so its learning "
        f"rate ends at {share:.0%} of {name}.learning_rate; lower {name}.warmup_steps"
    )


def repeats_note(field: str, batch: int, num_samples: int) -> str | None:
    """A warning if a batch is larger than the data, so that samples repeat within a step."""
    if batch <= num_samples:
        return None
    return f"WARNING: {field} = {batch}, and there are {num_samples} samples: a step repeats some; lower it"


def hash_rows(rows: Iterable[Sequence[int]]) -> str:
    """SHA-256 of rows of integers, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(array("q", [len(row), *row]).tobytes())
    return digest.hexdigest()


def _prompt_rows(prompts: RefinePrompts) -> Iterable[Sequence[int]]:
    yield from prompts.tokens.values()
    yield from (row.ids for row in prompts.held_out)
    yield from prompts.general
    yield from prompts.held_out_general


def _sample_rows(samples: AnySamples, probe: RefusalProbe | None) -> Iterable[Sequence[int]]:
    for row in range(len(samples.samples)):
        for answer in samples.answers(row):
            yield from ([answer.prompt_tokens], answer.ids)
    for prompts in probe.prompts.values() if probe else ():
        yield from prompts
