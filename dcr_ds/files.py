"""Small files that are whole or absent, also after a crash: written aside, flushed to the disk, renamed."""

import errno
import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a text file, making its folder; a reader finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    with aside.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())  # a rename may reach the disk before the content does
    aside.replace(path)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():  # some file systems have no such call
            raise
    finally:
        os.close(descriptor)
