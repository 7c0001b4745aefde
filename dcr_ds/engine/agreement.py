"""Check that all ranks read the same recipe, data and model files, which may come from the disks of their nodes."""

import platform
from collections.abc import Callable

from dcr_ds.engine.distributed import Ranks, gather_objects
from dcr_ds.errors import UserError


def check_same(describe: Callable[[], dict[str, str]], ranks: Ranks) -> None:
    """Raise the same UserError on all ranks if their descriptions of what they read differ. All ranks.

    Args:
        describe: hashes by name, such as that of a data set; may raise a UserError, on some ranks only.
    """
    own: dict[str, str] = {}
    problem = ""
    try:
        own = describe()
    except UserError as error:
        problem = str(error)
    described = gather_objects((platform.node(), own, problem), ranks)
    problems = {problem for _, _, problem in described}
    if len(problems) == 1 and problem:
        raise UserError(problem)
    first_node, first, _ = described[0]
    for rank, (node, hashes, their_problem) in enumerate(described):
        if their_problem:
            raise UserError(f"rank {rank} on node {node}, unlike other ranks: {their_problem}")
        if different := [name for name in first | hashes if first.get(name) != hashes.get(name)]:
            raise UserError(
                f"rank {rank} on node {node} has another {different[0]} than rank 0 on node {first_node}; give all "
                "nodes the same files and the same versions of packages"
            )
