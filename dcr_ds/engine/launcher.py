"""The environment variables in which a launcher describes the ranks: checked, and set for a single process.

Nothing here imports torch, which reads some of them when it is imported.
"""

import os
import socket

from dcr_ds.errors import UserError

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# variables that are numbers, with the smallest and the largest value
NUMBERS = {"RANK": (0, None), "WORLD_SIZE": (1, None), "LOCAL_RANK": (0, None), "MASTER_PORT": (1, 65535)}
NUMBERS |= {"LOCAL_WORLD_SIZE": (1, None), "LOCAL_SIZE": (1, None)}
# set by what starts several processes and does not describe them as torch expects
STARTERS = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpirun"}


def set_environment() -> None:
    """Check and complete the environment variables of this process; call before torch is imported.

    Each rank gets cores / ranks-per-node threads, which wait passively: spinning OpenMP threads on a shared core made a
    step seven times slower. A single process gets a world size of 1 and a free port (without them DeepSpeed looks for
    MPI, and the default port of its launcher is often taken).

    Raises:
        UserError: the variables of a launcher are incomplete or contradict each other.
    """
    _check_launcher_variables()
    ranks_per_node = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks_per_node)))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # on some CPUs bitsandbytes, which peft imports, downloads and runs this kernel as it is imported
    os.environ.setdefault("LOCAL_KERNELS", "kernels-community/quantization-bitsandbytes=/dev/null")
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        os.environ.setdefault(name, value)
    if os.environ["WORLD_SIZE"] == "1" and "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun has its own store
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


def _check_launcher_variables() -> None:
    """Raise UserError where the variables describe no process group; variables that are set but empty are removed."""
    names = tuple(dict.fromkeys((*LAUNCHER_VARIABLES, *NUMBERS)))
    for name in names:
        if not os.environ.get(name, "unset").strip():
            del os.environ[name]
    present = [name for name in names if name in os.environ]
    described = " ".join(f"{name}={os.environ[name]}" for name in present)
    way_out = (
        f"a launcher sets all of {', '.join(LAUNCHER_VARIABLES)}; to run a single process: unset {' '.join(present)}"
    )
    for name, starter in STARTERS.items():
        count = os.environ.get(name, "")
        if "RANK" not in os.environ and count.isdecimal() and int(count) > 1:
            raise UserError(
                f"{starter} has started {count} processes ({name}={count} in the environment) without RANK, so each of "
                "them would be a run of its own; submit slurm/dcr.sh, or start one torchrun or deepspeed per node; to "
                f"run a single process: unset {name}"
            )
    for name, (least, most) in NUMBERS.items():
        text = os.environ.get(name, str(least))
        if not text.isdecimal():
            raise UserError(f"{name}={text} in the environment is not a number; {way_out}")
        if int(text) < least or (most and int(text) > most):
            limit = f"from {least} to {most}" if most else f"at least {least}"
            raise UserError(f"{name}={text} in the environment must be {limit}; {way_out}")
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if int(os.environ.get("LOCAL_RANK", 0)) > rank:  # no node would have a first rank, which flushes its files
        raise UserError(f"the environment has {described}: a local rank is never above the rank; {way_out}")
    if rank >= world_size:
        raise UserError(f"the environment has {described}: ranks go from 0 to WORLD_SIZE - 1; {way_out}")
    missing = [name for name in LAUNCHER_VARIABLES if name not in os.environ]
    if world_size > 1 and missing:
        raise UserError(
            f"the environment has {described}, so this process would wait for {world_size - 1} more, and lacks "
            f"{', '.join(missing)}; {way_out}"
        )


def is_main_process() -> bool:
    """Return whether this is rank 0; can be called before torch is imported."""
    return os.environ.get("RANK", "0").strip() in ("", "0")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
