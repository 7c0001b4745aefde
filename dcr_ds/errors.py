"""The ways in which a run ends that are not errors of the program, and their exit codes."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped on a signal after saving; SLURM requeues the job

CANNOT_WRITE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
CANNOT_WRITE |= {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}  # the path leads through a file, or is a folder
CANNOT_WRITE |= {errno.ENAMETOOLONG}
# From the messages of torch and safetensors when a write fails; neither raises OSError.
CANNOT_WRITE_WORDS = ("inline_container", "PytorchStreamWriter", "I/O error", "iostream error", "os error")


class RunEnded(Exception):
    """A run ends for a reason that its message explains, the same on all ranks."""


class UserError(RunEnded):
    """An error that the user can fix. The message names the place, what is wrong and what to do.

    The command line prints the message without a stack trace and exits with code 2.
    """


class Stopped(RunEnded):
    """A stop signal arrived and the state is saved; the same command continues. Exits with code 75."""


class Diverged(RunEnded):
    """The loss or its gradient is no longer finite; the message names step and samples. Exits with code 1."""


class RefinementFailed(RunEnded):
    """Stage 1 did not separate the sets, or moved general activations too far. Exits with code 1."""


class ServerFailed(RunEnded):
    """A server that the evaluation started was killed, hangs, or ended while it was used. Exits with code 1."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(error: Exception) -> str:
    """The beginning of an error's message, with its lines joined."""
    return " ".join(str(error).split())[:200]


@contextmanager
def write_errors_as_user_errors(place: Path) -> Iterator[None]:
    """Turn "disk full" and "permission denied" into a UserError that names the file, or `place` where it is unknown."""
    try:
        yield
    except RunEnded:
        raise
    except Exception as error:
        is_write_error = isinstance(error, OSError) and error.errno in CANNOT_WRITE
        if not is_write_error and not any(word in str(error) for word in CANNOT_WRITE_WORDS):
            raise
        # of a copy or a rename, filename is the source, and filename2 the file that is written
        names = (getattr(error, name, None) for name in ("filename2", "filename"))
        file = next((name for name in names if name), place)
        reason = getattr(error, "strerror", None) or str(error)[:200]
        raise UserError(f"{file}: cannot be written ({reason}); free some space, or write elsewhere") from error
