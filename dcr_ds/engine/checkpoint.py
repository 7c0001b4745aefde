"""Checkpoints of a stage: whole or absent.

A checkpoint is written aside, hashed into a manifest, renamed, and `latest` is moved last. Before anybody loads,
rank 0 verifies the hashes and tells all ranks the verdict: an error caught on one rank alone would hang the rest.
The newest whole checkpoint is taken; where there are some and none is whole, that is an error, never a silent start
from scratch.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import deepspeed

from dcr_ds.engine.ranks import Ranks, barrier, from_main, say
from dcr_ds.errors import UserError
from dcr_ds.files import write_whole

MANIFEST = "manifest.json"


def save_checkpoint(
    engine: deepspeed.DeepSpeedEngine, folder: Path, step: int, state: dict[str, Any], keep: int, ranks: Ranks
) -> None:
    """Save the engine and a small JSON-able `state` as `folder/step-N`; keep the newest `keep`. All ranks."""
    final = folder / f"step-{step:08d}"
    partial = folder / f"{final.name}.partial"
    if ranks.is_main:
        shutil.rmtree(partial, ignore_errors=True)
    barrier(ranks)
    engine.save_checkpoint(str(folder), tag=partial.name, save_latest=False, exclude_frozen_parameters=True)
    barrier(ranks)
    if ranks.is_main:
        files = {
            str(file.relative_to(partial)): {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            for file in sorted(partial.rglob("*"))
            if file.is_file()
        }
        write_whole(
            partial / MANIFEST,
            json.dumps({"step": step, "world_size": ranks.world_size, "state": state, "files": files}, indent=1),
        )
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        write_whole(folder / "latest", final.name)
        saved = _steps(folder)
        kept = [path for path in saved if path.name <= final.name][:keep]  # a later one was not whole, or was passed by
        for path in set(saved) - set(kept):
            shutil.rmtree(path, ignore_errors=True)
    barrier(ranks)


def load_newest(engine: deepspeed.DeepSpeedEngine, folder: Path, ranks: Ranks) -> tuple[int, dict[str, Any]] | None:
    """Load the newest whole checkpoint into the engine: (step, state), or None where none was ever saved. All ranks.

    Raises:
        UserError: there are checkpoints and none is whole, or it was saved by another number of ranks.
    """
    verdict = from_main(_newest_whole(folder) if ranks.is_main else None, ranks)
    for name, fault in verdict["broken"]:
        say(ranks, f"{folder / name}: not whole ({fault}); looking for an older one")
    if verdict["manifest"] is None:
        if verdict["broken"]:
            raise UserError(f"{folder}: no whole checkpoint is left; remove the folder to start this stage anew")
        return None
    manifest = verdict["manifest"]
    if manifest["world_size"] != ranks.world_size:
        raise UserError(
            f"{folder / verdict['name']}: saved by {manifest['world_size']} ranks, this run has {ranks.world_size}; "
            "launch with as many, or start the stage anew with --redo"
        )
    path, _ = engine.load_checkpoint(str(folder), tag=verdict["name"], load_module_strict=False)
    if path is None:
        raise RuntimeError(f"{folder / verdict['name']}: DeepSpeed loaded nothing")
    say(ranks, f"going on from {folder / verdict['name']}")
    return manifest["step"], manifest["state"]


def _steps(folder: Path) -> list[Path]:
    """Finished checkpoints, the newest first."""
    return sorted((path for path in folder.glob("step-????????") if path.is_dir()), reverse=True)


def _newest_whole(folder: Path) -> dict[str, Any]:
    broken = []
    for path in _steps(folder):
        manifest, fault = _verify(path)
        if not fault:
            return {"name": path.name, "manifest": manifest, "broken": broken}
        broken.append((path.name, fault))
    return {"name": None, "manifest": None, "broken": broken}


def _verify(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The manifest of a checkpoint, and what is wrong with its files ("" if nothing)."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, wanted in manifest["files"].items():
            if (path / name).stat().st_size != wanted["bytes"] or _sha256(path / name) != wanted["sha256"]:
                return None, f"{name} is damaged"
    except FileNotFoundError as error:
        return None, f"{Path(error.filename).name} is missing"
    except OSError as error:  # raised on rank 0 alone, it would leave the others waiting
        return None, str(error)
    except (ValueError, KeyError, TypeError):
        return None, f"{MANIFEST} is damaged"
    return manifest, ""


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
