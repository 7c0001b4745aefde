"""Traffic computed by hand for small tensors."""

from dcr_ds.plan.choose import zero_of
from dcr_ds.plan.states import Tensor, flat_shard, gathered_elements, owned_elements, sharded
from dcr_ds.plan.traffic import Passes, traffic

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
