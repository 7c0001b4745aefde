"""The ways in which a run ends that are not errors of the program, and their exit codes."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped on a signal after saving; SLURM requeues the job

CANNOT_WRITE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
CANNOT_WRITE |= {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}  # the path leads through a file, or is a folder
CANNOT_WRITE |= {errno.ENAMETOOLONG}
WAYS_OUT = {
    errno.EACCES: "change its permissions, or those of its folder, or write elsewhere",
    errno.EPERM: "change its permissions, or those of its folder, or write elsewhere",
    errno.EROFS: "write elsewhere",
    errno.EEXIST: "a file is in the way: move it, or write elsewhere",
    errno.ENOTDIR: "a file is in the way: move it, or write elsewhere",
    errno.ENAMETOOLONG: "use a shorter name",
}
DAMAGED = {errno.EIO, errno.ESTALE}  # the disk or the network file system, in reading or writing
# From the messages of torch and safetensors when a write fails; neither raises OSError.
CANNOT_WRITE_WORDS = ("inline_container", "PytorchStreamWriter", "I/O error", "iostream error", "os error")


class RunEnded(Exception):
    """A run ends for a reason that its message explains, the same on all ranks."""


class UserError(RunEnded):
    """An error that the user can fix. The message names the place, what is wrong and what to do.

    The command line prints the message without a stack trace and exits with code 2.
    """


class Stopped(BaseException):
    """A stop signal arrived and the state is saved; the same command continues. Exits with code 75.

    It may be raised anywhere, also within code of libraries, where an Exception would be handled as an error of theirs.
    """


class Interrupted(Stopped):
    """A stop signal arrived where ranks do not agree on stops, perhaps on this rank alone: outside of steps."""


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
    """Turn "disk full", "permission denied" and the like into a UserError that says what failed, and with which file.

    Args:
        place: named where the file is unknown.
    """
    try:
        yield
    except RunEnded:
        raise
    except Exception as error:
        if text := describe_write_error(error, place):
            raise UserError(text) from error
        raise


def describe_write_error(error: Exception, place: object) -> str:
    """Say what failed and with which file, `place` where it is unknown; empty for other errors."""
    is_file_error = isinstance(error, OSError) and error.errno in CANNOT_WRITE | DAMAGED
    if not is_file_error and not any(word in str(error) for word in CANNOT_WRITE_WORDS):
        return ""
    # of a copy or a rename, filename is the source, and filename2 the file that is written
    names = (getattr(error, name, None) for name in ("filename2", "filename"))
    file = next((name for name in names if name), place)
    reason = getattr(error, "strerror", None) or str(error)[:200]
    return f"{file}: {_failed(error, file).format(reason=f'({reason})')}"


def _failed(error: Exception, file: object) -> str:
    """What failed, with a place for the reason, and what to do."""
    number, is_path = getattr(error, "errno", None), isinstance(file, str | os.PathLike)
    if number in DAMAGED:
        return "cannot be read or written {reason}; check the disk or the network file system"
    if number == errno.EISDIR:
        verb = "written" if getattr(error, "filename2", None) else "read or written"
        return f"cannot be {verb} {{reason}}; move the folder away, or name another file"
    if number in (errno.EACCES, errno.EPERM) and is_path and not _may_be_opened(file):
        return "cannot be read {reason}; change its permissions, or those of its folder"
    return f"cannot be written {{reason}}; {WAYS_OUT.get(number or 0, 'free some space, or write elsewhere')}"


def _may_be_opened(file: Any) -> bool:
    """Whether a path can be read, or does not exist; a file is written under another name, and then renamed."""
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        return not isinstance(error, PermissionError)
    return True
