"""Atomic checkpoints of a training stage.

A checkpoint is written to a temporary folder, flushed to disk, hashed into a manifest and renamed; `latest` is
updated last, and only then are older checkpoints removed. Training waits while DeepSpeed writes its files, since the
weights must not change; hashing, renaming and rotation follow in a thread of rank 0 while training continues, for one
checkpoint at a time. It is complete only with the files of all ranks: a save fails, and older checkpoints stay, where
rank 0 does not see what other nodes have written. Before any rank loads, rank 0 verifies the hashes and broadcasts the
result: an error on one rank alone would leave the others waiting. The newest complete checkpoint is loaded. If there
are checkpoints and none is complete, that is an error, never a silent start from scratch.
"""

import platform
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from dcr_ds.engine.checkpoint.manifest import Manifest, Saved, seal, verify
from dcr_ds.engine.checkpoint.universal import LAYOUTS, convert
from dcr_ds.engine.deepspeed_import import deepspeed
from dcr_ds.engine.distributed import (
    VISIBLE_SECONDS,
    Ranks,
    barrier,
    broadcast_from_main,
    gather_objects,
    print_on_main,
    wait_until_visible,
)
from dcr_ds.engine.snapshot import Snapshot
from dcr_ds.engine.weights import full_shape
from dcr_ds.errors import UserError
from dcr_ds.files import flush, free_bytes, hash_of, write_atomically
from dcr_ds.progress import heartbeat, heartbeat_while_moving

BYTES_PER_WEIGHT = 16  # at most: the weight, its fp32 master and AdamW's two moments
SLOW_DISK = 100e6  # bytes per second and node
SPARE = 1.05  # expected size of a checkpoint relative to the last one: small files, blocks that are not full


class Checkpoints:
    """The checkpoints of a stage in one folder. Every method: all ranks."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine, folder: Path, keep: int, ranks: Ranks):
        """
        Args:
            keep: number of checkpoints to keep, the newest.
        """
        self.engine, self.folder, self.keep, self.ranks = engine, folder, keep, ranks
        self._seconds: float | None = None  # that the last save took until it was complete; measured on rank 0
        num_nodes = sum(gather_objects(ranks.local_rank == 0, ranks))
        self._num_writers = num_nodes if engine.zero_optimization_stage() else 1  # without ZeRO rank 0 writes alone
        self.expected_bytes = int(BYTES_PER_WEIGHT * num_trained(engine.module))
        self._last_step: int | None = None  # of the checkpoint that was saved or loaded last
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._sealing: Future[None] | None = None

    def save(self, step: int, state: dict[str, Any], snapshot: Snapshot | None = None) -> None:
        """Save the engine and a small JSON-able `state` as step-N; nothing where step N was just saved or loaded.

        Args:
            snapshot: earlier weights that the checkpoint keeps as well; `snapshot.read(path(step))` reads them.

        Returns as soon as training may continue; `wait_until_saved` waits until the checkpoint is complete.

        Raises:
            UserError: the disk has not enough space left for it, or rank 0 does not see the files of another node.
                The checkpoints before it are kept.
            OSError: it, or the one before, cannot be written. The last whole one is kept.
        """
        if step == self._last_step:
            return
        self.wait_until_saved()
        started = time.monotonic()
        final = self.path(step)
        partial = self.folder / f"{final.name}.partial"
        needed = self.expected_bytes + (snapshot.num_bytes if snapshot else 0)
        problem = broadcast_from_main(self._make_room(partial, needed) if self.ranks.is_main else None, self.ranks)
        if problem:
            raise UserError(problem)
        with heartbeat_while_moving(f"saving {final}"):
            self.engine.save_checkpoint(
                str(self.folder), tag=partial.name, save_latest=False, exclude_frozen_parameters=True
            )
            if snapshot:
                snapshot.write(partial)
            if self.ranks.local_rank == 0:  # files of this node, before an older checkpoint is removed
                for file in sorted(partial.rglob("*"), reverse=True):
                    flush(file)
                    heartbeat(f"flushing {file}")
        self._check_shared(partial)
        if self.ranks.is_main:
            zero_stage = self.engine.zero_optimization_stage()
            names = parameters_hash(self.engine.module)
            saved = Saved(step, self.ranks.world_size, zero_stage, deepcopy(state), started, names)
            self._sealing = self._thread.submit(self._seal, partial, final, saved)
        self._last_step = step

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.folder / f"step-{step:08d}"

    @property
    def expected_seconds(self) -> float:
        """Expected duration of a save: that of the last one, also of an earlier attempt, else a slow disk's. Rank 0."""
        return self.expected_bytes / SLOW_DISK / self._num_writers if self._seconds is None else self._seconds

    def wait_until_saved(self) -> None:
        """Wait until the last save is complete and on disk; an error of its thread is raised on all ranks."""
        with heartbeat_while_moving(f"hashing a checkpoint in {self.folder}"):
            error = self._sealing.exception() if self._sealing else None
        self._sealing = None
        if error := broadcast_from_main(error, self.ranks):
            raise error

    def close(self) -> None:
        """Wait for the thread and drop its error. Not a collective."""
        self._thread.shutdown()

    def load_newest(self) -> tuple[int, dict[str, Any]] | None:
        """Load the newest complete checkpoint into the engine.

        A checkpoint of another number of ranks is converted first, into a temporary folder next to it.

        Returns:
            Step and state, or None if no checkpoint was ever saved.

        Raises:
            UserError: there are checkpoints and none is complete, or it cannot be loaded under this ZeRO stage.
        """
        with heartbeat_while_moving(f"verifying checkpoints in {self.folder}"):
            name, manifest, broken = broadcast_from_main(
                newest_complete(self.folder) if self.ranks.is_main else None, self.ranks
            )
        for path, problem in broken:
            print_on_main(self.ranks, f"{self.folder / path}: incomplete ({problem}); looking for an older one")
        if manifest is None:
            if broken:
                raise UserError(
                    f"{self.folder}: no complete checkpoint is left; remove the folder to start this stage again"
                )
            return None
        zero_stage = self.engine.zero_optimization_stage()
        if LAYOUTS[manifest.zero_stage] != LAYOUTS[zero_stage]:
            raise UserError(
                f"{self.folder / name}: saved under ZeRO stage {manifest.zero_stage}, which stage {zero_stage} cannot "
                f"load; use a --deepspeed of stage {manifest.zero_stage}, or start the stage again with --redo"
            )
        if manifest.parameters != parameters_hash(self.engine.module):
            raise UserError(
                f"{self.folder / name}: holds other parameters than this version of the project and its packages "
                "trains; resume with the versions that saved it, or start the stage again with --redo"
            )
        as_saved = (manifest.world_size, manifest.zero_stage) == (self.ranks.world_size, zero_stage)
        if as_saved or zero_stage == 0:  # without ZeRO every rank has the full state
            self._load(name)
        else:
            self._load_converted(name, manifest)
        print_on_main(self.ranks, f"resuming from {self.folder / name}")
        self.expected_bytes, self._last_step = int(SPARE * manifest.num_bytes), manifest.step
        self._seconds = manifest.seconds
        return manifest.step, manifest.state

    def _load(self, name: str) -> None:
        wait_until_visible(_files(self.folder / name), self.ranks)
        with heartbeat_while_moving(f"loading {self.folder / name}"):
            try:
                path, _ = self.engine.load_checkpoint(str(self.folder), tag=name, load_module_strict=False)
            except ValueError as error:  # of PyTorch's optimizer
                if "parameter group" not in str(error):
                    raise
                raise UserError(
                    f"{self.folder / name}: saved with another sub_group_size of zero_optimization; resume with the "
                    "one that it was saved with, or start the stage again with --redo"
                ) from None
        if path is None:
            raise RuntimeError(f"{self.folder / name}: DeepSpeed loaded nothing")

    def _load_converted(self, name: str, manifest: Manifest) -> None:
        print_on_main(
            self.ranks,
            f"{self.folder / name}: saved by {manifest.world_size} ranks under ZeRO stage {manifest.zero_stage}; "
            f"converting it for {self.ranks.world_size}",
        )
        universal = self.folder / f"{name}.universal"
        problem = None
        if self.ranks.is_main:
            problem = self._make_room(universal, manifest.num_bytes) or convert(self.folder / name, universal)
        if problem := broadcast_from_main(problem, self.ranks):
            raise UserError(f"{problem}; or launch with {manifest.world_size} ranks, as it was saved")
        # usually set in the configuration, before it is known here
        self.engine._config.load_universal_checkpoint = True
        decays = [group["weight_decay"] for group in self.engine.optimizer.param_groups]
        self._load(universal.name)
        _separate_groups(self.engine.optimizer, decays)
        self.engine._config.load_universal_checkpoint = False
        barrier(self.ranks)
        if self.ranks.is_main:
            shutil.rmtree(universal, ignore_errors=True)

    def _make_room(self, partial: Path, needed: int) -> str:
        """Remove what an earlier attempt left; return "" or why there is too little space, in bytes. Rank 0."""
        shutil.rmtree(partial, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = free_bytes(self.folder)
        if free is None or free >= needed:
            return ""
        return (
            f"{partial}: needs {_gigabytes(needed)} and the disk has {_gigabytes(free)} left. Earlier checkpoints are "
            "kept: free some space and run the same command again"
        )

    def _check_shared(self, partial: Path) -> None:
        """Raise UserError on all ranks unless rank 0 sees what every node has written. All ranks."""
        names = [str(path.relative_to(partial)) for path in _files(partial)] if self.ranks.local_rank == 0 else []
        written = gather_objects((platform.node(), names), self.ranks)
        if problem := broadcast_from_main(_unseen(partial, written) if self.ranks.is_main else "", self.ranks):
            raise UserError(problem)

    def _seal(self, partial: Path, final: Path, saved: Saved) -> None:
        """Turn a folder of written files into a checkpoint and remove those it replaces. Rank 0, in the thread."""
        manifest = seal(partial, saved)
        shutil.rmtree(final, ignore_errors=True)  # exists only if it was damaged and training has passed it again
        partial.rename(final)
        write_atomically(self.folder / "latest", final.name)
        flush(self.folder)
        steps = _steps(self.folder)
        kept = [path for path in steps if path.name <= final.name][: self.keep]  # a later one was skipped as damaged
        for path in set(steps) - set(kept):
            shutil.rmtree(path, ignore_errors=True)
        self.expected_bytes, self._seconds = int(SPARE * manifest.num_bytes), time.monotonic() - saved.started


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a stage that is done; of a link, as to a larger disk, those in its folder. Rank 0."""
    if folder.is_symlink():  # which rmtree refuses
        (folder / "latest").unlink(missing_ok=True)
        for path in folder.glob("step-*"):
            shutil.rmtree(path, ignore_errors=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _separate_groups(optimizer: Any, decays: Sequence[float]) -> None:
    """Separate what DeepSpeed 0.19 shares between groups of parameters when ZeRO-3 loads a converted checkpoint.

    All get the weight decay of the first group, and one tensor that counts the steps, which each of them increments.
    """
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    for state in getattr(optimizer, "optimizer", optimizer).state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


def newest_complete(folder: Path) -> tuple[str, Manifest | None, list[tuple[str, str]]]:
    """Return name and manifest of the newest complete checkpoint, and the skipped ones with their problems."""
    broken: list[tuple[str, str]] = []
    for path in _steps(folder):
        manifest, problem = verify(path)
        if manifest:
            return path.name, manifest, broken
        broken.append((path.name, problem))
    return "", None, broken


def parameters_hash(module: torch.nn.Module) -> str:
    """Hash of the names and shapes of a model's trainable weights, which does not depend on ranks and ZeRO stage."""
    trained = ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)
    return hash_of([[name, list(full_shape(parameter))] for name, parameter in trained])


def num_trained(module: torch.nn.Module) -> int:
    """Count the trainable weights of a model, including the partitions of other ranks."""
    trained = (parameter for parameter in module.parameters() if parameter.requires_grad)
    return sum(full_shape(parameter).numel() for parameter in trained)


def _steps(folder: Path) -> list[Path]:
    """Return the finished checkpoints, newest first."""
    return sorted((path for path in folder.glob("step-????????") if path.is_dir()), reverse=True)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _unseen(partial: Path, written: list[tuple[str, list[str]]]) -> str:
    """Return "" once this rank sees every file that a node has written, or which one it does not see."""
    deadline = time.monotonic() + VISIBLE_SECONDS
    for node, names in written:
        for name in names:
            while not (partial / name).is_file():
                if time.monotonic() > deadline:
                    return (
                        f"{partial / name}: written on node {node}, and not visible to rank 0. Earlier checkpoints are "
                        "kept; all nodes must share the run folder: set --output to a shared file system"
                    )
                time.sleep(0.1)
    return ""


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
