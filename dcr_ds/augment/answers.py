"""A model's own answers to prompts, generated once: rows of earlier files are reused, by content."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dcr_ds.data import Benchmark, Prompt, PromptSet
from dcr_ds.data.records import digest
from dcr_ds.engine.distributed import Ranks, decide_on_main, print_on_main
from dcr_ds.errors import UserError
from dcr_ds.evaluate.generate import Decoding, check_context, generate_missing, prepare_generations
from dcr_ds.evaluate.generations import Generations
from dcr_ds.evaluate.model import EvaluatedModel
from dcr_ds.files import hash_of, read_jsonl
from dcr_ds.judges import Answer, load_judge, verdicts
from dcr_ds.judges.answer_text import answer_text

FIELDS = {"completion": str, "finish": str | None, "tokens": int, "key": str}
GENERATED = ("completion", "finish", "tokens")
WHOLE_SENTENCES = re.compile(r".*[.!?][\"')\]]*(?=\s|\Z)", re.DOTALL)
WHY_LEFT_OUT = {
    "full_refusal": "a refusal",
    "partial_refusal": "a partial refusal",
    "degenerate": "degenerate",
    "cut off": "cut off before its first sentence ended",
}


class Given(NamedTuple):
    """An answer as it was generated, and the text to train on; None if it is left out, for the reason `label`."""

    prompt: Prompt
    row: dict
    label: str
    text: str | None


def answer(
    model: EvaluatedModel, prompts: Sequence[Prompt], decoding: Decoding, earlier: Sequence[Path], ranks: Ranks
) -> list[dict]:
    """The answers of a model, greedily decoded, in the order of the prompts. All ranks.

    A row is {id, prompt, completion, tokens, finish, key}; the key is a hash of the model's content, its chat template,
    the tokens of the prompt and the limit of the answer. New answers are written to a file in `model.folder`, from
    which an interrupted call continues.

    Args:
        earlier: files of such rows; those with the same key are not generated again.

    Raises:
        UserError: a file of `earlier` cannot be read, or a prompt cannot be encoded or is too long.
    """
    known = {row["key"]: row for file in earlier for row in _read(file)}
    identity = model.identity()
    whole = _prepare(model, prompts, decoding, identity)
    keys = [_key(whole, identity, ids) for ids in whole.ids]
    missing = [prompt for prompt, key in zip(prompts, keys, strict=True) if key not in known]
    print_on_main(ranks, f"answers: {len(prompts) - len(missing)} of {len(prompts)} reused, {len(missing)} to generate")
    if missing:
        part = _prepare(model, missing, decoding, identity)
        check_context(part, model.context)
        if not decide_on_main(lambda: part.is_complete, ranks):  # a shared file system may show ranks different states
            part.file.parent.mkdir(parents=True, exist_ok=True)
            generate_missing(part, model.load(ranks.device), model.tokenizer, ranks)
        new = {row["id"]: row for row in read_jsonl(part.file, GENERATED)}
        known |= {key: new[prompt.id] for prompt, key in zip(prompts, keys, strict=True) if prompt.id in new}
    return [
        {"id": prompt.id, "prompt": prompt.prompt, **{name: known[key][name] for name in GENERATED}, "key": key}
        for prompt, key in zip(prompts, keys, strict=True)
    ]


def judged(prompts: Sequence[Prompt], rows: Sequence[dict]) -> tuple[list[Given], list[str]]:
    """What to train on of each answer, by the judge `rules`; with notes on those that are left out.

    An answer that was cut off ends with its last whole sentence, as a model learns to end where its samples end.
    """
    labels = verdicts(
        load_judge("rules"),
        [Answer(prompt.prompt, row["completion"], row["finish"]) for prompt, row in zip(prompts, rows, strict=True)],
    )
    given = [_given(prompt, row, verdict.label) for prompt, row, verdict in zip(prompts, rows, labels, strict=True)]
    counts = Counter(item.label for item in given if item.text is None)
    notes = [f"answers: {count} of {len(rows)} left out: {WHY_LEFT_OUT[label]}" for label, count in counts.items()]
    return given, notes


def _given(prompt: Prompt, row: dict, label: str) -> Given:
    if label != "compliance":
        return Given(prompt, row, label, None)
    text = answer_text(row["completion"])
    if row["finish"] == "length":
        whole = WHOLE_SENTENCES.match(text)
        return Given(prompt, row, label, whole[0]) if whole else Given(prompt, row, "cut off", None)
    return Given(prompt, row, label, text)


def _prepare(
    model: EvaluatedModel, prompts: Sequence[Prompt], decoding: Decoding, identity: dict[str, str]
) -> Generations:
    rows = list(prompts)
    benchmark = Benchmark("seemingly toxic prompts", "comply", PromptSet("seemingly_toxic", "", rows, digest(rows)))
    return prepare_generations(
        benchmark, model.folder.folder / "generations.jsonl", model.tokenizer, decoding, identity
    )


def _key(generations: Generations, identity: dict[str, str], ids: Sequence[int]) -> str:
    return hash_of([identity, generations.template_hash, generations.max_new_tokens, list(ids)])


def _read(file: Path) -> list[dict]:
    if not file.is_file():
        raise UserError(f"--answers: {file}: no such file; name answers.jsonl of an earlier call")
    rows = read_jsonl(file, tuple(FIELDS))
    for number, row in enumerate(rows, 1):
        for name, kind in FIELDS.items():
            if not isinstance(row[name], kind):
                raise UserError(
                    f"--answers: {file}, row {number}: {name} is {row[name]!r}; use the file as it was written"
                )
    return rows
