"""The preflight names nodes that differ from the others. What is the same on all is the user's. It never hangs."""

import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import free_port
from tiny import one_thread_environment

from dcr_ds.engine.distributed import device_index
from dcr_ds.errors import UserError
from dcr_ds.run.node_checks import Place, check_gpu, check_this_rank, count_problem, create_probe
from dcr_ds.run.preflight import Verdict, judge, within

NODES = ["alpha", "beta", "gamma"]
PLACE = Place(rank=0, world_size=6, local_rank=0, ranks_per_node=2, gpus_per_node=0, nodes=NODES)
ONE_NODE = Place(rank=0, world_size=2, local_rank=0, ranks_per_node=2, gpus_per_node=2, nodes=["alpha"])
TWO_NODES = Place(rank=0, world_size=4, local_rank=0, ranks_per_node=2, gpus_per_node=0, nodes=NODES[:2])


def reports(
    place: Place = PLACE, problems: dict[int, dict[str, str]] | None = None, **of_ranks: dict[int, str]
) -> dict:
    """What the ranks report; without problems except for those given by rank: problems, versions, gpu, node."""
    problems, versions = problems or {}, of_ranks.get("versions", {})
    gpus, nodes = of_ranks.get("gpu", {}), of_ranks.get("node", {})
    return {
        rank: {
            "node": nodes.get(rank, place.node_of(rank)),
            "problems": problems.get(rank, {}),
            "versions": {"torch": versions.get(rank, "2")},
            "gpu": gpus.get(rank, ""),
        }
        for rank in range(place.world_size)
    }


def test_healthy_nodes_are_not_named():
    assert judge(PLACE, reports()) == Verdict("good")


def test_a_problem_of_one_node_is_that_nodes():
    assert judge(PLACE, reports(problems={3: {"GPU": "broken"}})) == Verdict("bad", {"beta": "broken"})


def test_a_cyclic_distribution_names_the_node_that_reported():
    cyclic = {rank: NODES[rank % 3] for rank in range(6)}
    answers = reports(problems={1: {"GPU": "broken"}}, node=cyclic)
    assert judge(PLACE, answers) == Verdict("bad", {"beta": "broken"})


def test_a_rank_without_a_report_names_its_node():
    answers = reports()
    del answers[5]
    assert list(judge(PLACE, answers).problems) == ["gamma"]
    assert "no answer" in judge(PLACE, answers).problems["gamma"]


@pytest.mark.parametrize("place", [ONE_NODE, TWO_NODES, PLACE])
def test_the_same_problem_on_all_nodes_is_the_users(place):
    """The texts differ, since sizes do."""
    full = {rank: {"temporary": f"/tmp has {rank} GiB free"} for rank in range(0, place.world_size, 2)}
    assert judge(place, reports(place, full)) == Verdict("user", {"all nodes": "/tmp has 0 GiB free"})


def test_different_problems_of_all_nodes_are_theirs():
    several = {0: {"temporary": "full"}, 2: {"GPU": "broken"}, 5: {"GPU": "broken"}}
    assert judge(PLACE, reports(problems=several)).kind == "bad"


def test_a_broken_gpu_is_the_nodes_even_if_it_is_the_only_node():
    assert judge(ONE_NODE, reports(ONE_NODE, {1: {"GPU": "broken"}})) == Verdict("bad", {"alpha": "broken"})


@pytest.mark.parametrize("place", [TWO_NODES, PLACE])
def test_a_run_folder_that_no_other_node_sees_is_the_users(place):
    unseen = {rank: {"run folder": "not shared"} for rank in range(2, place.world_size, 2)}
    assert judge(place, reports(place, unseen)) == Verdict("user", {"all other nodes": "not shared"})


def test_a_run_folder_that_one_of_several_nodes_does_not_see_is_that_nodes():
    assert judge(PLACE, reports(problems={4: {"run folder": "not mounted"}})) == Verdict(
        "bad", {"gamma": "not mounted"}
    )


def test_if_no_other_node_answers_it_is_the_network_between_them():
    answers = {rank: report for rank, report in reports().items() if rank < 2}
    assert judge(PLACE, answers).kind == "user"
    answers = {rank: report for rank, report in reports(TWO_NODES).items() if rank < 2}
    assert list(judge(TWO_NODES, answers).problems) == ["beta"] and judge(TWO_NODES, answers).kind == "bad"


def test_the_node_of_another_version_is_named_with_both():
    answers = reports(versions={2: "3", 3: "3"})
    assert judge(PLACE, answers) == Verdict("bad", {"beta": "torch 3, the others have 2"})


def test_unlike_versions_without_a_majority_are_the_users():
    verdict = judge(TWO_NODES, reports(TWO_NODES, versions={2: "3", 3: "3"}))
    assert verdict.kind == "user" and "alpha has torch 2, beta has torch 3" in verdict.problems["all nodes"]


def test_ranks_that_see_the_same_gpu_only_are_found():
    verdict = judge(PLACE, reports(gpu={0: "a", 1: "b", 2: "a", 3: "a", 4: "a", 5: "b"}))
    assert verdict == Verdict("bad", {"beta": "ranks 2 and 3 see the same GPU only; bind one per rank, or none"})


@pytest.mark.parametrize(
    ("gpus", "visible", "kind"),
    [
        (2, 2, None),  # all of the node
        (2, 1, None),  # its own
        (0, 0, None),
        (0, 2, None),  # a site where SLURM does not manage GPUs
        (2, 0, "GPU"),
        (2, 4, "idle GPUs"),
        (0, 4, "idle GPUs"),
    ],
)
def test_gpus_that_a_rank_sees(gpus, visible, kind):
    place = Place(0, 2, 0, ranks_per_node=2, gpus_per_node=gpus, nodes=["alpha"])
    assert list(count_problem(place, visible, has_cuda=True)) == ([kind] if kind else [])


def test_a_rank_uses_its_gpu_or_the_only_one():
    assert [device_index(rank, 4) for rank in range(4)] == [0, 1, 2, 3]
    assert [device_index(rank, 1) for rank in range(4)] == [0, 0, 0, 0]
    with pytest.raises(UserError, match="local rank 2: only 2 GPUs are visible"):
        device_index(2, 2)


def test_hanging_checks_time_out_and_failing_ones_are_reported():
    def fail() -> None:
        raise RuntimeError("no route\nto host")

    assert within(0.05, lambda: time.sleep(60)) == "no end after 0.05 s"
    assert within(60, fail) == "no route"
    assert within(60, lambda: None) is None


@pytest.fixture
def preflight(tmp_path):
    """Run some ranks of a job on nodes of one rank each; return their exit codes, their output, and the verdict."""

    def run(*arguments: str, ranks: list[int], world_size: int, **options) -> tuple[list[int], str, list[str]]:
        verdict = tmp_path / "verdict"
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
            "WORLD_SIZE": str(world_size),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "DCR_DS_GPUS": "0",
            "DCR_DS_NODES": " ".join(NODES[:world_size]),
        }
        command = [sys.executable, "-m", "dcr_ds.run.preflight", "--verdict", str(verdict), *arguments]
        command += ["--output", str(tmp_path / "runs")]
        started = [
            subprocess.Popen(
                command,
                env=one_thread_environment(RANK=str(rank), **shared),
                stderr=subprocess.PIPE,
                text=True,
                **options,
            )
            for rank in ranks
        ]
        printed = "".join(process.communicate(timeout=120)[1] for process in started)
        written = verdict.read_text().splitlines() if verdict.exists() else []
        return [process.returncode for process in started], printed, written

    return run


def test_two_healthy_nodes_pass_the_all_reduce(preflight, tmp_path):
    codes, printed, (kind, probe) = preflight("--free-gib", "0.001", ranks=[0, 1], world_size=2)
    assert (codes, kind) == ([0, 0], "good"), printed
    assert probe.startswith(f"probe {tmp_path}/.preflight-") and Path(probe.removeprefix("probe ")).is_file()


def test_a_hanging_node_is_named_and_the_others_end(preflight):
    codes, printed, (kind, _, *bad) = preflight("--seconds", "15", "--free-gib", "0.001", ranks=[0, 2], world_size=3)
    assert (codes, kind, bad) == ([1, 1], "bad", ["bad beta"]), printed
    assert "preflight: beta: no answer" in printed and "Traceback" not in printed


def test_too_little_space_in_the_run_folder_is_the_users(preflight):
    codes, printed, verdict = preflight("--free-gib", "1e9", ranks=[0], world_size=1)
    assert (codes, verdict) == ([2], ["user"])
    assert "GiB free, 1e+09 are required; free some space" in printed


def test_a_file_system_that_reports_no_size_passes(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(total=0, free=0))
    assert create_probe(tmp_path / "runs", free_gib=0.001).parent == tmp_path


def test_a_quota_below_the_free_space_is_seen(preflight):
    """A limit on the size of files stands for a quota: both are found by reserving the space, not by free blocks."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # noqa: E731
    codes, printed, verdict = preflight("--free-gib", "0.01", ranks=[0], world_size=1, preexec_fn=limit)
    assert (codes, verdict) == ([2], ["user"])
    assert "does not take 0.01 GiB (File too large), although the disk has them free" in printed


def test_a_mistake_in_the_recipe_is_the_users_and_no_nodes(preflight):
    codes, printed, verdict = preflight("--refine.layr", "3", ranks=[0], world_size=1)
    assert (codes, verdict) == ([2], ["user"])
    assert "did you mean refine.layer" in printed.lower()


def test_a_run_folder_that_is_not_the_first_nodes_is_found(tmp_path):
    place = Place(rank=2, world_size=6, local_rank=0, ranks_per_node=2, gpus_per_node=0, nodes=NODES)
    problems = check_this_rank(place, tmp_path / ".preflight-0", 0, seconds=0.2)["problems"]
    assert problems == {"run folder": f"{tmp_path} is not that of the first node; all nodes must share the run folder "
                        "(--output)"}  # fmt: skip
    (tmp_path / ".preflight-0").touch()
    assert check_this_rank(place, tmp_path / ".preflight-0", 0)["problems"] == {}


def test_torch_without_cuda_is_not_a_fault_of_nodes():
    if Path("/dev/nvidia0").exists():
        pytest.skip("there are GPUs here")
    place = Place(rank=0, world_size=1, local_rank=0, ranks_per_node=1, gpus_per_node=1, nodes=["alpha"])
    _, problems = check_gpu(place)
    assert "0 GPUs visible, 1 requested: this torch was built without CUDA" in problems["torch"]
    assert judge(place, reports(place, {0: problems})).kind == "user"
