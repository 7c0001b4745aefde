"""GGUF files for llama.cpp and Ollama, written by the converter of a llama.cpp checkout.

No package converts every architecture, and a file whose pre-tokenizer is not named as llama.cpp knows it is read with
other tokens without an error, so dcr-ds has no converter of its own.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gguf import GGUFReader

from dcr_ds.errors import UserError
from dcr_ds.export.modelfile import write_modelfile
from dcr_ds.export.write import ExportOptions, export, new_folder
from dcr_ds.models.checkpoint_files import EXPORT_RECORD

SCRIPT = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP"
SHOWN_LINES = 5  # of a converter that fails
REQUIREMENTS = "pip install -r requirements/requirements-convert_hf_to_gguf.txt"


def find_converter(named: Path | None) -> list[str]:
    """The command of llama.cpp's converter: as named, in the folder of $LLAMA_CPP, or in PATH.

    Args:
        named: the script, or a checkout of llama.cpp.

    Raises:
        UserError: there is none.
    """
    place = named or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if place is None:
        if program := shutil.which(SCRIPT):
            return [program]
        raise UserError(
            f"--gguf: needs llama.cpp's {SCRIPT}, which is not in PATH; name a checkout of llama.cpp with --converter "
            f"or ${VARIABLE}, and install what it needs ({REQUIREMENTS})"
        )
    script = place / SCRIPT if place.is_dir() else place
    if not script.is_file():
        raise UserError(
            f"{'--converter' if named else f'${VARIABLE}'}: no file {script}; name a checkout of llama.cpp, or its "
            f"{SCRIPT}"
        )
    return [sys.executable, str(script)]


def export_gguf(trained: Path, out: Path, options: ExportOptions, kind: str, converter: Sequence[str]) -> str:
    """Write the model of a run, a checkpoint or an adapter as a GGUF file with an Ollama Modelfile to `out`.

    Adapters are merged. The folder is complete or absent, as with `export`.

    Args:
        kind: a type that the converter writes: f32, f16, bf16, q8_0.
        converter: from `find_converter`.

    Returns: a short description.

    Raises:
        UserError: as `export`, or the converter fails.
    """
    with new_folder(out) as partial:
        partial.mkdir()
        model = partial.with_name(f"{partial.name}.plain") / "model"  # beside the new folder, and removed with .partial
        file = partial / f"model-{kind}.gguf"
        description = export(trained, model, options)
        _convert(model, file, kind, converter)
        note = write_modelfile(model, file)
        (model / EXPORT_RECORD).rename(partial / EXPORT_RECORD)
    return f"{description}, as {file.name} with a Modelfile{f' ({note})' if note else ''}"


def _convert(model: Path, file: Path, kind: str, converter: Sequence[str]) -> None:
    command = [*converter, str(model), "--outfile", str(file), "--outtype", kind]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode or not _has_tensors(file):
        said = "\n".join(f"  {line}" for line in (done.stderr or done.stdout).strip().splitlines()[-SHOWN_LINES:])
        raise UserError(
            f"{converter[-1]}: could not convert the model (exit code {done.returncode}); use a newer llama.cpp if it "
            f"does not know the model, or install what it needs ({REQUIREMENTS}). Its last lines:\n{said}"
        )


def _has_tensors(file: Path) -> bool:
    try:
        return bool(GGUFReader(file).tensors)
    except (OSError, ValueError, IndexError):  # missing, or not a whole GGUF file
        return False
