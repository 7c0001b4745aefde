"""The files of a checkpoint folder: config, safetensors headers and shards, hashes, and the base of an adapter.

Everything here reads headers and JSON alone and works before torch is imported, so that a missing or truncated file is
found in milliseconds, not after the optimizer is built.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from dcr_ds.errors import UserError
from dcr_ds.files import parse_json
from dcr_ds.models.architectures import check_can_be_cut, check_config

BLOCK = re.compile(r"(?:^|\.)layers\.(\d+)\.")  # the block number in the name of a weight
# Buffers that old checkpoints store, and that are computed when the model is built.
BUFFER = re.compile(r"(^|\.)(inv_freq|original_inv_freq|position_ids|num_batches_tracked|masked_bias|attn\.bias)$")
CHUNK_BYTES = 1 << 24
INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"
SHARD = re.compile(r"[^/\\\x00]+\.safetensors")
MAX_HEADER_BYTES = 100_000_000  # as in safetensors
FLOATS = ("F64", "F32", "BF16", "F16")  # dtypes of weights that are not quantised
BASE_RECORD = "base.json"  # next to an adapter written by this package: the base model it was trained on
BASELINE_RECORD = "baseline.json"  # what made a baseline: a hook on another model, or a model with changed weights
BASELINE_PROMPTS = "prompts.jsonl"  # next to it: the prompts that the baseline was made from
EXPORT_RECORD = "exported.json"  # in an exported folder: the stage or adapter on this machine that it was made of
# Files of a checkpoint that are downloaded and copied. No pickles.
FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt"]
TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template.*"
)  # fmt: skip
# Files that decide a model's answers: weights, architecture, tokenizer. Not README or sampling defaults.
HASHED_FILES = (
    "*.safetensors",
    "config.json",
    "adapter_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "vocab.*",
    "merges.txt",
)


def copied_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of a folder that are copied as they are, sorted.

    Raises:
        UserError: one is a symbolic link to a file outside of the folder, which could be any file of this machine, or
            is not a regular file.
    """
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if not path.is_dir()})
    root = folder.resolve()
    # the cache of the hub: models--OWNER--NAME/snapshots/COMMIT/config.json links to ../../blobs/HASH
    roots = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
    for path in files:
        target = path.resolve()
        if not any(target.is_relative_to(allowed) for allowed in roots):
            raise UserError(
                f"{path}: is a symbolic link to {target}, outside of the folder; replace it by the file, or remove it"
            )
        if not path.is_file():
            raise UserError(f"{path}: is not a regular file; replace it by the file, or remove it")
    return files


def model_config(folder: Path) -> dict:
    """Read config.json of a checkpoint folder."""
    file = folder / "config.json"
    try:
        config = parse_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder}: has no config.json; model.source must be a folder written by save_pretrained"
        ) from None
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}); copy the model again") from None
    if not isinstance(config, dict):
        raise UserError(f"{file}: must hold a JSON object, not a {type(config).__name__}; copy the model again")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: a single file, or the shards named by its index.

    Raises:
        UserError: there are none, a shard is missing, or both kinds are there.
    """
    index, single = folder / INDEX, folder / "model.safetensors"
    if index.is_file() and single.is_file():
        raise UserError(
            f"{folder}: holds both {single.name} and {INDEX} with its shards, perhaps of different models; remove the "
            "one that is not wanted (transformers would load the single file)"
        )
    if index.is_file():
        try:
            names = sorted(set(parse_json(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{index}: not a valid index of shards; copy the model again") from None
        if wrong := [str(name) for name in names if not SHARD.fullmatch(str(name))]:
            raise UserError(
                f"{index}: names the shard {wrong[0][:80]!r}; a shard is a .safetensors file in the same folder"
            )
        files = [folder / name for name in names]
        if missing := [file.name for file in files if not file.is_file()]:
            raise UserError(f"{folder}: {missing[0]} is missing (listed in {index.name}); copy the model again")
        return files
    if single.is_file():
        return [single]
    pickles = [file.name for file in folder.glob("*.bin")]
    hint = f"; {pickles[0]} is a pickle, which is never loaded: save the model as safetensors" if pickles else ""
    raise UserError(f"{folder}: no weights: neither model.safetensors nor an index of shards{hint}")


def check_checkpoint(folder: Path) -> None:
    """Raise UserError unless a checkpoint folder is complete, and a language model of one stack of blocks."""
    copied_files(folder, (*FILES[1:], *TOKENIZER_FILES))
    config = model_config(folder)
    check_config(folder, config)
    num_blocks = config["num_hidden_layers"]
    names = list(read_headers(folder))
    # transformers would initialise missing blocks at random
    stored = {match[1] for name in names if (match := BLOCK.search(name))}
    if not stored:
        raise UserError(
            f"{folder}: none of its weights belongs to a block (layers.0, layers.1, …), so {config['model_type']} "
            "cannot be trained here"
        )
    if len(stored) < num_blocks:
        raise UserError(
            f"{folder}: config.json says {num_blocks} blocks, but the weights hold {len(stored)}; copy the model again"
        )


def holds_hook(folder: Path) -> bool:
    """Whether a folder holds a hook on another model, and no model of its own."""
    return (folder / BASELINE_RECORD).is_file() and not (folder / "config.json").is_file()


def check_layer(folder: Path, layer: int) -> None:
    """Raise UserError unless stage 1 can cut the model after a block: 1 … L − 1."""
    config = model_config(folder)
    check_can_be_cut(folder, config)
    blocks = config["num_hidden_layers"]
    if not 1 <= layer < blocks:
        allowed = f"{blocks} blocks, so 1 to {blocks - 1}" if blocks > 1 else "1 block, and stage 1 needs 2"
        raise UserError(f"refine.layer: {layer} is out of range; {folder} has {allowed}")


def check_not_quantised(folder: Path) -> None:
    """Raise UserError if the weights of a checkpoint are quantised (bitsandbytes, GPTQ, AWQ, FP8, …)."""
    method = None
    config = model_config(folder).get("quantization_config") or model_config(folder).get("compression_config")
    if config:
        method = config.get("quant_method") if isinstance(config, dict) else None
        method = f"config.json says {method or 'quantization_config'}"
    else:
        weights = {name: entry for name, entry in read_headers(folder).items() if not BUFFER.search(name)}
        quantised = (name for name, entry in weights.items() if entry["dtype"] not in FLOATS)
        if name := next(quantised, None):
            method = f"{name} is {weights[name]['dtype']}"
    if method:
        raise UserError(
            f"{folder}: the weights are quantised already ({method}), and quantised weights can neither be trained nor "
            "take a merged adapter; use the original checkpoint in bfloat16 or float32 (for QLoRA, model.quantize: nf4 "
            "quantises it while loading)"
        )


def model_hash(folder: Path) -> str:
    """Short hash of the files that decide a model's answers: weights, config and tokenizer.

    The same model under another path has the same hash. `weights_hash` (hashes.py) is of the weights alone.
    """
    digest = hashlib.sha256()
    for path in sorted({path for pattern in HASHED_FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def base_of_adapter(folder: Path) -> str | None:
    """The base model named by an adapter in peft's format; None if the folder holds no adapter.

    Raises:
        UserError: it names no base model, or its weights are not safetensors.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        return None
    try:
        base = parse_json(file.read_bytes())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise UserError(f"{file}: names no base model; set base_model_name_or_path to its folder or hub id")
    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(
            f"{folder}: an adapter without adapter_model.safetensors; pickles are never loaded: save it as safetensors"
        )
    return base


def tokenizer_folder(source: Path, adapter: Path | None) -> Path:
    """The folder to load the tokenizer from: the adapter's if one was saved with it, else the checkpoint's."""
    return adapter if adapter is not None and (adapter / "tokenizer_config.json").is_file() else source


def read_headers(folder: Path) -> dict[str, dict]:
    """The entry of each tensor of a checkpoint, by name: `dtype`, `shape`, `data_offsets`, `file`, and `start` in it.

    Raises:
        UserError: a file is damaged, or two shards hold the same tensor.
    """
    headers: dict[str, dict] = {}
    for file in weight_files(folder):
        for name, entry in _read_header(file).items():
            if name in headers:
                raise UserError(
                    f"{folder}: {file.name} and {headers[name]['file'].name} both hold {name}; copy the model again"
                )
            headers[name] = entry | {"file": file}
    return headers


def stored_dtypes(folder: Path) -> set[str]:
    """The dtypes of a checkpoint's tensors, as in their headers: BF16, F32, …"""
    return {entry["dtype"] for name, entry in read_headers(folder).items() if not BUFFER.search(name)}


def _read_header(file: Path) -> dict[str, dict]:
    """Read the entry of each tensor from a safetensors file: 8 bytes of header size, the header, then the tensors.

    Raises:
        UserError: not a safetensors file, or its size does not match its header.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        try:
            if header_size + 8 > size:
                raise ValueError("the header is cut off")
            if header_size > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {header_size:,} bytes")
            header = parse_json(stream.read(header_size))
            if not isinstance(header, dict):
                raise ValueError("the header is no JSON object")
            data = 8 + header_size
            tensors = {
                name: entry | {"start": data + entry["data_offsets"][0]}
                for name, entry in header.items()
                if name != "__metadata__"
            }
            expected = data + max(tensor["data_offsets"][1] for tensor in tensors.values())
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{file}: not a complete safetensors file ({error}); copy it again") from None
    if expected != size:
        raise UserError(f"{file}: has {size} bytes, its header says {expected}: truncated; copy it again")
    return tensors
