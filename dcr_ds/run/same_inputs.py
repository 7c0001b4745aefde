"""All ranks train on the same inputs: each reads recipe, data and model itself, perhaps from files of its own node."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from dcr_ds.data.load import RunData
from dcr_ds.engine.agreement import check_same
from dcr_ds.engine.distributed import Ranks
from dcr_ds.files import hash_of
from dcr_ds.models.checkpoint_files import FILES, weight_files
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.urls import mask_secrets

SAMPLE_BYTES = 1 << 16  # of a file of weights at its begin, middle and end: a model has too many to read at each start


def check_same_inputs(recipe: Recipe, source: Path, data: RunData, ranks: Ranks) -> None:
    """Raise UserError on all ranks unless each has rank 0's recipe, data sets and source model. All ranks.

    The model's small files are compared completely, its weights by size and by a sample of their bytes.
    """
    check_same(lambda: dict(_inputs(recipe, source, data)), ranks)


def _inputs(recipe: Recipe, source: Path, data: RunData) -> Iterator[tuple[str, str]]:
    """Names and hashes of everything that a rank has read."""
    yield "recipe", hash_of(recipe.model_dump(mode="json"))
    for name, rows in (data.training_sets() | data.evaluation_sets()).items():
        yield f"data set {name} ({mask_secrets(rows.source)})", rows.sha256
    weights = weight_files(source)
    for path in sorted({path for pattern in FILES for path in source.glob(pattern)}):
        yield f"{path.name} of the model {recipe.model.source}", _hash_of(path, whole=path not in weights)


def _hash_of(path: Path, whole: bool) -> str:
    with path.open("rb") as stream:
        if whole:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        for start in (0, max(0, size // 2 - SAMPLE_BYTES // 2), max(0, size - SAMPLE_BYTES)):
            stream.seek(start)
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()
