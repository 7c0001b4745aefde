"""Traffic computed by hand for small tensors."""

from dataclasses import replace

import pytest

from dcr_ds.plan.choose import zero_of
from dcr_ds.plan.clock import Rates, step_time
from dcr_ds.plan.states import Tensor, flat_shard, gathered_elements, owned_elements, sharded
from dcr_ds.plan.traffic import Collective, Passes, traffic

TENSORS = [Tensor(1_000_000, True, 2), Tensor(3_000_000, False, 2, in_block=True)]


def sent(stage: int, ranks: int, recomputed: bool = False, reuse: bool = False, **options) -> dict[str, int]:
    zero = zero_of(stage) if reuse else zero_of(stage).without_reuse()
    collectives = traffic(TENSORS, zero, ranks, Passes(1, 2, recomputed), **options)
    return {collective.name: collective.bytes for collective in collectives}


def test_zero_3_gathers_everything_in_every_pass():
    by_name = sent(3, 4, embeddings=400)
    assert by_name["all-gather, forward"] == 8_000_000 * 3 * 3 // 4
    assert by_name["all-gather, backward"] == 8_000_000 * 2 * 3 // 4
    assert by_name["reduce-scatter"] == 2_000_000 * 2 * 3 // 4
    assert by_name["contrastive all-gather"] == 300
    assert sent(3, 4, tail_has_no_backward=True)["all-gather, backward"] == 2_000_000 * 2 * 3 // 4


def test_zero_3_keeps_parameters_that_are_used_again_soon():
    """Half of DeepSpeed's reuse distance; frozen weights of a block are released when the block is recomputed."""
    assert zero_of(3).kept > 4_000_000
    assert sent(3, 4, reuse=True)["all-gather, backward"] == 0
    assert sent(3, 4, reuse=True)["all-gather, forward"] == sent(3, 4)["all-gather, forward"]
    assert sent(3, 4, reuse=True, recomputed=True)["all-gather, backward"] == 6_000_000 * 2 * 3 // 4


def test_zero_2_reduces_in_every_backward_pass_and_zero_1_once():
    assert sent(2, 4)["all-reduce of gradients"] == 2 * sent(1, 4)["all-reduce of gradients"] == 2 * 3_000_000
    assert sent(2, 4)["all-gather of parameters"] == 1_500_000
    assert "all-gather of parameters" not in sent(0, 4)
    assert sent(1, 1) == {}


def test_shards_cover_everything_once():
    for ranks in (1, 2, 3, 8):
        assert 0 <= flat_shard(1001, ranks) * ranks - 1001 < 2 * ranks
        assert 0 <= sharded(1001, ranks) * ranks - 1001 < ranks
        assert sum(owned_elements([400, 500, 101], ranks)) >= 1001
    assert owned_elements([400, 500, 101], 1) == [1001]
    assert owned_elements([500, 500], 2) == [500, 500]


def test_gathered_elements_are_at_most_all():
    zero = zero_of(3)
    assert gathered_elements([10, 20], zero) == 30
    assert gathered_elements([10**9] * 8, zero) < 8 * 10**9


def test_hpz_gathers_once_from_all_ranks_and_then_within_the_node():
    """Of three passes, the first gathers what was trained from all 8 ranks; frozen parameters stay in the node."""
    plain, hpz = (replace(zero_of(3).without_reuse(), partition=size) for size in (1, 4))
    gathers = [gather for gather in traffic(TENSORS, hpz, 8, Passes(1, 2)) if gather.name.startswith("all-gather")]
    assert [gather.ranks for gather in gathers] == [0, 4, 4]
    assert gathers[0].bytes == 2_000_000 * 7 // 8
    assert gathers[1].bytes == (2 * 2_000_000 + 3 * 6_000_000) * 3 // 4
    assert gathers[2].bytes == 2 * 8_000_000 * 3 // 4
    calls = sum(gather.calls for gather in traffic(TENSORS, plain, 8, Passes(1, 2)) if "gather" in gather.name)
    assert sum(gather.calls for gather in gathers) == calls


def test_quantised_messages_send_8_bits_of_weights_and_4_of_gradients():
    zero = replace(zero_of(3).without_reuse(), partition=4, quantised_weights=True, quantised_gradients=True)
    first, *_, within, between = traffic(TENSORS, zero, 8, Passes(1, 2))
    assert first.bytes == 1_000_000 * 7 // 8
    assert (within.bytes, within.ranks) == (2 * 500_000 * 3 // 4, 4)
    assert (between.bytes, between.ranks, between.across) == (2 * 500_000 // 4 // 2, 2, True)
    *_, on_one_node = traffic(TENSORS, zero, 4, Passes(1, 2))
    assert on_one_node.bytes == 2 * 2_000_000 * 3 // 4


def test_traffic_takes_the_links_that_its_ranks_have():
    """All ranks of a node send at once over its links to other nodes, one rank of each node over its own alone."""

    def seconds(world: int, per_node: int, **who) -> float:
        rates = Rates(flops=1e12, node_link=100e9, network=10e9, mfu=1, share=1, latency=0)
        return step_time(0, [Collective("a", 10**11, 1, **who)], world, per_node, rates).traffic

    assert seconds(8, 8) == seconds(64, 8, ranks=8) == pytest.approx(1)
    assert seconds(64, 8) == pytest.approx(10**11 / 80e9)
    assert seconds(64, 1) == seconds(64, 8, ranks=8, across=True) == pytest.approx(10)
    assert seconds(64, 16) == pytest.approx(1)  # the links between nodes together are faster than those within
