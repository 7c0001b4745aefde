"""Write a copy of a checkpoint with trained weights in it, by one process or by all ranks of a run.

Weights are read one at a time, and each file is written by one rank, so no process holds more than a few gigabytes.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from dcr_ds.errors import UserError, write_errors_as_user_errors
from dcr_ds.files import flush, parse_json, write_json
from dcr_ds.models.checkpoint_files import BASELINE_RECORD, FILES, HEAD, INDEX, copied_files, model_config, read_headers
from dcr_ds.models.hashes import remember_hash
from dcr_ds.models.shards import DTYPES, Shard, ShardWriter, index_of, needs_index, plan_shards
from dcr_ds.progress import heartbeat

VISIBLE_SECONDS = 60.0  # network file systems cache what a folder holds for up to this long
Value = TypeVar("Value")


class Processes(Protocol):
    """The processes that write a model together. Every method is called by all of them."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order of rank, on all of them."""

    def decide(self, decide: Callable[[], Value]) -> Value:
        """What rank 0 returns, or raises, on all of them."""

    def wait_until_visible(self, folder: Path) -> None:
        """Wait until all of them see what rank 0 has written into a folder."""


class Alone:
    """One process."""

    rank, world_size = 0, 1

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def decide(self, decide: Callable[[], Value]) -> Value:
        return decide()

    def wait_until_visible(self, folder: Path) -> None:
        pass


ALONE = Alone()


class Weights(Protocol):
    """Trained weights, not partitioned, read one at a time.

    Attributes:
        shapes: shape of each weight by name.
        processes: all of them call `read` for the same names in the same order.
    """

    @property
    def shapes(self) -> Mapping[str, Sequence[int]]: ...

    @property
    def processes(self) -> Processes: ...

    def read(self, name: str, wanted: bool) -> torch.Tensor | None:
        """The weight on the CPU where it is wanted."""


class HeldWeights:
    """Weights in the memory of one process."""

    processes = ALONE

    def __init__(self, weights: Mapping[str, torch.Tensor]):
        self._weights = weights
        self.shapes = {name: weight.shape for name, weight in weights.items()}

    def read(self, name: str, wanted: bool) -> torch.Tensor | None:
        return self._weights[name].detach() if wanted else None


def read_all(weights: Weights, wanted: bool) -> dict[str, torch.Tensor]:
    """All weights, in memory: for adapters and small models. All processes of the weights."""
    read = ((name, weights.read(name, wanted)) for name in weights.shapes)
    return {name: weight for name, weight in read if weight is not None}


def splice(
    model: PreTrainedModel,
    trained: Weights | Mapping[str, torch.Tensor],
    source: Path,
    target: Path,
    prefix: str = "",
    untie: bool = False,
) -> None:
    """Write a copy of the source checkpoint with a model's trained weights in it. All processes of `trained`.

    Written in the dtypes and file layout of the source, except that files above `MAX_SHARD_BYTES` are split, into a
    temporary folder that is renamed at the end. Every other tensor keeps its bytes. A tied head that the source stores
    a second time is left out: next to changed embeddings, transformers would load the two untied.

    Args:
        model: the trunk, or a whole model; its own weights are not read.
        trained: its trainable parameters by name.
        prefix: prefix of the model's parameter names in the source: "model." for a trunk, none for a whole model.
        untie: write the source's input embeddings as the head of a tied model, and say so in its config.json. Changed
            embeddings then leave the head as it is.

    Raises:
        RuntimeError: the source has no tensor for a trained one, or one of another shape.
        UserError: a process cannot write its files; the same on all processes.
    """
    weights: Weights = HeldWeights(trained) if isinstance(trained, Mapping) else trained
    processes = weights.processes
    names = set(read_headers(source))
    is_tied = model.config.tie_word_embeddings
    kept = names - {HEAD} if is_tied else names
    copies = {HEAD: model.all_tied_weights_keys[HEAD]} if is_tied and untie else {}
    pieces = Pieces(model, weights, prefix)
    shards = plan_shards(source, kept, copies)
    _check_pieces(source, shards, pieces.shapes)
    partial = unfinished(target)
    processes.decide(lambda: _prepare(source, partial))
    processes.wait_until_visible(partial)
    digests = _write(weights, pieces, shards, partial)

    def finish() -> None:
        _finish(source, partial, shards, {*kept, *copies} != names)
        if copies:
            write_json(partial / "config.json", model_config(source) | {"tie_word_embeddings": False})
        shutil.rmtree(target.resolve(), ignore_errors=True)
        partial.rename(target.resolve())
        remember_hash(target, digests)

    processes.decide(finish)


def unfinished(target: Path) -> Path:
    """The folder in which a model is written; an interrupted export leaves it, and the next one removes it.

    Of a link, as to a larger disk, it is next to the folder that the link names.
    """
    target = target.resolve()
    return target.with_name(target.name + ".partial")


class Pieces:
    """The tensors of a checkpoint that hold trained weights: several per weight where transformers fused experts.

    Attributes:
        names: the tensors of each trained weight. A weight that is tied to another one has none and is left out.
        shapes: of all these tensors.
    """

    def __init__(self, model: PreTrainedModel, weights: Weights, prefix: str):
        self._model, self._prefix = model, prefix
        empty = {
            name: torch.empty(tuple(shape), device="meta")
            for name, shape in weights.shapes.items()
            if name not in model.all_tied_weights_keys
        }
        self._is_same = set(revert_weight_conversion(model, empty)) == set(empty)
        pieces = {name: self.of(name, tensor) for name, tensor in empty.items()}
        self.names = {name: list(tensors) for name, tensors in pieces.items()}
        self.shapes = {name: tuple(tensor.shape) for tensors in pieces.values() for name, tensor in tensors.items()}

    def of(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors of a weight by their names in the checkpoint."""
        pieces = {name: weight} if self._is_same else revert_weight_conversion(self._model, {name: weight})
        return {self._prefix + piece: tensor for piece, tensor in pieces.items()}


def _check_pieces(source: Path, shards: Sequence[Shard], shapes: Mapping[str, tuple[int, ...]]) -> None:
    stored = {tensor.name: tensor for shard in shards for tensor in shard.tensors}
    if left := [name for name in shapes if name not in stored]:
        raise RuntimeError(f"{source} has no tensor for {sorted(left)[:3]}")
    for name, shape in shapes.items():
        if stored[name].shape != shape:
            raise RuntimeError(f"{name}: {shape}, the source has {stored[name].shape}")
        if stored[name].dtype not in DTYPES:
            raise RuntimeError(f"{name}: trained, and stored as {stored[name].dtype} in the source")


def _prepare(source: Path, partial: Path) -> None:
    """Create the folder with everything except weights. Rank 0."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in copied_files(source, FILES[1:]):
        if file.name != BASELINE_RECORD:  # says what made the source's weights
            shutil.copyfile(file, partial / file.name)  # without the mode: the source's files may be read-only


def _write(weights: Weights, pieces: Pieces, shards: Sequence[Shard], partial: Path) -> dict[str, str]:
    """Write all tensors, each file by one process; returns the hash of each tensor.

    Raises:
        UserError: a process could not write; the same on all processes.
    """
    rank, world_size = weights.processes.rank, weights.processes.world_size
    owner = {tensor.name: index % world_size for index, shard in enumerate(shards) for tensor in shard.tensors}
    writer = ShardWriter(partial, shards[rank::world_size], is_reported=rank == 0)
    problem: Exception | None = None
    try:
        for name in _in_turn(pieces, owner, world_size):
            own = [piece for piece in pieces.names[name] if owner[piece] == rank]
            weight = weights.read(name, bool(own))
            heartbeat(f"reading {name}")
            if weight is not None:
                tensors = pieces.of(name, weight)
                for piece in own:
                    writer.put(piece, tensors[piece])
        for piece in (piece for piece in owner if owner[piece] == rank and piece not in pieces.shapes):
            writer.copy(piece)
        try:
            with write_errors_as_user_errors(partial):
                writer.finish()
        except (UserError, OSError, RuntimeError) as error:
            problem = error
    finally:
        writer.close()
    results = weights.processes.gather((writer.digests, problem))
    if problems := [error for _, error in results if error is not None]:
        raise problems[0]
    return {name: digest for digests, _ in results for name, digest in digests.items()}


def _in_turn(pieces: Pieces, owner: Mapping[str, int], world_size: int) -> Iterator[str]:
    """The trained weights, in turn of the process that writes their first piece, so that all write at once."""
    by_owner: list[list[str]] = [[] for _ in range(world_size)]
    for name, names in pieces.names.items():
        by_owner[owner[names[0]]].append(name)
    for turn in zip_longest(*by_owner):
        yield from (name for name in turn if name is not None)


def _finish(source: Path, partial: Path, shards: Sequence[Shard], are_others: bool) -> None:
    """Check the sizes of the files, and write the index. Rank 0.

    Args:
        are_others: the tensors are not those that the source's index lists.
    """
    for shard in shards:
        _wait_for(partial / shard.name, len(shard.header()) + shard.size)
    index = _read_index(source)
    if not needs_index(shards):
        (partial / INDEX).unlink(missing_ok=True)
    elif are_others or {shard.name for shard in shards} != set(index.get("weight_map", {}).values()):
        write_json(partial / INDEX, index_of(shards, index.get("metadata")))
    flush(partial)


def _read_index(folder: Path) -> dict[str, Any]:
    file = folder / INDEX
    return parse_json(file.read_bytes()) if file.is_file() else {}


def _wait_for(file: Path, size: int) -> None:
    """Wait until this node sees all bytes of a file that another node may have written.

    Raises:
        UserError: it does not see them.
    """
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not file.is_file() or file.stat().st_size != size:
        if time.monotonic() > deadline:
            seen = f"{file.stat().st_size} bytes" if file.is_file() else "nothing"
            raise UserError(
                f"{file}: {size} bytes were written, and rank 0 sees {seen}; all nodes must share the run folder: set "
                "--output to a shared file system"
            )
        time.sleep(0.1)
