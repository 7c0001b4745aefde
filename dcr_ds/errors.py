"""The two ways a run ends that are not a fault of the program."""

EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped on a signal after saving; SLURM requeues on it


class UserError(Exception):
    """Something the user can put right: the message names the place and the way out.

    The command line prints the message alone, without a stack trace, and exits with code 2.
    """


class Stopped(Exception):
    """A stop signal arrived and the state is saved: the same command goes on from there. Exits with code 75."""


class Diverged(Exception):
    """The loss is no longer finite; the message names the step and the samples. Exits with code 1."""
