"""Write the safetensors files of a model, tensor by tensor, in bounded memory.

The header of each file is written first, so tensors can be written in any order and by several threads. Each is hashed
while it is written.
"""

import hashlib
import json
import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open

from dcr_ds.models.checkpoint_files import CHUNK_BYTES, read_headers
from dcr_ds.progress import heartbeat

MAX_SHARD_BYTES = 5_000_000_000  # larger files of the source are split
QUEUED_BYTES = 1 << 30  # of tensors that wait to be written, per process; a single tensor may be larger
THREADS = 4
# safetensors sorts the tensors of a file by dtype in this order, then by name
DTYPE_ORDER = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E8M0", "F8_E4M3", "F8_E5M2",
    "I8", "U8", "BOOL",
)  # fmt: skip
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file of the source: dtype as in its header, and where its bytes begin."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    size: int

    @property
    def order(self) -> tuple[int, str]:
        known = self.dtype in DTYPE_ORDER
        return (DTYPE_ORDER.index(self.dtype) if known else len(DTYPE_ORDER)), self.name


@dataclass(frozen=True)
class Shard:
    """A safetensors file to write, with its tensors in the order of the file."""

    name: str
    tensors: tuple[Stored, ...]
    metadata: dict[str, str] | None = field(compare=False, default=None)

    @property
    def size(self) -> int:
        return sum(tensor.size for tensor in self.tensors)

    def header(self) -> bytes:
        """The beginning of the file, as safetensors writes it."""
        entries: dict[str, object] = {"__metadata__": self.metadata} if self.metadata else {}
        begin = 0
        for tensor in self.tensors:
            end = begin + tensor.size
            entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
            begin = end
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def plan_shards(source: Path, kept: set[str], copies: Mapping[str, str] | None = None) -> list[Shard]:
    """The files of a copy of a checkpoint with the kept tensors: those of the source, or smaller ones if any is large.

    A file without kept tensors is left out.

    Args:
        copies: new tensors by name, each with the name of the source's tensor whose bytes it has.
    """
    by_file: dict[Path, list[Stored]] = {}
    stored, copies = read_headers(source), copies or {}
    for name, original in [*((name, name) for name in stored if name in kept), *copies.items()]:
        entry = stored[original]
        begin, end = entry["data_offsets"]
        tensor = Stored(name, entry["dtype"], tuple(entry["shape"]), entry["file"], entry["start"], end - begin)
        by_file.setdefault(entry["file"], []).append(tensor)
    parts = [(file, part) for file, tensors in by_file.items() for part in _parts(tensors)]
    names = [file.name for file, _ in parts]
    if len(parts) > len(by_file):
        names = [f"model-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
    metadata = {file: _metadata(file) for file in by_file}
    return [Shard(name, tuple(part), metadata[file]) for name, (file, part) in zip(names, parts, strict=True)]


def index_of(shards: Sequence[Shard], metadata: dict | None) -> dict:
    """The content of the index file of several shards."""
    weight_map = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    total = sum(shard.size for shard in shards)
    return {"metadata": {**(metadata or {}), "total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def needs_index(shards: Sequence[Shard]) -> bool:
    return [shard.name for shard in shards] != ["model.safetensors"]


def _parts(tensors: Sequence[Stored]) -> Iterator[list[Stored]]:
    """Tensors in the order of a file, in groups of at most MAX_SHARD_BYTES, or of one tensor."""
    part: list[Stored] = []
    for tensor in sorted(tensors, key=attrgetter("order")):
        if part and sum(other.size for other in part) + tensor.size > MAX_SHARD_BYTES:
            yield part
            part = []
        part.append(tensor)
    yield part


def _metadata(file: Path) -> dict[str, str] | None:
    with safe_open(file, "pt") as stream:
        return stream.metadata()


class ShardWriter:
    """Writes the tensors of shards into a folder, in threads.

    After the first error nothing more is written, and `finish` raises it.

    Attributes:
        digests: SHA-256 of the bytes of each tensor written, by name.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], is_reported: bool):
        """Create the files.

        Args:
            is_reported: print each finished file to stderr.
        """
        self.digests: dict[str, str] = {}
        self._folder, self._is_reported = folder, is_reported
        self._place: dict[str, tuple[Shard, Stored, int]] = {}  # with the offset in the new file
        self._missing = {shard.name: len(shard.tensors) for shard in shards}
        self._error: Exception | None = None
        self._pending: deque[tuple[Future[None], int]] = deque()
        self._lock = threading.Lock()
        self._files: dict[str, BinaryIO] = {}
        for shard in shards:
            offset = len(shard.header())
            for tensor in shard.tensors:
                self._place[tensor.name] = (shard, tensor, offset)
                offset += tensor.size
        self._threads = ThreadPoolExecutor(THREADS, "writer")

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor on the CPU, in the dtype of the source. Waits while too much is queued."""
        self._submit(tensor.nbytes, name, _bytes_of(tensor, DTYPES[self._place[name][1].dtype]))

    def copy(self, name: str) -> None:
        """Write the bytes of the source."""
        self._submit(0, name, _bytes_in(self._place[name][1]))

    def finish(self) -> None:
        """Wait until all is on disk.

        Raises:
            OSError: a file cannot be written.
        """
        self._threads.shutdown()
        if self._error:
            raise self._error
        if missing := [name for name, count in self._missing.items() if count]:
            raise RuntimeError(f"{self._folder / missing[0]}: not all tensors were written")

    def close(self) -> None:
        """Drop what is still queued, and close the files."""
        self._threads.shutdown(cancel_futures=True)
        for file in self._files.values():
            file.close()

    def _submit(self, size: int, name: str, chunks: Iterable[memoryview]) -> None:
        while self._pending and sum(queued for _, queued in self._pending) + size > QUEUED_BYTES:
            self._pending.popleft()[0].result()  # raises nothing: `_write` keeps errors
        self._pending.append((self._threads.submit(self._write, name, chunks), size))
        while self._pending and self._pending[0][0].done():
            self._pending.popleft()

    def _write(self, name: str, chunks: Iterable[memoryview]) -> None:
        """In a thread."""
        if self._error:
            return
        shard, tensor, offset = self._place[name]
        path = self._folder / shard.name
        digest = hashlib.sha256()
        try:
            file = self._opened(shard)
            for chunk in chunks:
                digest.update(chunk)
                while len(chunk):
                    written = os.pwrite(file.fileno(), chunk, offset)
                    offset, chunk = offset + written, chunk[written:]
                heartbeat(f"writing {path}")
            self._note(shard, name, digest.hexdigest())
        except Exception as error:
            if isinstance(error, OSError):
                error.filename = error.filename or str(path)  # that a full disk does not name
            self._error = self._error or error

    def _opened(self, shard: Shard) -> BinaryIO:
        with self._lock:
            if shard.name not in self._files:
                file = self._files[shard.name] = (self._folder / shard.name).open("xb", buffering=0)
                file.write(shard.header())
            return self._files[shard.name]

    def _note(self, shard: Shard, name: str, digest: str) -> None:
        """Flush a file after its last tensor."""
        with self._lock:
            self.digests[name] = digest
            self._missing[shard.name] -= 1
            if self._missing[shard.name]:
                return
            file = self._files.pop(shard.name)
            done = sum(not count for count in self._missing.values())
        with file:
            os.fsync(file.fileno())
        if self._is_reported and len(self._missing) > 1:
            path, size = self._folder / shard.name, shard.size / 1e9
            print(f"{path}: {size:.3g} GB written ({done} of {len(self._missing)})", file=sys.stderr, flush=True)


def _bytes_of(tensor: torch.Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    """The bytes of a tensor in a dtype, in chunks."""
    flat = tensor.reshape(-1)
    for part in flat.split(CHUNK_BYTES // dtype.itemsize):
        yield memoryview(part.to(dtype).contiguous().view(torch.uint8).numpy())


def _bytes_in(tensor: Stored) -> Iterator[memoryview]:
    """The bytes of a tensor in its file, in chunks."""
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        left = tensor.size
        while left:
            chunk = stream.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise OSError(f"{tensor.file}: ended while {tensor.name} was read")
            left -= len(chunk)
            yield memoryview(chunk)
