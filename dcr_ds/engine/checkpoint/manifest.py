"""The manifest of a checkpoint: hashes of its files, the state of the run, and a hash of the manifest itself."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from dcr_ds.engine.watch.progress import heartbeat
from dcr_ds.files import write_atomically

MANIFEST = "manifest.json"
HASHING_THREADS = 4  # hashlib releases the GIL; more threads would slow down training


class FileFacts(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """Step, layout, state of the training loop, and every file of a checkpoint."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    step: int
    world_size: int
    zero_stage: int
    state: dict[str, Any]
    files: dict[str, FileFacts]

    @property
    def num_bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


def seal(checkpoint: Path, step: int, world_size: int, zero_stage: int, state: dict[str, Any]) -> Manifest:
    """Hash the files of a folder and write its manifest."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    manifest = Manifest(
        step=step, world_size=world_size, zero_stage=zero_stage, state=state,
        files={str(file.relative_to(checkpoint)): facts for file, facts in zip(files, _facts(files), strict=True)},
    )  # fmt: skip
    values = manifest.model_dump()
    write_atomically(checkpoint / MANIFEST, json.dumps(values | {"sha256": _hash_of(values)}, indent=1))
    return manifest


def verify(checkpoint: Path) -> tuple[Manifest | None, str]:
    """Return the manifest and "" if every file matches it, else None and the problem."""
    try:
        values = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        if values.pop("sha256") != _hash_of(values):
            return None, f"{MANIFEST} is damaged"
        manifest = Manifest.model_validate(values)
        files = [checkpoint / name for name in manifest.files]
        for file, wanted in zip(files, manifest.files.values(), strict=True):
            if file.stat().st_size != wanted.bytes:
                return None, f"{file.relative_to(checkpoint)} is damaged"
        for file, wanted, found in zip(files, manifest.files.values(), _facts(files), strict=True):
            heartbeat(f"verifying {file}")
            if found != wanted:
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
