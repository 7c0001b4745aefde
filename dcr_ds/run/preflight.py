"""Check every node of a job before training starts, and name the nodes that cannot be used.

    srun --ntasks-per-node=8 bash slurm/rank.sh python -m dcr_ds.run.preflight --verdict FILE [RECIPE] [overrides…]

Every rank checks itself (recipe, free disk space, GPU) and reports to rank 0 through a key-value store. That is not a
collective: a node that does not answer costs one timeout and blocks no other rank. If all ranks are fine and have the
same versions, they all-reduce a small tensor. Rank 0 writes the verdict for slurm/dcr.sh: `good`, `bad` or `user` (the
recipe is wrong, not a node), then a line `bad NODE` for each node to exclude.
"""

import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from dcr_ds.errors import EXIT_USER_ERROR, UserError
from dcr_ds.files import write_atomically
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.arguments import parse_train
from dcr_ds.run.environment import package_versions

GIB = 2**30
LEAVE_SECONDS = 5.0  # the store ends with rank 0, so the others must have read their keys before


@dataclass(frozen=True)
class Place:
    """A rank of the job, as described in the environment by slurm/dcr.sh and slurm/rank.sh."""

    rank: int
    world_size: int
    local_rank: int
    ranks_per_node: int
    gpus_per_node: int
    nodes: list[str]

    @classmethod
    def from_environment(cls) -> "Place":
        return cls(
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            local_rank=int(os.environ["LOCAL_RANK"]),
            ranks_per_node=int(os.environ["LOCAL_WORLD_SIZE"]),
            gpus_per_node=int(os.environ["DCR_DS_GPUS"]),
            nodes=os.environ["DCR_DS_NODES"].split(),
        )

    def node_of(self, rank: int) -> str:
        return self.nodes[rank // self.ranks_per_node]


Report = dict[str, Any]  # of a rank: `problems`, `versions`
Verdict = dict[str, str]  # node → what is wrong with it


def check_this_rank(place: Place, folder: Path, free_gib: float) -> Report:
    """Return the problems of this rank's node, and its versions."""
    problems = []
    if place.local_rank == 0:
        problems += [problem for path in (folder, Path(tempfile.gettempdir())) if (problem := _disk(path, free_gib))]
    if place.gpus_per_node and (problem := _gpu(place)):
        problems.append(problem)
    return {"problems": problems, "versions": {"python": platform.python_version(), **package_versions()}}


def _disk(path: Path, free_gib: float) -> str | None:
    while not path.exists():
        path = path.parent
    try:
        with tempfile.TemporaryFile(dir=path):
            free = shutil.disk_usage(path).free / GIB
    except OSError as error:
        return f"{path} cannot be written to ({error.strerror})"
    return f"{path} has {free:.1f} GiB free, but {free_gib:g} GiB are required" if free < free_gib else None


def _gpu(place: Place) -> str | None:
    import torch

    count = torch.cuda.device_count()
    if count < place.ranks_per_node:
        return f"{count} GPUs visible to a rank, {place.ranks_per_node} ranks need one each (use --gpus-per-node)"
    try:
        torch.ones(1, device=f"cuda:{place.local_rank}").add_(1).item()
    except RuntimeError as error:
        return f"GPU {place.local_rank} does not compute ({str(error).splitlines()[0]})"
    return None


def judge(place: Place, reports: dict[int, Report]) -> Verdict:
    """Return the nodes to exclude: with a problem or without an answer, else with versions unlike the majority."""
    bad: Verdict = {}
    for rank in range(place.world_size):
        node = place.node_of(rank)
        if rank not in reports:
            bad.setdefault(node, "no answer: Python does not start there, hangs, or cannot reach the first node")
        elif reports[rank]["problems"]:
            bad[node] = "; ".join(reports[rank]["problems"])
    return bad or _odd_versions(place, reports)


def _odd_versions(place: Place, reports: dict[int, Report]) -> Verdict:
    bad: Verdict = {}
    names = dict.fromkeys(name for report in reports.values() for name in report["versions"])
    for name in names:
        versions = {rank: report["versions"].get(name, "none") for rank, report in reports.items()}
        usual = Counter(versions.values()).most_common(1)[0][0]
        for rank, version in versions.items():
            if version != usual:
                bad.setdefault(place.node_of(rank), f"{name} {version}, the others have {usual}")
    return bad


def gather(store: Any, key: str, world_size: int, seconds: float) -> dict[int, Any]:
    """Return by rank what each rank has stored under `key/<rank>` within the time. Rank 0."""
    names = {rank: f"{key}/{rank}" for rank in range(world_size)}
    reports: dict[int, Any] = {}
    deadline = time.monotonic() + seconds
    while len(reports) < world_size and time.monotonic() < deadline:
        here = [rank for rank in names if rank not in reports and store.check([names[rank]])]
        reports |= {rank: json.loads(store.get(names[rank])) for rank in here}
        time.sleep(0.1)
    return reports


def all_reduce(store: Any, place: Place, seconds: float) -> None:
    """Sum 1 MiB over all ranks and check the result; then set `reduced/<rank>`. All ranks."""
    import torch
    import torch.distributed as distributed

    device = torch.device("cuda", place.local_rank) if place.gpus_per_node else torch.device("cpu")
    distributed.init_process_group(
        "nccl" if place.gpus_per_node else "gloo",
        store=distributed.PrefixStore("group", store),
        rank=place.rank,
        world_size=place.world_size,
        timeout=timedelta(seconds=seconds),
    )
    ones = torch.ones(GIB // 4096, device=device)
    distributed.all_reduce(ones)
    if not bool((ones == place.world_size).all()):
        raise RuntimeError("the all-reduce gave a wrong sum")
    store.set(f"reduced/{place.rank}", "true")


def within(seconds: float, work: Callable[[], None]) -> str | None:
    """Run something that may hang, in a thread that is abandoned if it does; return None, or the problem."""
    failed: list[str] = []

    def attempt() -> None:
        try:
            work()
        except Exception as error:
            failed.append(str(error).splitlines()[0])

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    return f"no end after {seconds:g} s" if thread.is_alive() else failed[0] if failed else None


def run_rank_0(store: Any, place: Place, seconds: float, verdict: Path) -> bool:
    """Gather the reports, judge them, all-reduce if all are fine, and write and publish the verdict."""
    bad = judge(place, gather(store, "report", place.world_size, seconds))
    store.set("go", "false" if bad else "true")
    reduced = None
    if not bad:
        reduced = within(seconds, lambda: all_reduce(store, place, seconds))
        done = gather(store, "reduced", place.world_size, 1 if reduced else seconds)
        if 0 < len(done) < place.world_size:
            missing = (rank for rank in range(place.world_size) if rank not in done)
            bad = {place.node_of(rank): "did not come through the all-reduce" for rank in missing}
    for node, problem in bad.items():
        print(f"preflight: {node}: {problem}", file=sys.stderr, flush=True)
    if reduced and not bad:
        hint = (
            "set NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME to the network between the nodes; NCCL_DEBUG=INFO shows more"
        )
        print(f"preflight: the all-reduce failed on every node ({reduced}); {hint}", file=sys.stderr, flush=True)
    good = not bad and not reduced
    write_atomically(verdict, "\n".join(["good" if good else "bad", *(f"bad {node}" for node in bad)]) + "\n")
    store.set("end", "true")
    return good


def run_other(store: Any, place: Place, seconds: float) -> bool:
    store.wait(["go"], timedelta(seconds=2 * seconds))
    if store.get("go") != b"true":
        return False
    problem = within(seconds, lambda: all_reduce(store, place, seconds))
    store.wait(["end"], timedelta(seconds=2 * seconds))  # the others may not be through yet
    return problem is None


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, report and judge; return the exit code: 0 fine, 1 a bad node, 2 a wrong recipe. All ranks."""
    parser = ArgumentParser(prog="python -m dcr_ds.run.preflight", allow_abbrev=False)
    parser.add_argument("--verdict", type=Path, required=True, help="file that rank 0 writes")
    parser.add_argument("--seconds", type=float, default=180, help="timeout of each step")
    parser.add_argument(
        "--free-gib", type=float, default=5, help="free disk space required for output and temporary files"
    )
    options, rest = parser.parse_known_args(arguments)
    try:
        place = Place.from_environment()
    except KeyError as error:
        parser.error(f"{error.args[0]} is not in the environment; slurm/dcr.sh and slurm/rank.sh set it")
    recipe: Recipe | None = None
    mistake = ""
    try:
        recipe = parse_train(rest).load()
    except UserError as error:
        mistake = str(error)
        if place.rank == 0:
            print(f"error: {mistake}", file=sys.stderr, flush=True)
            write_atomically(options.verdict, "user\n")
            return EXIT_USER_ERROR
    from torch.distributed import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = TCPStore(host, port, None, place.rank == 0, timedelta(seconds=options.seconds), wait_for_workers=False)
        report = check_this_rank(place, recipe.folder if recipe else Path(), options.free_gib)
        report["problems"] += [mistake] if mistake else []
        store.set(f"report/{place.rank}", json.dumps(report))
        if place.rank == 0:
            good = run_rank_0(store, place, options.seconds, options.verdict)
        else:
            good = run_other(store, place, options.seconds)
        store.set(f"leaves/{place.rank}", "true")
        if place.rank == 0:
            gather(store, "leaves", place.world_size, LEAVE_SECONDS)
        return 0 if good else 1
    except RuntimeError as error:
        print(
            f"preflight: rank {place.rank}: {str(error).splitlines()[0]} ({host}:{port})", file=sys.stderr, flush=True
        )
        return 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # a thread may hang in a collective
