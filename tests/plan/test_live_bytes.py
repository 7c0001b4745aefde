"""A storage is counted once from allocation to release, whatever refers to it."""

import torch

from dcr_ds.plan.live_bytes import LiveBytes

MEGABYTE = 1_000_000


def test_a_storage_is_live_while_the_graph_refers_to_it():
    x = torch.ones(MEGABYTE // 4, requires_grad=True)
    with LiveBytes() as live:
        before = live.alive
        assert before >= MEGABYTE  # x existed before
        y = x.exp()
        z = y.sin()
        views = [y.view(-1), y[1:], y.detach()]
        assert live.alive - before == 2 * MEGABYTE
        del y, views
        assert live.alive - before == 2 * MEGABYTE  # sin and exp keep y for the backward pass
        loss = z.sum()
        del z
        assert live.alive - before == MEGABYTE + 4
        loss.backward()
        assert live.alive - before == MEGABYTE + 4  # y is freed, x.grad was allocated
        assert 2 * MEGABYTE < live.peak - before <= 3 * MEGABYTE + 8
        x.grad = None
        assert live.alive - before == 4
