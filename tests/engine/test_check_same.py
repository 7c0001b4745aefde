"""Ranks that read something else than rank 0, or cannot read it, end the run on all ranks with the same message."""

import platform

import pytest
import torch
from tiny_models import run_children

from dcr_ds.engine.agreement import check_same
from dcr_ds.engine.distributed import Ranks
from dcr_ds.errors import UserError

NODE = platform.node()
SAME = {"data set data.toxic": "a", "tokens of align": "b"}


def check_in_child(rank, world_size, described, out, rendezvous):
    """Write the message of the error to a file per rank; `described` has hashes, or the text of an error, per rank."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)

    def describe():
        if isinstance(described[rank], str):
            raise UserError(described[rank])
        return described[rank]

    message = ""
    try:
        check_same(describe, Ranks(rank, world_size, rank, torch.device("cpu")))
    except UserError as error:
        message = str(error)
    (out / str(rank)).write_text(message)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ([SAME, SAME], ""),
        ([SAME, SAME | {"tokens of align": "c"}], f"rank 1 on node {NODE} has another tokens of align than rank 0"),
        ([SAME, {"data set data.toxic": "a"}], f"rank 1 on node {NODE} has another tokens of align than rank 0"),
        ([{}, SAME], f"rank 1 on node {NODE} has another data set data.toxic than rank 0 on node {NODE}; give all"),
        ([SAME, "row 7: bad"], f"rank 1 on node {NODE}, unlike other ranks: row 7: bad"),
        (["row 7: bad", SAME], f"rank 0 on node {NODE}, unlike other ranks: row 7: bad"),
        (["row 7: bad", "row 7: bad"], "row 7: bad"),
    ],
)
def test_all_ranks_raise_the_same(tmp_path, described, message):
    assert run_children(check_in_child, 2, described, tmp_path, tmp_path / "rendezvous") == [0, 0]
    messages = [(tmp_path / str(rank)).read_text() for rank in range(2)]
    assert messages[0] == messages[1] and messages[0].startswith(message) and bool(messages[0]) is bool(message)


def test_a_single_rank_raises_its_own_error():
    def describe():
        raise UserError("row 7: bad")

    with pytest.raises(UserError, match="^row 7: bad$"):
        check_same(describe, Ranks(0, 1, 0, torch.device("cpu")))
