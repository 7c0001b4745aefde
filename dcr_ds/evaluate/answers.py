"""The file of a benchmark's answers: what of it is there, how it goes on, and how it is finished; whoever generates.

A row is {id, category, prompt, completion, tokens, finish, template_hash, settings_hash}. `category` is that of the
benchmark, or null; `tokens` are those generated, the end of the turn included; `finish` is "stop" where the model ended
its turn and "length" where it was cut off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dcr_ds.data import Prompt
from dcr_ds.engine.distributed import Ranks, print_on_main
from dcr_ds.files import read_jsonl, write_jsonl


@dataclass(frozen=True)
class Questions:
    """One benchmark as one model reads it.

    `settings_hash` covers everything its answers depend on. Behind an endpoint the server renders the prompts: there
    are no `ids` and no `template_hash`.
    """

    name: str
    file: Path
    prompts: Sequence[Prompt]
    max_new_tokens: int
    settings_hash: str
    batch_size: int = 1
    ids: Sequence[list[int]] = ()
    template_hash: str | None = None


def answer_row(questions: Questions, index: int, completion: str, tokens: int, finish: str | None) -> dict:
    prompt = questions.prompts[index]
    return {
        "id": prompt.id,
        "category": prompt.category,
        "prompt": prompt.prompt,
        "completion": completion,
        "tokens": tokens,
        "finish": finish,
        "template_hash": questions.template_hash,
        "settings_hash": questions.settings_hash,
    }


def are_answered(questions: Questions) -> bool:
    """Whether the file holds every row, in the order of the prompts, generated under these settings."""
    rows = read_jsonl(questions.file)
    return (
        [row["id"] for row in rows] == [prompt.id for prompt in questions.prompts]
        and all(row.get("settings_hash") == questions.settings_hash for row in rows)
        and not _part_files(questions.file)
    )


def collect(questions: Questions, batches: Sequence[Sequence[int]], ranks: Ranks) -> list[int]:
    """Gather what earlier runs left into one clean file; returns the numbers of the whole batches. Rank 0.

    Args:
        batches: indices of the prompts that are generated together; what there is of a torn batch is dropped.
    """
    parts = _part_files(questions.file)
    found = [row for file in [questions.file, *parts] for row in read_jsonl(file)]
    usable = [row for row in found if row.get("settings_hash") == questions.settings_hash]
    rows = {row["id"]: row for row in usable}
    if len(usable) < len(found):
        print_on_main(ranks, f"{questions.file}: made with another model or other settings; generated anew")
    done = [
        number for number, batch in enumerate(batches) if all(questions.prompts[index].id in rows for index in batch)
    ]
    kept = [rows[questions.prompts[index].id] for number in done for index in batches[number]]
    if kept:
        print_on_main(ranks, f"{questions.file}: going on after {len(kept)} of {len(questions.prompts)} answers")
    write_jsonl(questions.file, kept)
    for part in parts:
        part.unlink()
    return done


def own_file(questions: Questions, ranks: Ranks) -> Path:
    """The file a rank appends its rows to: the file itself for a single process, else a part that rank 0 merges."""
    if ranks.world_size == 1:
        return questions.file
    return questions.file.with_name(f"{questions.file.stem}.rank{ranks.rank:04d}{questions.file.suffix}")


def finish(questions: Questions) -> None:
    """Write the finished file, in the order of the prompts, and remove the parts. Rank 0."""
    parts = _part_files(questions.file)
    rows = {row["id"]: row for file in [questions.file, *parts] for row in read_jsonl(file)}
    missing = [prompt.id for prompt in questions.prompts if prompt.id not in rows]
    if missing:  # a lost answer must never shrink a benchmark silently
        raise RuntimeError(f"{questions.file}: {len(missing)} answers were not written, the first is {missing[0]}")
    write_jsonl(questions.file, [rows[prompt.id] for prompt in questions.prompts])
    for part in parts:
        part.unlink()


def _part_files(file: Path) -> list[Path]:
    return sorted(file.parent.glob(f"{file.stem}.rank*{file.suffix}"))
