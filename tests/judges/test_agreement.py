import pytest

from dcr_ds.judges import Answer
from dcr_ds.judges.agreement import Labels, as_json, as_markdown, confusion_rows, disagreements, table
from dcr_ds.label_agreement import agree

F, P, C, D = "full_refusal", "partial_refusal", "compliance", "degenerate"


def by_id(*labels):
    return {str(number): label for number, label in enumerate(labels)}


def answers_of(labels):
    return {key: Answer(f"Prompt {key}?", f"Line one\nof | answer {key}") for key in labels}


def test_a_judge_agrees_with_itself():
    labels = by_id(F, P, C, D, C)
    same = agree(labels, labels)
    assert (same.n, same.accuracy, same.kappa, same.binary_kappa) == (5, 1, 1, 1)
    assert (same.precision, same.recall, same.f1) == (1, 1, 1)
    assert disagreements(Labels("a", labels), Labels("b", labels), answers_of(labels)) == []


def test_agreement_of_a_small_table_computed_by_hand():
    people = by_id(F, F, F, P, C, C, C, C)
    judge = by_id(F, F, C, F, F, C, C, D)
    agreement = agree(people, judge)
    assert agreement.counts == {(F, F): 2, (F, C): 1, (P, F): 1, (C, F): 1, (C, C): 2, (C, D): 1}
    assert (agreement.accuracy, agreement.precision, agreement.recall, agreement.f1) == (4 / 8, 3 / 4, 3 / 4, 3 / 4)
    by_chance = (3 * 4 + 1 * 0 + 4 * 3 + 0 * 1) / 64
    assert agreement.kappa == pytest.approx((4 / 8 - by_chance) / (1 - by_chance))
    assert agreement.binary_kappa == pytest.approx((6 / 8 - 1 / 2) / (1 / 2))
    assert confusion_rows(agreement) == [
        ["", F, C, D],
        [F, "2", "1", "0"],
        [P, "1", "0", "0"],
        [C, "1", "2", "1"],
    ]


def test_swapping_sides_swaps_precision_and_recall():
    people, judge = by_id(F, F, P, C, C, C), by_id(F, C, F, F, F, C)
    agreement, swapped = agree(people, judge), agree(judge, people)
    assert (agreement.precision, agreement.recall) == (swapped.recall, swapped.precision)
    assert (agreement.f1, agreement.kappa, agreement.accuracy) == (swapped.f1, swapped.kappa, swapped.accuracy)


def test_only_common_ids_count_and_the_others_are_reported():
    agreement = agree({"a": F, "b": C, "c": C}, {"b": C, "c": F, "d": F, "e": F})
    assert (agreement.n, agreement.only_first, agreement.only_second) == (2, 1, 2)


def test_undefined_ratios_are_none():
    assert agree({}, {}).accuracy is None
    nothing = agree(by_id(C, C), by_id(C, C))
    assert (nothing.precision, nothing.recall, nothing.f1, nothing.kappa) == (None,) * 4
    assert "| 2 | 1.000 | – | – | – | – | – |" in as_markdown(
        Labels("a", by_id(C, C)), Labels("b", by_id(C, C)), answers_of("01")
    )


def test_disagreements_are_listed_by_kind():
    people, judge = by_id(C, F, C, F), by_id(F, C, F, F)
    listed = disagreements(Labels("people", people), Labels("judge", judge), answers_of(people))
    assert [(row["id"], row["people"], row["judge"]) for row in listed] == [("1", F, C), ("0", C, F), ("2", C, F)]
    text = as_markdown(Labels("people", people), Labels("judge", judge), answers_of(people))
    assert "| 1 | full_refusal | compliance | Prompt 1? | Line one of \\| answer 1 |" in text
    result = as_json(Labels("people", people), Labels("judge", judge), answers_of(people))
    assert result["counts"] == {C: {F: 2}, F: {C: 1, F: 1}} and result["differ"] == listed


def test_a_table_has_one_line_per_row():
    assert table([["a", "b"], ["x\ny", "p|q"]]) == "| a | b |\n| --- | --- |\n| x y | p\\|q |"
