"""Read all data of a run, check the sets against each other, and describe them; without torch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dcr_ds.data.benchmarks import Benchmark, read_benchmarks
from dcr_ds.data.conversations import read_conversations
from dcr_ds.data.labelled import read_labelled
from dcr_ds.data.leakage import Overlap, describe, find_overlaps, normalise
from dcr_ds.data.preferences import read_preferences
from dcr_ds.data.prompts import CLASSES as PROMPTS
from dcr_ds.data.prompts import read_prompts
from dcr_ds.data.records import (
    AnyRecord,
    Conversation,
    ConversationSet,
    LabelledSet,
    PreferenceSet,
    Prompt,
    PromptSet,
    earlier_turns_of,
    prompts_of,
)
from dcr_ds.data.sampler import ContrastiveSampler
from dcr_ds.data.splitting import HeldOutSplit, split_held_out
from dcr_ds.errors import UserError
from dcr_ds.recipe import DataSource, Recipe

SHOWN = 5  # common prompts listed in an error
CLASSES = ("data.seemingly_toxic", "data.toxic")
CONTRADICTORY = (  # one prompt, opposite answers
    ("data.toxic", "data.general"),
    ("data.general", "data.refusals"),
    ("data.seemingly_toxic", "data.refusals"),
)
# the training sets of a recipe, and how each is read; preferences as labelled answers for KTO
SETS: dict[str, Callable[..., Any]] = {
    "seemingly_toxic": read_prompts,
    "toxic": read_prompts,
    "general": read_conversations,
    "refusals": read_conversations,
    "preferences": read_preferences,
}
AnySet = PromptSet | ConversationSet | PreferenceSet | LabelledSet


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a model was made from before: sets by a name that says where they were used, and notes on them."""

    sets: dict[str, AnySet] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class RunData:
    """The data sets that the stages of a recipe need; all others are None and are not read."""

    seemingly_toxic: PromptSet | None = None
    toxic: PromptSet | None = None
    general: ConversationSet | None = None
    refusals: ConversationSet | None = None
    preferences: PreferenceSet | LabelledSet | None = None  # labelled answers for KTO
    benchmarks: list[Benchmark] = field(default_factory=list)
    evaluate_general: ConversationSet | None = None
    refusal_examples: ConversationSet | None = None  # refusals and ordinary answers that refusal openings come from
    ordinary_examples: ConversationSet | None = None
    earlier: dict[str, AnySet] = field(default_factory=dict)  # what the models were made from; for the leakage check
    overlaps: list[Overlap] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def training_sets(self) -> dict[str, AnySet]:
        """The training sets by their field in the recipe."""
        sets = {
            "data.seemingly_toxic": self.seemingly_toxic,
            "data.toxic": self.toxic,
            "data.general": self.general,
            "data.refusals": self.refusals,
            "data.preferences": self.preferences,
        }
        return {name: data_set for name, data_set in sets.items() if data_set is not None}

    def evaluation_sets(self) -> dict[str, PromptSet | ConversationSet]:
        """The evaluation sets by benchmark or field in the recipe."""
        # An attacked benchmark has the prompts of another one, which is listed in its place.
        attacked = {benchmark.attacked: benchmark.prompts for benchmark in self.benchmarks if benchmark.attacked}
        sets: dict[str, PromptSet | ConversationSet] = {
            **attacked,
            **{benchmark.name: benchmark.prompts for benchmark in self.benchmarks if not benchmark.attacked},
        }
        return sets | ({"evaluate.general": self.evaluate_general} if self.evaluate_general else {})

    def hashes(self) -> dict[str, str]:
        """Hash of the rows of every set, by field or benchmark."""
        sets = self.training_sets() | self.evaluation_sets()
        examples = {"refusals for openings": self.refusal_examples, "answers for openings": self.ordinary_examples}
        sets |= {name: data_set for name, data_set in examples.items() if data_set is not None}
        return {name: data_set.sha256 for name, data_set in sets.items()}

    def summary(self) -> dict:
        """Source, its version, number of rows, their hash and notes of every set; notes and the number of overlaps."""
        sets = self.training_sets() | self.evaluation_sets()
        return {
            "sets": {
                name: {
                    "source": data_set.source,
                    "rows": len(data_set.rows),
                    "sha256": data_set.sha256,
                    "notes": data_set.notes,
                    **({"version": data_set.version} if data_set.version else {}),
                }
                for name, data_set in sets.items()
            },
            "notes": self.notes,
            "overlaps": len(self.overlaps),
        }


def load_data(recipe: Recipe, *earlier: Earlier) -> RunData:
    """Read the data sets that the stages of a recipe need, and check them against each other.

    Args:
        earlier: what the models were made from (`evaluate.origins`); the leakage check covers it.

    Raises:
        UserError: a set cannot be read; a prompt is in both stage-1 sets; a stage-1 set is too small for a held-out
            split; training and evaluation data overlap and `allow_leakage` is not set.
    """
    data = _data_after(earlier)
    for step in _steps(recipe, data, needed_sets(recipe)):
        step()
    return data


def examine_data(recipe: Recipe, names: Sequence[str], *earlier: Earlier) -> tuple[RunData, list[UserError]]:
    """As `load_data` for some training sets, with every error that it would raise; sets with an error are None.

    Args:
        names: the training sets to read, of SETS.
    """
    data = _data_after(earlier)
    errors: list[UserError] = []
    for step in _steps(recipe, data, names):
        try:
            step()
        except UserError as error:
            errors.append(error)
    return data, errors


def _data_after(earlier: Sequence[Earlier]) -> RunData:
    data = RunData()
    for one in earlier:
        data.earlier |= one.sets
        data.notes += [note for note in one.notes if note not in data.notes]
    return data


def needed_sets(recipe: Recipe) -> list[str]:
    """The training sets that the stages of a recipe need."""
    needed = {name for stage in recipe.stages for name in sets_of_stage(recipe, stage)}
    return [name for name in SETS if name in needed]


def sets_of_stage(recipe: Recipe, stage: str) -> tuple[str, ...]:
    """The training sets that a stage reads; the control reads those of align."""
    if stage == "refine":
        return (*PROMPTS, "general")
    if stage == "evaluate":
        return ()
    trained_on = ("general", "refusals") if recipe.align.method == "sft" else ("preferences",)
    # the held-out prompts of stage 1 can be measured in stage 2
    return (*PROMPTS, *trained_on) if recipe.align.measure_every else trained_on


def _steps(recipe: Recipe, data: RunData, names: Sequence[str]) -> Iterator[Callable[[], None]]:
    """What loads and checks the data, in order; each step raises a UserError or fills `data`."""

    def read(name: str) -> None:
        labelled = name == "preferences" and recipe.align.method == "kto"
        reader = read_labelled if labelled else SETS[name]
        setattr(data, name, reader(getattr(recipe.data, name), name))

    def read_examples() -> None:
        # an evaluation alone does not need the training data
        data.refusal_examples = data.refusals or read_conversations(DataSource(), "refusals")
        data.ordinary_examples = data.general or read_conversations(DataSource(), "general")

    def read_evaluation() -> None:
        data.benchmarks = read_benchmarks(recipe.evaluate)

    def read_general() -> None:
        data.evaluate_general = read_conversations(recipe.evaluate.general, "general", "evaluate.general")

    yield from (partial(read, name) for name in names)
    if "refine" in recipe.stages and data.seemingly_toxic and data.toxic:
        yield partial(refuse_common_prompts, data.seemingly_toxic, data.toxic)
        yield partial(_check_contrast, recipe, data.seemingly_toxic, data.toxic, data.notes)
    if data.toxic and data.refusals:
        _note_shared_refusals(data.toxic, data.refusals, data.notes)
    _note_contradictions(data.training_sets(), data.notes)
    if "evaluate" in recipe.stages:
        yield from (read_evaluation, read_examples, read_general)
    yield partial(check_leakage, data, recipe.allow_leakage)


def refuse_common_prompts(first: PromptSet, second: PromptSet, fields: tuple[str, str] = CLASSES) -> None:
    """Raise UserError if a prompt is in both sets.

    Args:
        fields: what named the sets, such as --harmful.
    """
    ids = {normalise(row.prompt): row.id for row in first.rows}
    common = [(ids[text], row) for row in second.rows if (text := normalise(row.prompt)) in ids]
    if not common:
        return
    shown = "\n".join(f"  {known} and {row.id}: {row.prompt.strip()[:80]!r}" for known, row in common[:SHOWN])
    more = f"\n  and {len(common) - SHOWN} more" if len(common) > SHOWN else ""
    raise UserError(
        f"{fields[0]} ({first.source}) and {fields[1]} ({second.source}) have {len(common)} prompts in common; a "
        f"prompt can belong to one class only. Remove these rows from one of them:\n{shown}{more}"
    )


def _check_contrast(recipe: Recipe, seemingly_toxic: PromptSet, toxic: PromptSet, notes: list[str]) -> None:
    """Find now what would stop stage 1: too few rows for a held-out split, no pairs to match."""
    split = split_held_out(seemingly_toxic.rows, toxic.rows, recipe.data.held_out, recipe.seed)
    sampler = ContrastiveSampler(
        split.seemingly_toxic, split.toxic, recipe.refine.global_batch, recipe.refine.pairs, recipe.seed
    )
    notes += sampler.notes
    _note_held_out_repeats(split, notes)
    pairs = [[row.pair for row in data_set.rows if row.pair is not None] for data_set in (seemingly_toxic, toxic)]
    if all(pairs) and not {*pairs[0]} & {*pairs[1]}:
        notes.append(
            f"{' and '.join(CLASSES)} have a column of pairs, and no pair is in both (such as {pairs[0][0]!r} and "
            f"{pairs[1][0]!r}), so no twins are kept together in the held-out split"
        )


def _note_held_out_repeats(split: HeldOutSplit, notes: list[str]) -> None:
    """Note the held-out prompts that stage 1 is trained on all the same, in other case or nearly the same words."""
    sides = (split.seemingly_toxic, split.held_out_seemingly_toxic), (split.toxic, split.held_out_toxic)
    for name, (trained, held_out) in zip(CLASSES, sides, strict=True):
        overlaps = find_overlaps({name: trained}, {name: held_out})
        if repeated := {overlap.evaluation_id: overlap.training_id for overlap in overlaps}:
            first = " and ".join(next(iter(repeated.items())))
            notes.append(
                f"{len(repeated)} of {len(held_out)} held-out prompts of {name} are nearly those of rows that stage 1 "
                f"is trained on (such as {first}), so its gap and AUC are too high; remove them, or give them one pair"
            )


def _note_shared_refusals(toxic: PromptSet, refusals: ConversationSet, notes: list[str]) -> None:
    refused = {normalise(row.prompt) for row in refusals.rows}
    count = sum(normalise(row.prompt) in refused for row in toxic.rows)
    if count:
        notes.append(f"{count} prompts of data.toxic (stage 1) are also in data.refusals (stage 2)")


def _note_contradictions(sets: Mapping[str, AnySet], notes: list[str]) -> None:
    """Note the prompts that two sets have in common although one answers them and the other refuses them."""
    asked = {name: {_asked(row) for row in data_set.rows} for name, data_set in sets.items()}
    for first, second in CONTRADICTORY:
        if count := len(asked.get(first, set()) & asked.get(second, set())):
            notes.append(
                f"{count} prompts are in both {first} and {second}, of which one is for answers and the other for "
                "refusals; remove them from one (dcr-ds data check names some)"
            )


def _asked(row: AnyRecord) -> str:
    """All messages before the answer, without case, spaces and punctuation."""
    if isinstance(row, Prompt):
        messages = row.messages
    else:
        messages = row.messages[:-1] if isinstance(row, Conversation) else row.context
    return normalise("\n".join(message["content"] for message in messages))


def check_leakage(data: RunData, allow_leakage: bool) -> None:
    """Find the overlaps of training and evaluation sets; raise UserError if there are any, unless they are allowed.

    The user's earlier turns of training sets are compared with prompts of one turn: in a conversation, "yes" is none.
    """
    own = data.training_sets()
    read = {data_set.sha256 for data_set in own.values()}
    earlier = {name: data_set for name, data_set in data.earlier.items() if data_set.sha256 not in read}
    training, tested = own | earlier, data.evaluation_sets()
    single = {
        name: [row for row in data_set.rows if isinstance(row, Prompt) and not row.context]
        for name, data_set in tested.items()
    }
    last, asked = ({name: prompts_of(each.rows) for name, each in sets.items()} for sets in (training, tested))
    before = {name: earlier_turns_of(each.rows) for name, each in training.items()}
    data.overlaps = [*find_overlaps(last, asked), *find_overlaps(before, single)]
    if data.overlaps and not allow_leakage:
        raise UserError(
            "training and evaluation data overlap, which makes the evaluation too optimistic:\n"
            f"{describe(data.overlaps)}\n"
            "Train, or make the baseline, without these rows, choose another benchmark, or continue with "
            "--allow_leakage true (dcr-ds evaluate: --allow-leakage); the overlap is then reported."
        )
