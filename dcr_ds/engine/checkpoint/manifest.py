"""The manifest of a checkpoint: hashes of its files, the state of the run, and a hash of the manifest itself.

Under ZeRO every rank writes a shard set of its own, so a checkpoint is complete only with one set per rank.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from dcr_ds.errors import UserError
from dcr_ds.files import write_atomically
from dcr_ds.progress import heartbeat

MANIFEST = "manifest.json"
SHARD = re.compile(r"zero_pp_rank_(\d+)_mp_rank_\d+_(model|optim)_states\.pt")  # DeepSpeed's names
KINDS = {0: (), 1: ("optim",), 2: ("optim",), 3: ("optim", "model")}  # shards of each rank, by ZeRO stage
HASHING_THREADS = 4  # hashlib releases the GIL; more threads would slow down training


class FileFacts(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """Step, layout, state of the training loop, and every file of a checkpoint.

    Attributes:
        seconds: how long the save took until its files were hashed.
        parameters: hash of names and shapes of the trained parameters.
    """

    # fields of newer versions are ignored; the hash of the manifest covers them
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)
    step: int
    world_size: int
    zero_stage: int
    state: dict[str, Any]
    files: dict[str, FileFacts]
    seconds: float
    parameters: str

    @property
    def num_bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


@dataclass(frozen=True)
class Saved:
    """What a manifest records besides the files; `started` is time.monotonic() when its save began."""

    step: int
    world_size: int
    zero_stage: int
    state: dict[str, Any]
    started: float
    parameters: str


def seal(checkpoint: Path, saved: Saved) -> Manifest:
    """Hash the files of a folder and write its manifest.

    Raises:
        UserError: shards of a rank are missing.
    """
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    by_name = {str(file.relative_to(checkpoint)): facts for file, facts in zip(files, _facts(files), strict=True)}
    if missing := missing_shards(by_name, saved.world_size, saved.zero_stage):
        raise UserError(f"{checkpoint}: {missing}. Earlier checkpoints are kept; all nodes must share this folder")
    seconds = time.monotonic() - saved.started
    manifest = Manifest(
        step=saved.step, world_size=saved.world_size, zero_stage=saved.zero_stage, state=saved.state,
        files=by_name, seconds=seconds, parameters=saved.parameters,
    )  # fmt: skip
    values = manifest.model_dump()
    write_atomically(checkpoint / MANIFEST, json.dumps(values | {"sha256": _hash_of(values)}, indent=1))
    return manifest


def missing_shards(names: Iterable[str], world_size: int, zero_stage: int) -> str:
    """Return "" if every rank's shards are among the names of files, else which are not."""
    present = {(int(match[1]), match[2]) for name in names if (match := SHARD.search(name))}
    for kind in KINDS.get(zero_stage, ()):
        if missing := sorted(set(range(world_size)) - {rank for rank, its_kind in present if its_kind == kind}):
            ranks = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
            return f"the {kind} shards of {len(missing)} of {world_size} ranks are missing (rank {ranks})"
    return ""


def verify(checkpoint: Path) -> tuple[Manifest | None, str]:
    """Return the manifest and "" if every file matches it, else None and the problem."""
    try:
        values = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        if values.pop("sha256") != _hash_of(values):
            return None, f"{MANIFEST} is damaged"
        manifest = Manifest.model_validate(values)
        if missing := missing_shards(manifest.files, manifest.world_size, manifest.zero_stage):
            return None, missing
        files = [checkpoint / name for name in manifest.files]
        for file, expected in zip(files, manifest.files.values(), strict=True):
            if file.stat().st_size != expected.bytes:
                return None, f"{file.relative_to(checkpoint)} is damaged"
        for file, expected, facts in zip(files, manifest.files.values(), _facts(files), strict=True):
            heartbeat(f"verifying {file}")
            if facts != expected:
                return None, f"{file.relative_to(checkpoint)} is damaged"
    except FileNotFoundError as error:
        return None, f"{Path(error.filename).name} is missing"
    except OSError as error:  # raised on rank 0 alone it would leave the other ranks waiting
        return None, str(error)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, f"{MANIFEST} is damaged"
    return manifest, ""


def _facts(files: list[Path]) -> Iterator[FileFacts]:
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        yield from pool.map(_facts_of, files)


def _facts_of(file: Path) -> FileFacts:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileFacts(bytes=stream.tell(), sha256=digest)


def _hash_of(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
