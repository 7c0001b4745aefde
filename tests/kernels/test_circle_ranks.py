"""circle_loss and similarity_stats over gloo ranks against the same batch in one process.

Each group of ranks is started once; its workers run every case, and the tests read what they saved.
"""

import math
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from dcr_kernels import circle_loss, similarity_stats
from kernel_testing import pairwise, relative_error

SHARES = {2: [20, 9], 3: [13, 1, 15]}
NUM_ROWS, INPUT_WIDTH, WIDTH = 29, 16, 24
DEADLINE_SECONDS = 60

CASES = pairwise(
    form=["anchor", "global"],
    reduction=["valid", "nonzero"],
    backend=["reference", "chunked"],
    dtype=[torch.float32, torch.bfloat16],
    last_rank=["alive", "dead"],
)


def make_case(case) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the inputs [N, INPUT_WIDTH] and labels [N] of the whole batch: label 2 lives on rank 0 only."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(NUM_ROWS, INPUT_WIDTH, generator=generator) + 0.5
    labels = torch.randint(2, (NUM_ROWS,), generator=generator)
    labels[:4] = 2
    labels[7] = labels[16] = -1
    if case["last_rank"] == "dead":
        labels[20:] = -1  # all rows of the last rank of two, most of those of the last rank of three
    return x, labels


def step(x, labels, case, group=None) -> dict:
    """Run a linear layer and the loss on a share of the rows; return the loss, the gradients, the cosines."""
    torch.manual_seed(2)
    model = torch.nn.Linear(INPUT_WIDTH, WIDTH)
    h = model(x).to(case["dtype"])
    options = {key: case[key] for key in ("form", "reduction", "backend")}
    loss = circle_loss(h, labels, scale=16.0, group=group, **options)
    loss.backward()
    with torch.no_grad():
        assert torch.equal(circle_loss(h, labels, scale=16.0, group=group, **options), loss.detach())
    if group is not None:
        for parameter in model.parameters():  # what a data-parallel engine does
            dist.all_reduce(parameter.grad, group=group)
            parameter.grad /= dist.get_world_size(group)
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return {"loss": loss.detach(), "gradient": gradient, "cosines": similarity_stats(h, labels, group)}


def message_of(h, labels, **options) -> str:
    try:
        circle_loss(h, labels, group=dist.group.WORLD, **options)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def worker(rank: int, num_ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=num_ranks, timeout=timedelta(seconds=30)
    )
    results = {}
    for index, case in enumerate(CASES):
        x, labels = (whole.split(SHARES[num_ranks])[rank] for whole in make_case(case))
        results[index] = step(x, labels, case, dist.group.WORLD)

    h, labels = torch.randn(4, 8), torch.tensor([0, 0, 1, 1])
    odd = rank == num_ranks - 1
    results["width"] = message_of(h[:, :6] if odd else h, labels)
    results["dtype"] = message_of(h.double() if odd else h, labels)
    results["empty"] = message_of(h[:0] if odd else h, labels[:0] if odd else labels)
    results["labels"] = message_of(h, labels.int() if odd else labels)
    results["not a tensor"] = message_of(h.tolist() if odd else h, labels)
    results["finite"] = message_of(h * math.nan if odd else h, labels, check_finite=True)
    results["after the errors"] = message_of(h, labels)

    if num_ranks == 3:
        ends = dist.new_group([0, 2])
        case = CASES[0] | {"backend": "chunked"}
        x, labels = (whole.split(SHARES[3])[rank] for whole in make_case(CASES[0]))
        try:
            results["subgroup"] = step(x, labels, case, ends)
        except ValueError as error:
            results["subgroup"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=SHARES, ids="{}-ranks".format)
def results(request, tmp_path_factory):
    """Start the ranks, wait for all of them, and return what each saved; a hang is a failure."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.spawn(worker, (request.param, str(folder)), nprocs=request.param, join=False)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not context.join(timeout=max(0.1, deadline - time.monotonic())):
        if time.monotonic() >= deadline:
            for process in context.processes:
                process.kill()
            pytest.fail(f"the ranks did not finish in {DEADLINE_SECONDS} seconds")
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("index", range(len(CASES)), ids=["-".join(map(str, c.values())) for c in CASES])
def test_ranks_agree_with_one_process(results, index):
    case = CASES[index]
    expected = step(*make_case(case), case)
    assert expected["loss"] > 1
    for result in results:
        assert torch.equal(result[index]["loss"], results[0][index]["loss"])
        assert relative_error(result[index]["loss"], expected["loss"]) <= 1e-6
        # Half precision: the gradient at each h is rounded; R times it rounds elsewhere for R = 3.
        tolerance = 1e-5 if case["dtype"] == torch.float32 else 4e-3
        assert relative_error(result[index]["gradient"], expected["gradient"]) <= tolerance
        for cosine, first, whole in zip(
            result[index]["cosines"], results[0][index]["cosines"], expected["cosines"], strict=True
        ):
            assert torch.equal(cosine, first)
            # A matrix product of fewer rows may round otherwise.
            assert abs(cosine - whole) <= (1e-6 if case["dtype"] == torch.float32 else 1e-3)


@pytest.mark.parametrize(
    "key, everywhere, odd_rank",
    [
        ("width", "ValueError: h must have one width D on all ranks, got [8, ", None),
        ("dtype", "ValueError: h must have one dtype on all ranks, got torch.float32, ", None),
        ("empty", "ValueError: ranks [{}] of the group passed", "ValueError: h must have at least one row"),
        ("labels", "ValueError: ranks [{}] of the group passed", "TypeError: labels must be int64"),
        ("not a tensor", "ValueError: ranks [{}] of the group passed", "TypeError: h must be a torch.Tensor"),
        ("finite", "ValueError: ranks [{}] of the group passed", "ValueError: h is not finite in row 0"),
        ("after the errors", "no error", None),
    ],
)
def test_a_fault_of_one_rank_is_an_error_on_all(results, key, everywhere, odd_rank):
    last = len(results) - 1
    for rank, result in enumerate(results):
        expected = odd_rank if odd_rank and rank == last else everywhere.format(last)
        assert result[key].startswith(expected)


def test_a_group_may_be_a_part_of_the_ranks(results):
    if len(results) != 3:
        pytest.skip("needs three ranks")
    case = CASES[0] | {"backend": "chunked"}
    pieces = [whole.split(SHARES[3]) for whole in make_case(CASES[0])]
    expected = step(*(torch.cat([piece[0], piece[2]]) for piece in pieces), case)
    tolerance = 1e-5 if case["dtype"] == torch.float32 else 4e-3
    for rank in (0, 2):
        assert relative_error(results[rank]["subgroup"]["gradient"], expected["gradient"]) <= tolerance
    assert "not a member" in results[1]["subgroup"]
