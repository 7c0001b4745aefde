"""Candidate twins for harmful prompts: ask, check, and write the pairs and the file for their review."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dcr_ds.data.records import Prompt
from dcr_ds.datatools.pairs.ask import HARMFUL, ask_for_twins, find_harmful
from dcr_ds.datatools.pairs.checks import failed_checks
from dcr_ds.datatools.pairs.review import Pair, read_review, rows_of, write_review
from dcr_ds.errors import UserError
from dcr_ds.files import write_jsonl
from dcr_ds.models.endpoint import Endpoint


def replies_file(out: Path) -> Path:
    """The replies of the endpoint, from which an interrupted command resumes."""
    return out.with_name(f"{out.stem}.replies.jsonl")


def review_file(out: Path) -> Path:
    """The file that a person fills in."""
    return out.with_name(f"{out.stem}.review.csv")


def make_pairs(prompts: Sequence[Prompt], endpoint: Endpoint, guard: Endpoint | None, out: Path) -> list[Pair]:
    """Write the pairs whose candidates pass all checks to `out`, and all candidates to the review file.

    Raises:
        UserError: the endpoint or the guard fails (replies are kept), a review has begun, or `out` is another file.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    replies, review = replies_file(out), review_file(out)
    if out.exists() and not replies.exists():
        raise UserError(f"{out}: exists, and {replies}, which this command writes, does not; name another --out")
    before = _begun_review(review)
    candidates = ask_for_twins(prompts, endpoint, replies)
    texts = {key: candidate.text for key, candidate in candidates.items() if candidate.text}
    failed = failed_checks({prompt.id: prompt.prompt for prompt in prompts}, texts)
    for key in find_harmful(texts, guard, replies) if guard else ():
        failed[key].append(HARMFUL)
    pairs = []
    for prompt in prompts:
        candidate = candidates[prompt.id]
        reasons = (candidate.failed,) if candidate.failed else tuple(failed[prompt.id])
        pairs.append(Pair(prompt.id, prompt.prompt, candidate.text, reasons))
    _refuse_edited(review, before, pairs)
    write_jsonl(out, [row for pair in pairs if not pair.failed for row in rows_of(pair)])
    write_review(review, pairs)
    return pairs


def summary(pairs: Sequence[Pair]) -> str:
    """How many candidates pass, and how often each check fails."""
    passed = sum(not pair.failed for pair in pairs)
    counts = Counter(reason for pair in pairs for reason in pair.failed)
    listed = "".join(f", {count} {reason}" for reason, count in counts.most_common())
    return f"{len(pairs)} harmful prompts: {passed} candidates pass all checks{listed}"


def _begun_review(review: Path) -> list[Pair]:
    """The rows of an earlier review file that nobody has begun to fill in."""
    rows = read_review(review) if review.exists() else []
    if any(row.keep is not None for row in rows):
        raise UserError(
            f"{review}: a review that has begun, which would be overwritten; accept it with --accept {review}, move it "
            "away, or name another --out"
        )
    return rows


def _refuse_edited(review: Path, before: Sequence[Pair], pairs: Sequence[Pair]) -> None:
    """Raise if prompts or candidates of an earlier review file were edited."""
    written = {pair.pair: pair for pair in pairs}
    for row in before:
        for what, name in (("harmful prompt", "toxic"), ("candidate", "candidate")):
            if row.pair in written and getattr(row, name).split() != getattr(written[row.pair], name).split():
                raise UserError(
                    f"{review}, {row.place}: holds another {what} for {row.pair}, which would be overwritten; move the "
                    "file away, or name another --out"
                )
