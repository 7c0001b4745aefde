"""The held-out split of the stage-1 sets."""

import hashlib
from collections import defaultdict
from typing import NamedTuple

from dcr_ds.data.records import Prompt
from dcr_ds.errors import UserError

FEWEST_ROWS = 2  # a cosine gap needs two prompts per class

Groups = dict[str, list[Prompt]]


class HeldOutSplit(NamedTuple):
    """The training and held-out rows of both stage-1 sets, each in the order of its set."""

    seemingly_toxic: list[Prompt]
    toxic: list[Prompt]
    held_out_seemingly_toxic: list[Prompt]
    held_out_toxic: list[Prompt]


def split_held_out(seemingly_toxic: list[Prompt], toxic: list[Prompt], share: float, seed: int) -> HeldOutSplit:
    """Hold out a share of both stage-1 sets; twins are never separated.

    The rows of both sets with the same pair key form a group; a row without a key is a group of its own. Groups fall
    into three strata: in both sets, only in the first, only in the second. Each stratum is ordered by a hash of (seed,
    key), and its first round(share · groups) groups are held out. The choice is independent of the order of the rows,
    and each set loses about the same share. If a set gets fewer than two held-out rows, further groups follow in the
    same order, its own before shared ones.

    Raises:
        UserError: a set has too few rows or groups for two rows on each side.
    """
    sets = {"seemingly_toxic": seemingly_toxic, "toxic": toxic}
    groups = {name: _group(rows, name) for name, rows in sets.items()}
    first, second = groups.values()
    strata = [first.keys() & second.keys(), first.keys() - second.keys(), second.keys() - first.keys()]
    ranked = [sorted(keys, key=lambda key: _rank(seed, key)) for keys in strata]
    held_out = {key for keys in ranked for key in keys[: round(share * len(keys))]}
    shared, *own = ranked
    for name, alone in zip(groups, own, strict=True):
        _top_up(held_out, groups, name, [*alone, *shared])
    for name in groups:
        _check(held_out, groups[name], name)
    train = [_side(rows, name, held_out, False) for name, rows in sets.items()]
    kept = [_side(rows, name, held_out, True) for name, rows in sets.items()]
    return HeldOutSplit(*train, *kept)


def _key(row: Prompt, name: str) -> str:
    return f"pair {row.pair}" if row.pair is not None else f"id {name} {row.id}"


def _group(rows: list[Prompt], name: str) -> Groups:
    groups: Groups = defaultdict(list)
    for row in rows:
        groups[_key(row, name)].append(row)
    return groups


def _rank(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed} {key}".encode()).digest()


def _count(keys: set[str], groups: Groups) -> int:
    return sum(len(rows) for key, rows in groups.items() if key in keys)


def _top_up(held_out: set[str], groups: dict[str, Groups], name: str, candidates: list[str]) -> None:
    """Hold out more groups until the set has two held-out rows, as long as each set keeps two rows to train on."""
    for key in candidates:
        if _count(held_out, groups[name]) >= FEWEST_ROWS:
            return
        affected = [members for members in groups.values() if key in members]
        if all(_count(members.keys() - held_out - {key}, members) >= FEWEST_ROWS for members in affected):
            held_out.add(key)


def _check(held_out: set[str], groups: Groups, name: str) -> None:
    kept = _count(held_out, groups)
    trained = _count(groups.keys() - held_out, groups)
    if min(kept, trained) < FEWEST_ROWS:
        raise UserError(
            f"data.{name}: {kept + trained} rows in {len(groups)} groups (rows of a pair stay together) cannot be "
            f"split into at least {FEWEST_ROWS} training and {FEWEST_ROWS} held-out rows; add rows, or change "
            "data.held_out"
        )


def _side(rows: list[Prompt], name: str, held_out: set[str], is_held_out: bool) -> list[Prompt]:
    return [row for row in rows if (_key(row, name) in held_out) == is_held_out]
