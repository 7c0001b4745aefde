"""Which rows a step trains on: pure functions of (seed, rows consumed), independent of the number of ranks.

Nothing here has a state, so a resumed run can ask for any step without replaying the steps before it.
"""

import random
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

from dcr_ds.data.records import Prompt
from dcr_ds.errors import UserError

SEEMINGLY_TOXIC, TOXIC = 0, 1  # labels of the contrastive loss


@lru_cache(maxsize=8)
def _permutation(seed: int | str, n: int, epoch: int) -> tuple[int, ...]:
    """The order of one epoch.

    Sorted by random numbers rather than shuffled: Python guarantees only for `random()` that every version returns the
    same numbers.
    """
    generator = random.Random(f"{seed}/{epoch}")
    keys = [generator.random() for _ in range(n)]
    return tuple(sorted(range(n), key=keys.__getitem__))


def draw(seed: int | str, n: int, start: int, count: int) -> list[int]:
    """Entries start … start + count − 1 of the infinite sequence of per-epoch permutations of range(n)."""
    if n < 1:
        raise ValueError("n must be at least 1")
    entries: list[int] = []
    while count > 0:
        epoch, offset = divmod(start, n)
        part = _permutation(seed, n, epoch)[offset : offset + count]
        entries += part
        start, count = start + len(part), count - len(part)
    return entries


def by_pair(rows: Iterable[Prompt]) -> list[Prompt]:
    """Rows in the order of their pairs: the same indices of two sets of twins are the same pairs."""
    return sorted(rows, key=lambda row: (row.pair or row.id, row.id))


def draw_prompts(rows: Iterable[Prompt], seed: str, count: int) -> list[Prompt]:
    """At most `count` random rows by pair, the same pairs of two sets of twins."""
    ordered = by_pair(rows)
    return [ordered[index] for index in sorted(draw(seed, len(ordered), 0, min(count, len(ordered))))]


def draw_whole(seed: int | str, n: int, step: int, count: int) -> list[int]:
    """The `count` entries of a step, all different if n ≥ count; otherwise a step contains repeats.

    The entries at the end of an epoch that do not fill a step are skipped; they are other rows in every epoch.
    """
    if n < count:
        return draw(seed, n, step * count, count)
    epoch, within = divmod(step, n // count)
    return draw(seed, n, epoch * n + within * count, count)


class ContrastiveSampler:
    """Contrastive batches: half seemingly toxic (label 0), half toxic (label 1), alternating.

    Because the classes alternate, every even share of a batch (of a rank, of a micro-batch) contains both.

    Args:
        batch: number of prompts per batch, even.
        pairs: mixed: the halves are drawn independently; matched: batch / 2 pairs are drawn, twins are neighbours, and
            rows without a twin are left out (`notes` counts them).

    Raises:
        UserError: pairs is matched and there are no pairs.
    """

    def __init__(
        self,
        seemingly_toxic: list[Prompt],
        toxic: list[Prompt],
        batch: int,
        pairs: Literal["mixed", "matched"],
        seed: int,
    ):
        if batch < 2 or batch % 2:
            raise ValueError(f"a contrastive batch has two classes of equal size; {batch} is not even")
        self.half = batch // 2
        self.seed = seed
        self.notes: list[str] = []
        self.rows = (seemingly_toxic, toxic)
        self._pairs = match_twins(seemingly_toxic, toxic) if pairs == "matched" else None
        if self._pairs is not None:
            self._check_pairs(len(self._pairs))
        fewest = min(map(len, self.rows)) if self._pairs is None else len(self._pairs)
        if fewest < self.half:
            self.notes.append(f"a batch of {batch} contains repeats: it draws {self.half} of {fewest} rows or pairs")

    def batch(self, step: int) -> list[tuple[Prompt, int]]:
        """The prompts of a step, counted from 0, with their labels."""
        if self._pairs is None:
            drawn = list(zip(self._draw(SEEMINGLY_TOXIC, step), self._draw(TOXIC, step), strict=True))
        else:
            order = draw_whole(f"{self.seed}/pairs", len(self._pairs), step, self.half)
            drawn = [self._pairs[index] for index in order]
        return [labelled for first, second in drawn for labelled in ((first, SEEMINGLY_TOXIC), (second, TOXIC))]

    def positives(self, step: int) -> list[int]:
        """For each position in the step's batch, the position of another prompt of its label (InfoNCE's positive)."""
        generator = random.Random(f"{self.seed}/positives/{step}")
        offsets = [1 + int(generator.random() * (self.half - 1)) for _ in range(2 * self.half)]
        return [2 * ((i // 2 + offset) % self.half) + i % 2 for i, offset in enumerate(offsets)]

    def _draw(self, label: int, step: int) -> list[Prompt]:
        rows = self.rows[label]
        return [rows[index] for index in draw_whole(f"{self.seed}/{label}", len(rows), step, self.half)]

    def _check_pairs(self, count: int) -> None:
        if not count:
            raise UserError(
                "refine.pairs: matched requires rows of data.seemingly_toxic and data.toxic with the same `pair`; "
                "there are none. Map the column (columns.pair), or set --refine.pairs mixed"
            )
        for name, rows in zip(("seemingly toxic", "toxic"), self.rows, strict=True):
            if left_out := len(rows) - count:
                self.notes.append(f"{left_out} {name} rows left out: no twin (refine.pairs: matched)")


def match_twins(seemingly_toxic: list[Prompt], toxic: list[Prompt]) -> list[tuple[Prompt, Prompt]]:
    """Pairs of rows with the same pair key; if a set has several rows of a key, they are paired in order."""
    toxic_of: dict[str, list[Prompt]] = defaultdict(list)
    for row in reversed(toxic):
        if row.pair is not None:
            toxic_of[row.pair].append(row)
    return [(row, toxic_of[row.pair].pop()) for row in seemingly_toxic if row.pair is not None and toxic_of[row.pair]]
