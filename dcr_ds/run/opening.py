"""Open a run: how training and `dcr-ds evaluate` join their process group, watchdog, lock and stop signals."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dcr_ds.engine.distributed import Ranks, barrier, decide_on_main, joined, wait_until_visible
from dcr_ds.errors import UserError
from dcr_ds.files import write_atomically
from dcr_ds.locks import Lock, LockHeld
from dcr_ds.recipe.layout import RunFolder

LOCK_SECONDS = 60.0  # the ranks of a run that was killed end within this time


@contextmanager
def open_run(folders: Sequence[Path], hang_minutes: float) -> Iterator[Ranks]:
    """Join the process group, watched by the watchdog, and hold the lock of each run folder. All ranks.

    While entered, a stop signal raises Stopped. The locks end with rank 0's process, however it ends (locks.py).

    Args:
        folders: existing run folders; none for a run that writes nothing.

    Raises:
        UserError: another run keeps the lock of a folder, or a rank does not see a folder.
    """
    from dcr_ds.engine.watch.stop import raise_on_stop_signal
    from dcr_ds.engine.watch.watchdog import Watchdog

    with raise_on_stop_signal(), Watchdog(hang_minutes) as watchdog, joined() as ranks, ExitStack() as locks:
        watchdog.join(ranks)
        for folder in sorted(set(folders)):  # in one order, so that two runs never wait for each other
            locks.enter_context(held_on_main(folder, RunFolder(folder).lock, ranks))
            _check_shared(folder, ranks)
        yield ranks
        barrier(ranks)


@contextmanager
def held_on_main(folder: Path, file: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the lock of a folder while entered. All ranks; rank 0 holds it.

    Args:
        file: of the lock.

    Raises:
        UserError: another run keeps it.
    """
    lock = Lock(file, is_kept=file.parent == folder)

    def acquire() -> None:
        try:
            lock.acquire(LOCK_SECONDS)
        except LockHeld as held:
            raise UserError(
                f"{folder}: another run is writing to this folder: {held}; wait for it, stop it, or use another --name "
                "or --out"
            ) from None

    decide_on_main(acquire, ranks)
    try:
        yield
    finally:
        if ranks.is_main:
            lock.release()


def _check_shared(folder: Path, ranks: Ranks) -> None:
    """Raise UserError unless all ranks see the same folder: a file with a new name appears on each of them."""
    if ranks.world_size == 1:
        return
    probe = folder / f".shared-{secrets.token_hex(8)}"  # never looked for before, so not in any cache
    decide_on_main(lambda: write_atomically(probe, ""), ranks)
    try:
        wait_until_visible([probe], ranks)
    finally:
        if ranks.is_main:
            probe.unlink(missing_ok=True)
