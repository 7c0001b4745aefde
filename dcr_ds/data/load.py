"""All the data of a run: read, checked against each other, and described, before torch is imported."""

from dataclasses import dataclass, field

from dcr_ds.data.benchmarks import Benchmark, read_benchmarks
from dcr_ds.data.conversations import read_conversations
from dcr_ds.data.leakage import Overlap, describe, find_overlaps, normalise
from dcr_ds.data.preferences import read_preferences
from dcr_ds.data.prompts import read_prompts
from dcr_ds.data.records import ConversationSet, PreferenceSet, PromptSet, prompts_of
from dcr_ds.data.sampler import ContrastiveSampler
from dcr_ds.data.splitting import split_held_out
from dcr_ds.errors import UserError
from dcr_ds.recipe import DataSource, Recipe

SHOWN = 5  # rows listed in an error


@dataclass(slots=True)
class RunData:
    """What the stages of a recipe need; a set that none of them needs is None, and is not read."""

    seemingly_toxic: PromptSet | None = None
    toxic: PromptSet | None = None
    general: ConversationSet | None = None
    refusals: ConversationSet | None = None
    preferences: PreferenceSet | None = None
    benchmarks: list[Benchmark] = field(default_factory=list)
    evaluate_general: ConversationSet | None = None
    refusal_examples: ConversationSet | None = None  # refusals and ordinary answers that refusal openings come from
    ordinary_examples: ConversationSet | None = None
    overlaps: list[Overlap] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def training_sets(self) -> dict[str, PromptSet | ConversationSet | PreferenceSet]:
        """The sets that are trained on, by their field in the recipe."""
        sets = {
            "data.seemingly_toxic": self.seemingly_toxic,
            "data.toxic": self.toxic,
            "data.general": self.general,
            "data.refusals": self.refusals,
            "data.preferences": self.preferences,
        }
        return {name: each for name, each in sets.items() if each is not None}

    def evaluation_sets(self) -> dict[str, PromptSet | ConversationSet]:
        """The sets that are measured on, by benchmark or field in the recipe."""
        sets: dict[str, PromptSet | ConversationSet] = {each.name: each.prompts for each in self.benchmarks}
        return sets | ({"evaluate.general": self.evaluate_general} if self.evaluate_general else {})

    def summary(self) -> dict:
        """For every set its source, number of rows, hash and notes; for the whole the notes and overlaps."""
        sets = self.training_sets() | self.evaluation_sets()
        return {
            "sets": {
                name: {
                    "source": each.source,
                    "rows": len(each.rows),
                    "sha256": each.sha256,
                    "notes": each.notes,
                }
                for name, each in sets.items()
            },
            "notes": self.notes,
            "overlaps": len(self.overlaps),
        }


def load_data(recipe: Recipe) -> RunData:
    """Read what the stages of a recipe need, and check the sets against each other.

    Raises:
        UserError: a set cannot be read; one prompt is in both stage-1 sets; a stage-1 set is too small to
        hold rows
            out of; training and evaluation data overlap, unless `allow_leakage` is set.
    """
    data = RunData()
    if "refine" in recipe.stages:
        data.seemingly_toxic = read_prompts(recipe.data.seemingly_toxic, "seemingly_toxic")
        data.toxic = read_prompts(recipe.data.toxic, "toxic")
        _refuse_common_prompts(data.seemingly_toxic, data.toxic)
        _check_contrast(recipe, data.seemingly_toxic, data.toxic, data.notes)
    by_preferences = "align" in recipe.stages and recipe.align.method == "dpo"
    by_demonstrations = "align" in recipe.stages and not by_preferences
    if "refine" in recipe.stages or by_demonstrations:
        data.general = read_conversations(recipe.data.general, "general")
    if by_preferences:
        data.preferences = read_preferences(recipe.data.preferences)
    if by_demonstrations:
        data.refusals = read_conversations(recipe.data.refusals, "refusals")
        if data.toxic is not None:
            _note_shared_refusals(data.toxic, data.refusals, data.notes)
    if "evaluate" in recipe.stages:
        data.benchmarks = read_benchmarks(recipe.evaluate)
        # an evaluation alone does not need the training data
        data.refusal_examples = data.refusals or read_conversations(DataSource(), "refusals")
        data.ordinary_examples = data.general or read_conversations(DataSource(), "general")
        data.evaluate_general = read_conversations(recipe.evaluate.general, "general", "evaluate.general")
    _check_leakage(data, recipe.allow_leakage)
    return data


def _refuse_common_prompts(seemingly_toxic: PromptSet, toxic: PromptSet) -> None:
    ids = {normalise(row.prompt): row.id for row in seemingly_toxic.rows}
    common = [(ids[text], row) for row in toxic.rows if (text := normalise(row.prompt)) in ids]
    if not common:
        return
    shown = "\n".join(f"  {first} and {row.id}: {row.prompt.strip()[:80]!r}" for first, row in common[:SHOWN])
    more = f"\n  and {len(common) - SHOWN} more" if len(common) > SHOWN else ""
    raise UserError(
        f"data.seemingly_toxic ({seemingly_toxic.source}) and data.toxic ({toxic.source}) have {len(common)} "
        f"prompts in common; a prompt can be of one class only. Take these out of one of them:\n{shown}{more}"
    )


def _check_contrast(recipe: Recipe, seemingly_toxic: PromptSet, toxic: PromptSet, notes: list[str]) -> None:
    """Fail now on what stage 1 would fail on: too few rows to hold out, no pairs to match."""
    split = split_held_out(seemingly_toxic.rows, toxic.rows, recipe.data.held_out, recipe.seed)
    sampler = ContrastiveSampler(
        split.seemingly_toxic, split.toxic, recipe.refine.global_batch, recipe.refine.pairs, recipe.seed
    )
    notes += sampler.notes


def _note_shared_refusals(toxic: PromptSet, refusals: ConversationSet, notes: list[str]) -> None:
    refused = {normalise(row.prompt) for row in refusals.rows}
    count = sum(normalise(row.prompt) in refused for row in toxic.rows)
    if count:
        notes.append(f"{count} prompts of data.toxic (stage 1) are in data.refusals (stage 2) too")


def _check_leakage(data: RunData, allow_leakage: bool) -> None:
    training = {name: prompts_of(each.rows) for name, each in data.training_sets().items()}
    evaluation = {name: prompts_of(each.rows) for name, each in data.evaluation_sets().items()}
    data.overlaps = find_overlaps(training, evaluation)
    if data.overlaps and not allow_leakage:
        raise UserError(
            "training and evaluation data overlap, so the evaluation would flatter the model:\n"
            f"{describe(data.overlaps)}\n"
            "Take these rows out of the training data, choose another benchmark, or go on with "
            "--allow_leakage true (the overlap is then reported)."
        )
