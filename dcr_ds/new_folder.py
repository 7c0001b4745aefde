"""A new folder that gets its name when it is complete, written by one process at a time."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dcr_ds.errors import UserError
from dcr_ds.locks import sole_writer


def is_taken(folder: Path) -> bool:
    """Whether a path exists, and is not an empty folder."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


@contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """Yield the temporary path of a new folder, for the body to make and write; it gets its name if nothing fails.

    It is inside <folder>.partial, which the body can also use, and which is removed. What an interrupted call has left
    there is removed, too.

    Raises:
        UserError: the folder exists and is not empty, or another process writes it.
    """
    folder = folder.resolve()  # of a link, the folder that it names
    partial = folder.with_name(f"{folder.name}.partial")
    with sole_writer(folder):
        if is_taken(folder):  # since the command has begun
            raise UserError(f"{folder}: exists, and nothing is overwritten; name a new folder")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial / folder.name
            (partial / folder.name).rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
