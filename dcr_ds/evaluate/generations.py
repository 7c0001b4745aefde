"""The answers of one model to one benchmark: a file of rows that survives being killed, however they are generated.

A row is {id, category, prompt, completion, tokens, finish, template_hash, settings_hash}. `category` is that of the
benchmark, or null; `tokens` counts the generated tokens including the end of the turn; `finish` is "stop" if the model
ended its turn and "length" if the answer was cut off. Where there are any, a row also has template_variables of the
chat template, the `context` (messages before the prompt), the `pair` of twins, and `attack`: the text that was sent in
place of the prompt, the given opening of the completion, and the request as judges read it. A row of an endpoint has an
`asked_hash`, of the model and what it was asked, so that answers are kept when other prompts are added.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dcr_ds.data import Prompt
from dcr_ds.data.attacks import Attack, conversation
from dcr_ds.engine.distributed import Ranks, print_on_main
from dcr_ds.evaluate.parts import is_merged, part_file, read_with_parts, write_merged
from dcr_ds.files import read_whole_rows, write_jsonl
from dcr_ds.judges.answer_text import answer_text

FIELDS = {"id": str, "prompt": str, "completion": str, "tokens": int, "settings_hash": str}
NOTED_SHARE = 0.1  # of answers that were cut off before they began


@dataclass(frozen=True)
class Generations:
    """A file of answers and the settings they are generated under.

    `settings_hash` covers everything the answers depend on. Behind an endpoint the server renders the prompts: there
    are no `ids` and no `template_hash`, and `asked_hashes` say what each answer alone depends on.
    """

    benchmark: str
    file: Path
    prompts: Sequence[Prompt]
    max_new_tokens: int
    settings_hash: str
    batch_size: int = 1
    ids: Sequence[list[int]] = ()  # token ids of the prompts
    template_hash: str | None = None
    template_variables: Mapping[str, str] = field(default_factory=dict)  # such as enable_thinking; name → JSON
    attack: Attack | None = None
    asked_hashes: Mapping[str, str] = field(default_factory=dict)  # by id, where answers do not depend on each other

    @property
    def is_complete(self) -> bool:
        """Whether the file contains every row, in the order of the prompts, generated under these settings."""
        return is_merged(self.file, FIELDS, self.prompts, self.settings_hash)

    @property
    def generated_tokens(self) -> int:
        """Tokens of all answers in the file."""
        return sum(row["tokens"] for row in read_whole_rows(self.file, FIELDS))

    def messages(self, index: int) -> tuple[dict[str, str], ...]:
        """The conversation of a prompt as it is sent."""
        return conversation(self.prompts[index], self.attack)

    def row(self, index: int, completion: str, tokens: int, finish: str | None) -> dict:
        """The row of the answer to a prompt."""
        prompt = self.prompts[index]
        return {
            "id": prompt.id,
            "category": prompt.category,
            **({"pair": prompt.pair} if prompt.pair is not None else {}),
            "prompt": prompt.prompt,
            "completion": completion,
            "tokens": tokens,
            "finish": finish,
            "template_hash": self.template_hash,
            "settings_hash": self.settings_hash,
            **({"template_variables": dict(self.template_variables)} if self.template_variables else {}),
            **({"context": list(prompt.context)} if prompt.context else {}),
            **({"attack": _attack_row(self.attack, prompt)} if self.attack else {}),
            **({"asked_hash": self.asked_hashes[prompt.id]} if self.asked_hashes else {}),
        }

    def resume(self, batches: Sequence[Sequence[int]], ranks: Ranks) -> list[int]:
        """Gather the rows of earlier runs in one file; returns the numbers of the complete batches. Rank 0.

        Args:
            batches: indices of the prompts that are generated together; rows of incomplete batches are dropped.
        """
        earlier = read_with_parts(self.file, FIELDS)
        rows = {row["id"]: row | {"settings_hash": self.settings_hash} for row in earlier if self._is_answer(row)}
        if {row["id"] for row in earlier} & {prompt.id for prompt in self.prompts} - rows.keys():
            print_on_main(ranks, f"{self.file}: generated with another model or other settings; generating again")
        done = [
            number for number, batch in enumerate(batches) if all(self.prompts[index].id in rows for index in batch)
        ]
        kept = [rows[self.prompts[index].id] for number in done for index in batches[number]]
        if kept:
            print_on_main(ranks, f"{self.file}: resuming after {len(kept)} of {len(self.prompts)} answers")
        write_merged(self.file, kept)
        return done

    def _is_answer(self, row: dict) -> bool:
        """Whether a row of an earlier run answers its prompt under these settings."""
        asked_hash = self.asked_hashes.get(row["id"])
        same_request = asked_hash is not None and row.get("asked_hash") == asked_hash
        return row["settings_hash"] == self.settings_hash or same_request

    def part_file(self, ranks: Ranks) -> Path:
        """The file a rank appends its rows to: the file itself with a single rank, else a part that rank 0 merges.

        The ranks that hold a copy of the model together have the same rows, and only the first of them keeps them.
        """
        if not ranks.is_first_of_copy:
            return Path(os.devnull)
        if ranks.world_size == 1:
            return self.file
        return part_file(self.file, ranks.rank)

    def finish(self) -> None:
        """Write the complete file, in the order of the prompts, and remove the parts. Rank 0."""
        rows = {row["id"]: row for row in read_with_parts(self.file, FIELDS)}
        missing = [prompt.id for prompt in self.prompts if prompt.id not in rows]
        if missing:  # a lost answer must never shrink a benchmark silently
            raise RuntimeError(f"{self.file}: {len(missing)} answers were not written, the first is {missing[0]}")
        write_merged(self.file, [rows[prompt.id] for prompt in self.prompts])

    def renew(self) -> None:
        """Write complete answers with what their prompts are now, such as their categories. Rank 0.

        Notes answers that were cut off before they began.
        """
        rows = read_whole_rows(self.file, FIELDS)
        renewed = [
            self.row(index, row["completion"], row["tokens"], row.get("finish")) for index, row in enumerate(rows)
        ]
        if renewed != rows:
            write_jsonl(self.file, renewed)
        unsaid = sum(row["finish"] == "length" and not answer_text(row["completion"]) for row in renewed)
        if unsaid > NOTED_SHARE * len(renewed):  # all of them would be degenerate
            print(
                f"{self.benchmark}: {unsaid} of {len(renewed)} answers end at {self.max_new_tokens} tokens before they "
                "say anything, as reasoning that was cut off; raise max_new_tokens",
                file=sys.stderr,
            )


def _attack_row(attack: Attack, prompt: Prompt) -> dict[str, str]:
    return {
        "name": attack.name,
        "sent": attack.sent(prompt),
        "opening": attack.opening,
        "request": attack.request(prompt),
    }
