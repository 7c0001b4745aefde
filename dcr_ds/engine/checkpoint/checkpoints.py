"""Checkpoints of a stage: whole or absent.

A checkpoint is written aside, flushed to the disk, hashed into a manifest, renamed, and `latest` is moved last; only
then are older ones removed. DeepSpeed's files are written while the training waits, since the weights must not move;
hash, rename and rotation follow in a thread of rank 0 while it goes on, for one checkpoint at a time. Before anybody
loads, rank 0 verifies the hashes and tells all ranks the verdict: an error caught on one rank alone would hang the
rest. The newest whole checkpoint is taken; where there are some and none is whole, that is an error, never a silent
start from scratch.
"""

import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import deepspeed
import torch

from dcr_ds.engine.checkpoint.manifest import Manifest, seal, verify
from dcr_ds.engine.checkpoint.universal import LAYOUTS, convert
from dcr_ds.engine.distributed import Ranks, barrier, broadcast_from_main, print_on_main
from dcr_ds.engine.snapshot import Snapshot
from dcr_ds.errors import UserError
from dcr_ds.files import flush, write_atomically

BYTES_A_WEIGHT = 16  # at most: the weight, its fp32 master and AdamW's two moments
SLOW_DISK = 100e6  # bytes a second
SPARE = 1.05  # of the bytes a checkpoint is expected to take: its small files, and blocks that are not full


class Checkpoints:
    """The checkpoints of a stage in one folder. Every method: all ranks."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine, folder: Path, keep: int, ranks: Ranks):
        """
        Args:
            keep: so many of the newest are kept.
        """
        self.engine, self.folder, self.keep, self.ranks = engine, folder, keep, ranks
        self._seconds: float | None = None  # of the last save, from its beginning until it was whole; rank 0
        self.expected_bytes = int(BYTES_A_WEIGHT * num_trained(engine.module))
        self._last_step: int | None = None  # of the one saved or loaded last, which is whole
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._sealing: Future[None] | None = None

    def save(self, step: int, state: dict[str, Any], snapshot: Snapshot | None = None) -> None:
        """Save the engine and a small JSON-able `state` as step-N; nothing where step N was just saved or loaded.

        Args:
            snapshot: earlier weights that the checkpoint keeps as well; `snapshot.read(path(step))` reads them.

        Returns as soon as training may go on; `wait_until_saved` waits until the checkpoint is whole.

        Raises:
            UserError: the disk has not enough space left for it. The checkpoints before it are kept.
            OSError: it, or the one before, cannot be written. The last whole one is kept.
        """
        if step == self._last_step:
            return
        self.wait_until_saved()
        started = time.monotonic()
        final = self.path(step)
        partial = self.folder / f"{final.name}.partial"
        needed = self.expected_bytes + (snapshot.num_bytes if snapshot else 0)
        fault = broadcast_from_main(self._make_room(partial, needed) if self.ranks.is_main else None, self.ranks)
        if fault:
            raise UserError(fault)
        self.engine.save_checkpoint(
            str(self.folder), tag=partial.name, save_latest=False, exclude_frozen_parameters=True
        )
        if snapshot:
            snapshot.write(partial)
        if self.ranks.local_rank == 0:  # what this node has written, before an older checkpoint may go
            for file in sorted(partial.rglob("*"), reverse=True):
                flush(file)
        barrier(self.ranks)
        if self.ranks.is_main:
            self._sealing = self._thread.submit(self._seal, partial, final, step, deepcopy(state), started)
        self._last_step = step

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.folder / f"step-{step:08d}"

    @property
    def expected_seconds(self) -> float:
        """How long a save takes: as long as the last one took on rank 0, or else at a slow disk's speed."""
        return self.expected_bytes / SLOW_DISK if self._seconds is None else self._seconds

    def wait_until_saved(self) -> None:
        """Wait until the last save is whole and on the disk; an error of its thread is raised on all ranks."""
        error = self._sealing.exception() if self._sealing else None
        self._sealing = None
        if error := broadcast_from_main(error, self.ranks):
            raise error

    def close(self) -> None:
        """Wait for the thread; an error of it is left untold. On one rank alone."""
        self._thread.shutdown()

    def load_newest(self) -> tuple[int, dict[str, Any]] | None:
        """Load the newest whole checkpoint into the engine: (step, state), or None where none was ever saved.

        One saved by another number of ranks is converted first, into a folder beside it that is removed again.

        Raises:
            UserError: there are checkpoints and none is whole, or it cannot be loaded under this ZeRO stage.
        """
        name, manifest, broken = broadcast_from_main(
            newest_whole(self.folder) if self.ranks.is_main else None, self.ranks
        )
        for each, fault in broken:
            print_on_main(self.ranks, f"{self.folder / each}: not whole ({fault}); looking for an older one")
        if manifest is None:
            if broken:
                raise UserError(
                    f"{self.folder}: no whole checkpoint is left; remove the folder to start this stage anew"
                )
            return None
        zero_stage = self.engine.zero_optimization_stage()
        if LAYOUTS[manifest.zero_stage] != LAYOUTS[zero_stage]:
            raise UserError(
                f"{self.folder / name}: saved under ZeRO stage {manifest.zero_stage}, which stage {zero_stage} cannot "
                f"load; go on with a --deepspeed of stage {manifest.zero_stage}, or start the stage anew with --redo"
            )
        as_saved = (manifest.world_size, manifest.zero_stage) == (self.ranks.world_size, zero_stage)
        if as_saved or zero_stage == 0:  # without ZeRO every rank has the whole state
            self._load(name)
        else:
            self._load_converted(name, manifest)
        print_on_main(self.ranks, f"going on from {self.folder / name}")
        self.expected_bytes, self._last_step = int(SPARE * manifest.num_bytes), manifest.step
        return manifest.step, manifest.state

    def _load(self, name: str) -> None:
        path, _ = self.engine.load_checkpoint(str(self.folder), tag=name, load_module_strict=False)
        if path is None:
            raise RuntimeError(f"{self.folder / name}: DeepSpeed loaded nothing")

    def _load_converted(self, name: str, manifest: Manifest) -> None:
        print_on_main(
            self.ranks,
            f"{self.folder / name}: saved by {manifest.world_size} ranks under ZeRO stage {manifest.zero_stage}; "
            f"converting it for {self.ranks.world_size}",
        )
        universal = self.folder / f"{name}.universal"
        fault = None
        if self.ranks.is_main:
            fault = self._make_room(universal, manifest.num_bytes) or convert(self.folder / name, universal)
        if fault := broadcast_from_main(fault, self.ranks):
            raise UserError(f"{fault}; or launch with {manifest.world_size} ranks, as it was saved")
        self.engine._config.load_universal_checkpoint = True  # as its configuration says it, before it is known
        self._load(universal.name)
        self.engine._config.load_universal_checkpoint = False
        barrier(self.ranks)
        if self.ranks.is_main:
            shutil.rmtree(universal, ignore_errors=True)

    def _make_room(self, partial: Path, needed: int | None = None) -> str:
        """Remove what an earlier attempt left; "", or why there is no room for another. Rank 0."""
        needed = self.expected_bytes if needed is None else needed
        shutil.rmtree(partial, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free >= needed:
            return ""
        return (
            f"{partial}: needs {_gigabytes(needed)} and the disk has {_gigabytes(free)} left; the checkpoints before "
            "it are kept: free some space, and the same command goes on from them"
        )

    def _seal(self, partial: Path, final: Path, step: int, state: dict[str, Any], started: float) -> None:
        """Make a folder of written files a checkpoint, and remove the ones it replaces. Rank 0, in the thread."""
        manifest = seal(partial, step, self.ranks.world_size, self.engine.zero_optimization_stage(), state)
        shutil.rmtree(final, ignore_errors=True)  # only one that was found damaged, and trained past again
        partial.rename(final)
        write_atomically(self.folder / "latest", final.name)
        flush(self.folder)
        saved = _steps(self.folder)
        kept = [path for path in saved if path.name <= final.name][: self.keep]  # a later one was passed by as damaged
        for path in set(saved) - set(kept):
            shutil.rmtree(path, ignore_errors=True)
        self.expected_bytes, self._seconds = int(SPARE * manifest.num_bytes), time.monotonic() - started


def newest_whole(folder: Path) -> tuple[str, Manifest | None, list[tuple[str, str]]]:
    """The newest whole checkpoint of a folder and its manifest, and those passed over, each with what is wrong."""
    broken: list[tuple[str, str]] = []
    for path in _steps(folder):
        manifest, fault = verify(path)
        if manifest:
            return path.name, manifest, broken
        broken.append((path.name, fault))
    return "", None, broken


def num_trained(module: torch.nn.Module) -> int:
    """Trainable weights of a model, those of other ranks' partitions included."""
    trained = (parameter for parameter in module.parameters() if parameter.requires_grad)
    return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in trained)


def _steps(folder: Path) -> list[Path]:
    """Finished checkpoints, the newest first."""
    return sorted((path for path in folder.glob("step-????????") if path.is_dir()), reverse=True)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
