"""Token rows as tensors, padded or packed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcr_ds.models.batches import num_shared_tokens, pad_left, pad_right, token_batch

ROWS = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=8)


@given(ROWS, st.integers(-5, 5))
def test_padding_is_on_the_right_and_masked(rows, pad_id):
    ids, mask = pad_right(rows, pad_id, torch.device("cpu"))
    assert ids.shape == mask.shape == (len(rows), max(map(len, rows)))
    assert ids.dtype == torch.int64
    for row, row_ids, row_mask in zip(rows, ids, mask, strict=True):
        assert row_ids.tolist() == row + [pad_id] * (len(row_ids) - len(row))
        assert row_mask.tolist() == [1] * len(row) + [0] * (len(row_ids) - len(row))


@given(ROWS, st.integers(-5, 5))
def test_padding_on_the_left_ends_with_the_rows(rows, pad_id):
    ids, mask = pad_left(rows, pad_id, torch.device("cpu"))
    for row, row_ids, row_mask in zip(rows, ids.tolist(), mask.tolist(), strict=True):
        assert row_ids == [pad_id] * (max(map(len, rows)) - len(row)) + row
        assert row_mask == [0] * (len(row_ids) - len(row)) + [1] * len(row)


@given(ROWS, st.booleans())
def test_tokens_of_a_batch_are_the_rows(rows, packed):
    batch = token_batch(rows, packed, torch.device("cpu"))
    ids = batch.tokens_of(batch.inputs["input_ids"][..., None])[:, 0]
    assert batch.bounds.dtype == torch.int32
    assert [ids[start:end].tolist() for start, end in zip(batch.bounds, batch.bounds[1:], strict=False)] == rows
    assert batch.inputs["input_ids"].shape == ((1, sum(map(len, rows))) if packed else (len(rows), max(map(len, rows))))
    if packed:
        assert batch.inputs["position_ids"].tolist() == [[place for row in rows for place in range(len(row))]]


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 9, 9]], 2),
        ([[7, 1], [8, 1]], 0),
        ([[1, 2, 3], [1, 2, 3]], 2),  # at least one token of a prompt is not shared
        ([[1, 2], [1, 2, 3]], 1),
        ([[4]], 0),
        ([[1, 2, 9], [1, 3], [1, 2, 4]], 1),
    ],
)
def test_shared_tokens_are_counted(rows, shared):
    assert num_shared_tokens(rows) == num_shared_tokens(rows[::-1]) == shared
