"""The losses and similarity_stats over gloo ranks against the same batch in one process.

Three ranks are started once. They run every case with all three, and with the first and last as a group of two. The
tests read what they saved.
"""

import math
import time
from datetime import timedelta
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from dcr_kernels import similarity_stats
from kernel_testing import (
    BACKENDS,
    LOSSES,
    TRITON_DEVICE,
    call,
    case_id,
    draw_positives,
    every_loss,
    pairwise,
    relative_error,
)

pytestmark = pytest.mark.xdist_group("ranks")  # whose results are computed once

SHARES = {2: [20, 9], 3: [13, 1, 15]}  # rows of each rank of a group
NUM_ROWS, INPUT_WIDTH, WIDTH = 29, 16, 24
DEADLINE_SECONDS = 120
HAS_TRITON = find_spec("triton") is not None and TRITON_DEVICE == "cpu"  # gloo ranks have no GPUs

CASES = pairwise(
    name=list(LOSSES),
    backend=BACKENDS if HAS_TRITON else [backend for backend in BACKENDS if backend != "triton"],
    reduction=["valid", "nonzero"],
    dtype=[torch.float32, torch.bfloat16],
    last_rank=["alive", "dead"],
)
# A loss with logits near 0, which a superfluous row would change.
OPTIONS = {"circle-anchor": {"scale": 4.0}, "circle-global": {"scale": 4.0}}


def make_case(case) -> list[torch.Tensor]:
    """Return the inputs [N, INPUT_WIDTH], labels [N] and positives [N] of the whole batch.

    Label 2 is only on rank 0; all rows of label 3 except one are on the last rank.
    """
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(NUM_ROWS, INPUT_WIDTH, generator=generator) + 0.5
    labels = torch.randint(2, (NUM_ROWS,), generator=generator)
    labels[:4] = 2
    labels[[4, 27, 28]] = 3
    labels[7] = labels[16] = -1
    if case["last_rank"] == "dead":
        labels[20:] = -1  # all rows of the last rank of two, most of those of the last rank of three
    return [x, labels, draw_positives(labels)]


def step(x, labels, positives, case, group=None) -> dict:
    """Run a linear layer and the loss on a share of the rows; return the loss, the gradients, the cosines."""
    torch.manual_seed(2)
    model = torch.nn.Linear(INPUT_WIDTH, WIDTH)
    h = model(x).to(case["dtype"])
    options = OPTIONS.get(case["name"], {}) | {"backend": case["backend"], "group": group}
    if LOSSES[case["name"]].has_reduction:
        options["reduction"] = case["reduction"]
    loss = call(case["name"], h, labels, positives, **options)
    loss.backward()
    with torch.no_grad():
        assert torch.equal(call(case["name"], h, labels, positives, **options), loss.detach())
    if group is not None:
        for parameter in model.parameters():  # what a data-parallel engine does
            dist.all_reduce(parameter.grad, group=group)
            parameter.grad /= dist.get_world_size(group)
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return {"loss": loss.detach(), "gradient": gradient, "cosines": similarity_stats(h, labels, group)}


def message_of(name: str, h, labels, positives, **options) -> str:
    try:
        call(name, h, labels, positives, group=dist.group.WORLD, **options)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def messages(name: str, odd: bool) -> dict[str, str]:
    """The errors of the ranks if one of them, `odd`, passes different arguments."""
    h, labels = torch.randn(4, 8), torch.tensor([0, 0, 1, 1])
    positives = torch.tensor([1, 0, 3, 2])  # as rank 0, which has the same labels
    good, wrong_label = (h, labels, positives), (h, labels, torch.tensor([1, 0, 0, -1]))
    return {
        "width": message_of(name, h[:, :6] if odd else h, labels, positives),
        "dtype": message_of(name, h.double() if odd else h, labels, positives),
        "labels": message_of(name, h, labels[:3] if odd else labels, positives),
        "empty": message_of(name, *(value[:0] if odd else value for value in good)),
        "not a tensor": message_of(name, h.tolist() if odd else h, labels, positives),
        "values": message_of(name, h * math.nan if odd else h, labels, positives, check_values=True),
        "positives": message_of(name, *(wrong_label if odd and name == "infonce" else good)),
        "length": message_of(name, h, labels, positives[:3] if odd else positives),
        "after the errors": message_of(name, *good),
    }


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=3, timeout=timedelta(seconds=60))
    ends = dist.new_group([0, 2])
    results = {}
    for case in CASES:
        three = [batch.split(SHARES[3])[rank] for batch in make_case(case)]
        results[3, case_id(case)] = step(*three, case, dist.group.WORLD)
        if rank != 1:
            two = [batch.split(SHARES[2])[rank // 2] for batch in make_case(case)]
            results[2, case_id(case)] = step(*two, case, ends)

    for name in LOSSES:
        results["messages", name] = messages(name, odd=rank == 2)
        # One label per rank makes three labels in total; a second call with a single label has no anchors.
        module = LOSSES[name].module(**LOSSES[name].options, group=dist.group.WORLD)
        h, neighbours = torch.randn(3, 8), (rank * 3 + torch.tensor([1, 2, 0]),) * LOSSES[name].takes_positives
        results["degenerate", name] = []
        for label in (rank, 0):
            module(h, torch.full((3,), label), *neighbours)
            results["degenerate", name].append(module.degenerate_batches.item())
    if rank == 1:
        with pytest.raises(ValueError, match="not a member of the group"):
            call("supcon", h, torch.zeros(3).long(), group=ends)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Start the ranks, wait for all of them, and return what each saved; a hang is a failure."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.spawn(worker, (str(folder),), nprocs=3, join=False)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not context.join(timeout=max(0.1, deadline - time.monotonic())):
        if time.monotonic() >= deadline:
            for process in context.processes:
                process.kill()
            pytest.fail(f"the ranks did not finish in {DEADLINE_SECONDS} seconds")
    return [torch.load(folder / f"{rank}.pt") for rank in range(3)]


@pytest.mark.parametrize("num_ranks", SHARES)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_ranks_agree_with_one_process(results, case, num_ranks):
    expected = step(*make_case(case), case)
    assert expected["loss"] > 0.3 and expected["gradient"].any()
    first = results[0][num_ranks, case_id(case)]
    for rank in (0, 2) if num_ranks == 2 else (0, 1, 2):
        result = results[rank][num_ranks, case_id(case)]
        assert torch.equal(result["loss"], first["loss"])
        assert relative_error(result["loss"], expected["loss"]) <= 1e-6
        # In half precision the gradient at h is rounded, and R times the gradient rounds differently for R = 3.
        tolerance = 1e-5 if case["dtype"] == torch.float32 else 4e-3
        assert relative_error(result["gradient"], expected["gradient"]) <= tolerance
        for cosine, same, exact in zip(result["cosines"], first["cosines"], expected["cosines"], strict=True):
            assert torch.equal(cosine, same)
            # Matrix products with fewer rows may round differently.
            assert abs(cosine - exact) <= (1e-6 if case["dtype"] == torch.float32 else 1e-3)


MESSAGES = {  # on all ranks; the odd one may say more
    "width": ("ValueError: h must have one width D on all ranks, got [8, ", None),
    "dtype": ("ValueError: h must have one dtype on all ranks, got torch.float32, ", None),
    "labels": ("ValueError: ranks [2] of the group passed", "ValueError: labels must have shape [4]"),
    "empty": ("ValueError: ranks [2] of the group passed", "ValueError: h must have at least one row"),
    "not a tensor": ("ValueError: ranks [2] of the group passed", "TypeError: h must be a torch.Tensor"),
    "values": ("ValueError: ranks [2] of the group passed", "ValueError: h is not finite in row 0"),
    "after the errors": ("no error", None),
}
POSITIVES_MESSAGES = {
    "positives": ("ValueError: positives must name another row of the same label, or -1; row ", None),
    "length": ("ValueError: ranks [2] of the group passed", "ValueError: positives must have shape [4]"),
}


@every_loss
def test_an_error_on_one_rank_is_an_error_on_all(results, name):
    for key, (everywhere, odd_rank) in (MESSAGES | (POSITIVES_MESSAGES if name == "infonce" else {})).items():
        for rank, result in enumerate(results):
            expected = odd_rank if odd_rank and rank == 2 else everywhere
            assert result["messages", name][key].startswith(expected)


@every_loss
def test_degenerate_refers_to_the_batch_of_all_ranks(results, name):
    assert all(result["degenerate", name] == [0, 1] for result in results)
