"""Whether all ranks read the same: each reads recipe, data and model files for itself, perhaps from its node's disk."""

import platform
from collections.abc import Callable

from dcr_ds.engine.distributed import Ranks, gather_objects
from dcr_ds.errors import UserError


def check_same(describe: Callable[[], dict[str, str]], ranks: Ranks) -> None:
    """Raise the same UserError on all ranks unless all of them describe what they read alike. All ranks.

    Args:
        describe: hashes by name, such as that of a data set; may raise a UserError, on some ranks only.
    """
    mine: dict[str, str] = {}
    problem = ""
    try:
        mine = describe()
    except UserError as error:
        problem = str(error)
    described = gather_objects((platform.node(), mine, problem), ranks)
    problems = {problem for _, _, problem in described}
    if len(problems) == 1 and problem:
        raise UserError(problem)
    first_node, first, _ = described[0]
    for rank, (node, theirs, their_problem) in enumerate(described):
        if their_problem:
            raise UserError(f"rank {rank} on node {node}, unlike other ranks: {their_problem}")
        if different := [name for name in first | theirs if first.get(name) != theirs.get(name)]:
            raise UserError(
                f"rank {rank} on node {node} has another {different[0]} than rank 0 on node {first_node}; give all "
                "nodes the same files and the same versions of packages"
            )
