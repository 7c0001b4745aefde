"""Check every node of a job before training starts, and name the nodes that cannot be used.

    srun --ntasks-per-node=8 bash slurm/rank.sh python -m dcr_ds.run.preflight --verdict FILE [RECIPE] [overrides…]

Every rank checks itself (run.node_checks) and reports to rank 0 through a key-value store. That is not a collective: a
node that does not answer costs one timeout and blocks no other rank. What all nodes share (recipe, run folder) is
checked once, by rank 0. If all ranks are fine, they all-reduce a small tensor.

Rank 0 writes the verdict for slurm/preflight.sh. Its first line is `good`, `bad` or `user`; `probe FILE` names the file
that rank 0 created in the run folder, and `bad NODE` a node to exclude. Only what differs between nodes excludes a
node: a problem of all nodes is `user`, since other nodes would have it, too.
"""

import json
import os
import platform
import sys
import threading
import time
import traceback
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from dcr_ds.engine.distributed import VISIBLE_SECONDS, device_index
from dcr_ds.errors import EXIT_USER_ERROR, UserError, first_line
from dcr_ds.files import write_atomically
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.arguments import parse_train
from dcr_ds.run.node_checks import GIB, Place, Report, check_this_rank, create_probe

LEAVE_SECONDS = 5.0  # the store ends with rank 0, so the others must have read their keys before
OF_A_NODE = {"GPU", "silent"}  # kinds of problems that are the node's even if the job has no other node


@dataclass(frozen=True)
class Verdict:
    """Whether the job can start, and the problems by node."""

    kind: Literal["good", "bad", "user"]
    problems: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path, probe: Path | None = None) -> None:
        bad = self.problems if self.kind == "bad" else {}
        lines = [self.kind, *([f"probe {probe}"] if probe else []), *(f"bad {node}" for node in bad)]
        write_atomically(path, "\n".join(lines) + "\n")

    def print(self) -> None:
        prefix = "error: " if self.kind == "user" else ""
        for node, problem in self.problems.items():
            print(f"{prefix}preflight: {node}: {problem}", file=sys.stderr, flush=True)


def judge(place: Place, reports: dict[int, Report]) -> Verdict:
    """Return which nodes have a problem, or whose fault it is if that is the same on all nodes."""
    problems = _problems_by_node(place, reports)
    if not problems:
        return _compare_versions(reports)
    shared = set.intersection(*map(set, problems.values()))
    others = set(place.nodes[1:])
    if len(place.nodes) == 1:
        is_user = bool(shared - OF_A_NODE)
    elif set(problems) == set(place.nodes):
        is_user = bool(shared)
    else:  # the first node always sees its own folder and its own store, so here "all" are all other nodes
        is_user = set(problems) == others and (shared == {"run folder"} or (shared == {"silent"} and len(others) > 1))
    if is_user:
        nodes = "all nodes" if len(problems) == len(place.nodes) else "all other nodes"
        some = next(iter(problems.values()))
        return Verdict("user", {nodes: "; ".join(some[kind] for kind in sorted(shared))})
    return Verdict("bad", {node: "; ".join(found.values()) for node, found in problems.items()})


def _problems_by_node(place: Place, reports: dict[int, Report]) -> dict[str, dict[str, str]]:
    """The problems of each node that has any, by kind, in order of rank."""
    problems: dict[str, dict[str, str]] = {}
    gpus: dict[tuple[str, str], int] = {}
    for rank in range(place.world_size):
        if rank not in reports:
            text = "no answer: Python does not start there in time, hangs, or cannot reach the first node"
            problems.setdefault(place.node_of(rank), {})["silent"] = text
            continue
        report = reports[rank]
        node, found = report["node"], dict(report["problems"])
        if (gpu := report["gpu"]) and (first := gpus.setdefault((node, gpu), rank)) != rank:
            found["shared GPU"] = f"ranks {first} and {rank} see the same GPU only; bind one per rank, or none"
        if found:
            problems.setdefault(node, {}).update(found)
    return problems


def _compare_versions(reports: dict[int, Report]) -> Verdict:
    """Blame nodes with versions unlike those of most nodes; without a majority, the user."""
    bad: dict[str, str] = {}
    for name in dict.fromkeys(name for report in reports.values() for name in report["versions"]):
        versions = {report["node"]: report["versions"].get(name, "none") for report in reports.values()}
        counts = Counter(versions.values()).most_common(2)
        usual = counts[0][0]
        odd = {node: version for node, version in versions.items() if version != usual}
        if odd and counts[0][1] == counts[1][1]:
            texts = ", ".join(f"{node} has {name} {version}" for node, version in versions.items())
            return Verdict("user", {"all nodes": f"{texts}; install the same versions on all nodes"})
        bad = {node: f"{name} {version}, the others have {usual}" for node, version in odd.items()} | bad
    return Verdict("bad", bad) if bad else Verdict("good")


def gather(store: Any, key: str, world_size: int, seconds: float) -> dict[int, Any]:
    """Return by rank what each rank has stored under `key/<rank>` within the time. Rank 0."""
    names = {rank: f"{key}/{rank}" for rank in range(world_size)}
    found: dict[int, Any] = {}
    deadline = time.monotonic() + seconds
    while len(found) < world_size and time.monotonic() < deadline:
        here = [rank for rank in names if rank not in found and store.check([names[rank]])]
        found |= {rank: json.loads(store.get(names[rank])) for rank in here}
        time.sleep(0.1)
    return found


def all_reduce(store: Any, place: Place, seconds: float) -> None:
    """Sum 1 MiB over all ranks and check the result; then set `reduced/<rank>`. All ranks."""
    import torch
    import torch.distributed as distributed

    on_gpu = torch.cuda.is_available()
    device = torch.device("cpu")
    if on_gpu:
        device = torch.device("cuda", device_index(place.local_rank, torch.cuda.device_count()))
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
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
            failed.append(first_line(error))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    return f"no end after {seconds:g} s" if thread.is_alive() else failed[0] if failed else None


def run_rank_0(store: Any, place: Place, options: Namespace, probe: Path) -> bool:
    """Gather the reports, judge them, all-reduce if all are fine, and write and publish the verdict."""
    seconds = options.seconds
    store.set("probe", str(probe))
    store.set("report/0", json.dumps(check_this_rank(place, probe, options.free_gib)))
    verdict = judge(place, gather(store, "report", place.world_size, seconds))
    store.set("go", "true" if verdict.kind == "good" else "false")
    if verdict.kind == "good":
        problem = within(seconds, lambda: all_reduce(store, place, seconds))
        verdict = _judge_all_reduce(store, place, problem, seconds)
    verdict.print()
    verdict.write(options.verdict, probe)
    store.set("end", "true")
    return verdict.kind == "good"


def _judge_all_reduce(store: Any, place: Place, problem: str | None, seconds: float) -> Verdict:
    done = gather(store, "reduced", place.world_size, 1 if problem else seconds)
    missing = [rank for rank in range(place.world_size) if rank not in done]
    if not missing:
        return Verdict("good")
    if done:
        return Verdict("bad", {place.node_of(rank): "did not complete the all-reduce" for rank in missing})
    hint = "set NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME to the network between the nodes; NCCL_DEBUG=INFO prints more"
    return Verdict("user", {"all nodes": f"the all-reduce failed ({problem}); {hint}"})


def run_other(store: Any, place: Place, options: Namespace, mistake: str) -> bool:
    """Check this rank, report, and all-reduce if rank 0 says so."""
    twice = timedelta(seconds=2 * options.seconds)
    store.wait(["probe"], twice)
    visible = min(VISIBLE_SECONDS, options.seconds / 2)
    report = check_this_rank(place, Path(store.get("probe").decode()), options.free_gib, visible)
    if mistake:
        report["problems"]["recipe"] = mistake
    store.set(f"report/{place.rank}", json.dumps(report))
    store.wait(["go"], twice)
    if store.get("go") != b"true":
        return False
    problem = within(options.seconds, lambda: all_reduce(store, place, options.seconds))
    store.wait(["end"], twice)  # the others may still be in the all-reduce
    return problem is None


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, report and judge; return the exit code: 0 fine, 1 a bad node, 2 the user's input. All ranks."""
    parser = ArgumentParser(prog="python -m dcr_ds.run.preflight", allow_abbrev=False)
    parser.add_argument("--verdict", type=Path, required=True, help="file that rank 0 writes")
    parser.add_argument("--seconds", type=float, default=600, help="timeout of each step")
    help_free = "free disk space required for the run folder and for temporary files"
    parser.add_argument("--free-gib", type=float, default=5, help=help_free)
    options, rest = parser.parse_known_args(arguments)
    try:
        place = Place.from_environment()
    except KeyError as error:
        parser.error(f"{error.args[0]} is not in the environment; slurm/dcr.sh and slurm/rank.sh set it")
    probe, mistake = None, ""
    try:
        recipe: Recipe = parse_train(rest).load()
        probe = create_probe(recipe.folder, options.free_gib) if place.rank == 0 else None
    except UserError as error:
        mistake = str(error)
        if place.rank == 0:
            print(f"error: {mistake}", file=sys.stderr, flush=True)
            Verdict("user").write(options.verdict)
            return EXIT_USER_ERROR
    return _with_store(place, options, probe, mistake)


def _with_store(place: Place, options: Namespace, probe: Path | None, mistake: str) -> int:
    from torch.distributed import TCPStore

    if place.local_rank == 0:  # slurm/preflight.sh looks for this line
        node = os.environ.get("SLURMD_NODENAME", place.node_of(place.rank))
        print(f"preflight: {node} answers: Python {platform.python_version()}, {sys.executable}", flush=True)
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        timeout = timedelta(seconds=options.seconds)
        store = TCPStore(host, port, None, place.rank == 0, timeout, wait_for_workers=False)
        good = run_rank_0(store, place, options, probe) if probe else run_other(store, place, options, mistake)
        store.set(f"leaves/{place.rank}", "true")
        if place.rank == 0:
            gather(store, "leaves", place.world_size, LEAVE_SECONDS)
        return 0 if good else 1
    except RuntimeError as error:
        problem = first_line(error)
        print(f"preflight: rank {place.rank}: {problem} ({host}:{port})", file=sys.stderr, flush=True)
        if place.rank == 0 and not options.verdict.exists():  # such as a port that was taken a moment ago
            Verdict("bad").write(options.verdict, probe)
        return 1


if __name__ == "__main__":
    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)  # a thread may hang in a collective
