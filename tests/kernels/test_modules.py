"""The losses as modules: the same results as the functions, and a count of batches without anchors."""

import pytest
import torch
from dcr_kernels import CircleLoss, ContrastiveLoss, InfoNCELoss, TripletLoss
from kernel_testing import LOSSES, call, device_of, draw_positives, every_backend, every_loss, fast_backends, make_batch

OPTIONS = {
    "circle-anchor": dict(margin=0.3, scale=8.0, form="anchor", reduction="nonzero"),
    "circle-global": dict(margin=0.3, scale=8.0, form="global"),
    "supcon": dict(temperature=0.3, reduction="nonzero"),
    "infonce": dict(temperature=0.3, reduction="nonzero"),
    "ntxent": dict(temperature=0.3),
    "triplet": dict(margin=0.4, reduction="nonzero"),
}


@every_backend
@every_loss
def test_a_module_equals_its_function(name, backend):
    h, labels = (value.to(device_of(backend)) for value in make_batch(12, 8, 3))
    positives = (draw_positives(labels.cpu()).to(h.device),) if LOSSES[name].takes_positives else ()
    module = LOSSES[name].module(**OPTIONS[name], backend=backend)
    expected = LOSSES[name].function(h, labels, *positives, **OPTIONS[name], backend=backend)
    assert isinstance(module, torch.nn.Module)
    assert torch.equal(module(h, labels, *positives), expected)
    assert expected != call(name, h, labels, backend=backend)  # the options matter


def test_options_may_be_positional_and_are_shown():
    assert repr(CircleLoss(0.3, 8.0, "global").loss) == repr(CircleLoss(margin=0.3, scale=8.0, form="global").loss)
    assert "margin=0.3, scale=8.0, form='global'" in repr(CircleLoss(0.3, 8.0, "global"))
    assert CircleLoss.__name__ == "CircleLoss" and isinstance(TripletLoss(), ContrastiveLoss)


def test_infonce_needs_positives():
    with pytest.raises(TypeError, match="is given positives"):
        InfoNCELoss()(*make_batch(4, 8, 2))


@every_backend
@every_loss
def test_batches_without_an_anchor_are_counted_only_in_training(name, backend):
    module = LOSSES[name].module(backend=backend, **LOSSES[name].options)
    device = device_of(backend)

    def run(labels):
        labels = torch.tensor(labels)
        positives = (draw_positives(labels).to(device),) if LOSSES[name].takes_positives else ()
        return module(torch.randn(len(labels), 8).to(device), labels.to(device), *positives)

    for labels, count in (
        ([0, 0, 1, 1], 0),
        ([0, 0, 0, 0], 1),
        ([0, 1, 2, 3], 2),
        ([-1, -1, -1, -1], 3),
        ([0, 0, -1, 1], 3),
        ([0, -1, -1, 1], 4),
    ):
        loss = run(labels)
        assert module.degenerate_batches == count
        assert count == 0 or loss == 0 or labels == [0, 0, -1, 1]
    module.eval()
    run([0, 0, 0, 0])
    assert module.degenerate_batches == 4
    module.train()
    with torch.no_grad():
        run([0, 0, 0, 0])
    assert module.degenerate_batches == 5


@fast_backends
def test_a_solved_batch_is_not_degenerate(backend):
    device = device_of(backend)
    module = TripletLoss(margin=0.1, backend=backend)
    h = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]], device=device)
    assert module(h, torch.tensor([0, 0, 1, 1], device=device)) == 0
    assert module.degenerate_batches == 0


@every_loss
def test_the_count_is_not_in_checkpoints(name):
    module = LOSSES[name].module()
    assert not module.state_dict() and not list(module.parameters())
    torch.nn.Sequential(module).load_state_dict({})
