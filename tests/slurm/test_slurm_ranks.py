"""One rank per GPU, in order of nodes, however a job is submitted: with options of sbatch, from inside another job.

The nodes have four fake GPUs, and in place of Python a script records what a rank sees. There is no preflight, since
torch sees no GPU.
"""

import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)
RECORD = """
echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $SLURMD_NODENAME ${CUDA_VISIBLE_DEVICES:-none}" \
    >>"$DCR_DS_ATTEMPT/ranks"
"""


@dataclass(frozen=True)
class Rank:
    rank: int
    local_rank: int
    world_size: int
    ranks_per_node: int
    node: str
    gpus: str


@pytest.fixture
def recorded(cluster, in_place_of_python):
    """Submit dcr.sh with options and wait for its end; return its ranks, sorted."""
    settings = {"DCR_DS_PYTHON": in_place_of_python(RECORD), "DCR_DS_PREFLIGHT_SECONDS": "0"}

    def submit(*options: str, state: str = "COMPLETED", **environment: str) -> tuple[str, list[Rank]]:
        job = cluster.submit(*options, "--time=10", "slurm/dcr.sh", **settings, **environment)
        cluster.end(job, state, 60)
        return job, ranks_of(cluster.attempt(job))

    submit.settings = settings
    return submit


def ranks_of(attempt: Path) -> list[Rank]:
    lines = (attempt / "ranks").read_text().splitlines() if (attempt / "ranks").exists() else []
    found = []
    for rank, local_rank, world_size, ranks_per_node, node, gpus in map(str.split, lines):
        found.append(Rank(int(rank), int(local_rank), int(world_size), int(ranks_per_node), node, gpus))
    return sorted(found, key=lambda rank: rank.rank)


def check(ranks: list[Rank], nodes: int, per_node: int) -> None:
    """All ranks are there, and those of a node follow each other."""
    assert [rank.rank for rank in ranks] == list(range(nodes * per_node))
    assert {(rank.world_size, rank.ranks_per_node) for rank in ranks} == {(nodes * per_node, per_node)}
    assert [rank.local_rank for rank in ranks] == nodes * list(range(per_node))
    assert [rank.node for rank in ranks] == [f"node{1 + rank.rank // per_node}" for rank in ranks]


@pytest.mark.parametrize(
    ("options", "nodes", "per_node"),
    [
        ("--gpus-per-node=4", 1, 4),
        ("--gpus-per-node=h100:2", 1, 2),
        ("--gres=gpu:4 --nodes=2", 2, 4),
        ("--gpus=8 --nodes=2", 2, 4),
        ("--gpus-per-node=4 --hint=nomultithread", 1, 4),
        ("--gpus-per-node=4 --hint=nomultithread --exclusive", 1, 4),
        ("--gpus-per-node=4 --threads-per-core=1", 1, 4),
        ("--gpus-per-node=4 --nodes=2 --ntasks=2", 2, 4),
        ("--gpus-per-node=4 --ntasks-per-node=1 --cpus-per-task=8", 1, 4),
        ("--gpus-per-socket=2 --sockets-per-node=2 --ntasks=2 --exclusive", 1, 4),
        ("--gpus-per-task=1 --ntasks-per-node=4", 1, 4),
        ("--gpus-per-task=2 --ntasks=2", 1, 4),
        ("--gpus-per-node=4 --cpus-per-gpu=2 --mem-per-gpu=200", 1, 4),
        ("--gpus-per-node=4 --nodes=2 --distribution=cyclic --ntasks-per-node=4", 2, 4),
        ("--ntasks-per-node=2 --nodes=2", 2, 2),
        ("--ntasks=6 --nodes=2", 2, 3),
        ("--ntasks=6 --nodes=2 --gpus-per-node=4", 2, 4),
        ("--nodes=3", 3, 1),
    ],
)
def test_every_gpu_has_its_rank(recorded, options, nodes, per_node):
    check(recorded(*options.split())[1], nodes, per_node)


def test_a_number_of_tasks_other_than_that_of_gpus_is_mentioned(recorded, cluster):
    job, ranks = recorded("--nodes=1", "--ntasks=2", "--gpus-per-node=4")
    check(ranks, 1, 4)
    assert "one rank per GPU, so 4 per node" in cluster.log(job)
    assert "one rank per GPU, so" not in cluster.log(recorded("--gpus-per-node=4")[0])


@pytest.mark.parametrize(("bind", "gpus"), [("", ["0,1,2,3"] * 4), ("--gpu-bind=single:1", list("0123"))])
def test_ranks_see_all_gpus_of_their_node_or_their_own(recorded, bind, gpus):
    _, ranks = recorded("--gpus-per-node=4", *bind.split())
    assert [rank.gpus for rank in ranks] == gpus


def test_a_job_that_is_submitted_from_a_step_of_another_job_inherits_none_of_its_options(cluster, recorded, tmp_path):
    inner = tmp_path / "inner"
    command = f"srun sbatch --parsable --nodes=2 --gpus-per-node=4 --mem-per-gpu=100 --time=10 slurm/dcr.sh >{inner}"
    outer = cluster.submit("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=2", "--hint=nomultithread", "--mem=300",
                           "--gpus-per-node=1", "--array=7", "--distribution=cyclic", "--gpu-bind=single:1",
                           f"--wrap={command}", **recorded.settings)  # fmt: skip
    cluster.end(outer, "COMPLETED", 60)
    job = inner.read_text().strip()
    described = cluster.end(job, "COMPLETED", 60)
    ranks = ranks_of(cluster.attempt(job))
    check(ranks, 2, 4)
    assert {rank.gpus for rank in ranks} == {"0,1,2,3"} and described["Restarts"] == "0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--nodes=2 --gpus=6", "the nodes have different numbers of GPUs (2 4)"),
        ("--nodes=1 --gpus-per-node=2 : --nodes=1", "a job of several components"),
        ("--nodes=2 --ntasks=3", "--ntasks=3 cannot be divided among 2 nodes"),
    ],
)
def test_unlike_nodes_are_refused(recorded, cluster, options, message):
    job, ranks = recorded(*options.split(), state="FAILED")
    assert message in cluster.log(job) and not ranks
    described = cluster.job(job)
    assert (described["ExitCode"], described["Restarts"], described["ExcNodeList"]) == ("2:0", "0", "(null)")


def test_variables_that_sbatch_did_not_export_reach_the_ranks(recorded):
    _, ranks = recorded("--nodes=2", "--export=PATH,DCR_DS_LOGS,DCR_DS_PYTHON,DCR_DS_PREFLIGHT_SECONDS")
    check(ranks, 2, 1)


def test_a_port_that_is_taken_is_not_used(recorded, in_place_of_python, tmp_path):
    job, _ = recorded()
    following = int(job) + 1
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 20000 + following % 10000))
        listener.listen()
        in_place_of_python(f'echo "$MASTER_PORT" >{tmp_path}/port')
        assert recorded()[0] == str(following)
    assert int((tmp_path / "port").read_text()) == 20000 + (following + 1) % 10000


def test_logs_of_an_older_job_with_the_same_id_are_put_aside(recorded, cluster):
    job, _ = recorded()
    older = cluster.attempt(str(int(job) + 1))
    older.mkdir(parents=True)
    (older / "preflight").write_text("bad\nbad node1\n")
    (older.parent / "faults").write_text("3\n")
    following, ranks = recorded()
    assert following == older.parent.name and ranks
    assert not (older / "preflight").exists() and not (older.parent / "faults").exists()
    assert [path for path in older.parent.parent.glob(f"{following}.before-*") if (path / "faults").exists()]
