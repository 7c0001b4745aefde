"""The hash of a checkpoint's weights, and the check of an adapter's base by it.

Reads headers and bytes, without torch. A process reads a model once: the hash of files that have not changed since, and
of a model that it wrote itself, is remembered.
"""

import hashlib
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dcr_ds.errors import UserError
from dcr_ds.files import parse_json
from dcr_ds.models.checkpoint_files import BASE_RECORD, CHUNK_BYTES, read_headers, weight_files
from dcr_ds.progress import heartbeat

BY_TENSOR = "tensors-"  # before a hash of the hashes of tensors; earlier versions hashed all bytes in order of name
THREADS = 4  # hashlib releases the GIL
RECENT_SECONDS = 2.0  # a file may be written to again without a new time, as clocks of file systems are coarse

_remembered: dict[str, str] = {}  # hash by kind and states of the files


def weights_hash(folder: Path, like: str = BY_TENSOR) -> str:
    """SHA-256 of a checkpoint's tensors with names, dtypes and shapes, however they are sharded.

    Args:
        like: a recorded hash; the result is of the same kind, so that both can be compared.
    """
    is_by_tensor = like.startswith(BY_TENSOR)
    states = file_states(folder)
    key = f"{is_by_tensor} {folder.absolute()} {states}"
    if key not in _remembered:
        value = _hash_of(folder, _tensor_hashes(folder)) if is_by_tensor else _serial_hash(folder)
        if time.time() - max(changed / 1e9 for *_, changed in states.values()) < RECENT_SECONDS:
            return value
        _remembered[key] = value
    return _remembered[key]


def remember_hash(folder: Path, tensors: Mapping[str, str]) -> None:
    """Remember the hash of a model that this process has just written, from the SHA-256 of each tensor's bytes."""
    _remembered[f"True {folder.absolute()} {file_states(folder)}"] = _hash_of(folder, tensors)


def file_states(folder: Path) -> dict[str, list[int]]:
    """Inode, size and times of the files of weights. No program can set the last one, the time of change."""
    states = {}
    for file in weight_files(folder):
        status = file.stat()
        states[file.name] = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return states


def check_base(source: Path, adapter: Path) -> None:
    """Raise UserError if base.json next to an adapter records other weights than those of the source.

    An adapter from elsewhere has no base.json and passes.
    """
    record = adapter / BASE_RECORD
    if not record.is_file():
        return
    try:
        base = parse_json(record.read_bytes())
        name, expected = base["source"], str(base["sha256"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{record}: damaged; copy the adapter again") from None
    if weights_hash(source, expected) != expected:
        raise UserError(
            f"{adapter}: was trained on other weights than those of {source} ({BASE_RECORD} has another hash); use the "
            f"base model it was trained on: {name}"
        )


def _hash_of(folder: Path, tensors: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name, entry in sorted(read_headers(folder).items()):
        digest.update(f"{name} {entry['dtype']} {entry['shape']} {tensors[name]}\n".encode())
    return BY_TENSOR + digest.hexdigest()


def _tensor_hashes(folder: Path) -> dict[str, str]:
    headers = read_headers(folder)

    def hash_of(entry: dict) -> str:
        digest = hashlib.sha256()
        _update(digest, entry)
        return digest.hexdigest()

    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(headers, pool.map(hash_of, headers.values()), strict=True))


def _serial_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for name, entry in sorted(read_headers(folder).items()):
        digest.update(f"{name} {entry['dtype']} {entry['shape']}\n".encode())
        _update(digest, entry)
    return digest.hexdigest()


def _update(digest: "hashlib._Hash", entry: dict) -> None:
    begin, end = entry["data_offsets"]
    with entry["file"].open("rb") as stream:
        stream.seek(entry["start"])
        for start in range(begin, end, CHUNK_BYTES):
            heartbeat(f"reading {entry['file']}")
            digest.update(stream.read(min(CHUNK_BYTES, end - start)))
