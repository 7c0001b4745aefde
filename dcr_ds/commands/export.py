"""`dcr-ds export`: models and adapters for other programs, from runs, checkpoints and adapters."""

import argparse
from pathlib import Path

from dcr_ds.commands.parser import command_parser, output_path, refuse
from dcr_ds.errors import UserError, write_errors_as_user_errors
from dcr_ds.recipe.layout import STAGE_OF_MODEL

GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")  # that llama.cpp's converter writes; llama-quantize makes smaller ones
DESCRIPTION = """\
Write a model or an adapter as safetensors that transformers, peft and vLLM load, or as a GGUF file. Needs one process
and no GPU.

  dcr-ds export runs/x --out model                               last stage: adapter or model
  dcr-ds export runs/x --merge --out model                       always a whole model
  dcr-ds export runs/x/align/checkpoints/step-00000050 --out m   a checkpoint of any ZeRO stage
  dcr-ds export runs/x/align/adapter --merge --out model         an adapter merged into its base
  dcr-ds export runs/x --gguf --out gguf                         for llama.cpp and Ollama

DeepSpeed checkpoints are pickles, which can run code: export only checkpoints that you trust.
"""


def run(arguments: list[str]) -> int:
    """Export, and push to the hub with --push.

    Raises:
        UserError: wrong usage, nothing to export, no converter, or the hub refuses the upload.
    """
    options = _parse(arguments)
    if not options.what.is_dir():
        raise UserError(f"{options.what}: no such folder")
    if options.push:
        from dcr_ds.export.push import check_hub_id, push

        check_hub_id(options.push)
    with write_errors_as_user_errors(options.out):
        print(f"{options.out}: {_export(options)}")
    if options.push:
        print(push(options.what, options.stage, options.out, options.push))
    return 0


def _export(options: argparse.Namespace) -> str:
    from dcr_ds.export.write import ExportOptions, export

    if options.gguf is None:
        return export(options.what, options.out, ExportOptions(options.merge, options.stage, options.base))
    from dcr_ds.export.gguf import export_gguf, find_converter

    converter = find_converter(options.converter)
    merged = ExportOptions(merge=True, stage=options.stage, base=options.base)
    return export_gguf(options.what, options.out, merged, options.gguf, converter)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = command_parser("export", DESCRIPTION)
    add = parser.add_argument
    add("what", type=Path, metavar="RUN|CHECKPOINT|ADAPTER", help="folder of a run, a checkpoint or an adapter")
    add("--out", type=output_path, required=True, metavar="DIR", help="a new folder")
    add("--stage", choices=tuple(STAGE_OF_MODEL.values()), help="stage of a run (default: align, else refine)")
    add("--merge", action="store_true", help="merge a trained adapter into its base model")
    help_base = "folder or hub id of the base model, where the run or adapter no longer names the right one"
    add("--base", metavar="MODEL", help=help_base)
    help_gguf = "a GGUF file and an Ollama Modelfile instead, of the whole model; TYPE: %(choices)s (default: bf16)"
    add("--gguf", nargs="?", const="bf16", choices=GGUF_TYPES, metavar="TYPE", help=help_gguf)
    help_converter = "checkout of llama.cpp, or its convert_hf_to_gguf.py (default: $LLAMA_CPP, or in PATH)"
    add("--converter", type=Path, metavar="PATH", help=help_converter)
    help_push = "upload to this hub repository with the run's model card; a new one is private. Needs HF_TOKEN"
    add("--push", metavar="HUB_ID", help=help_push)
    options = parser.parse_args(arguments)
    if options.gguf and options.push:
        refuse("export", "--gguf and --push: GGUF files are not uploaded; leave one of them out")
    if options.converter and not options.gguf:
        refuse("export", "--converter is for --gguf, which is missing")
    return options
