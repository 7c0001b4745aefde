"""`dcr-ds export`: models and adapters for transformers, peft and vLLM, from runs and checkpoints."""

import argparse
from pathlib import Path

from dcr_ds.commands.parser import command_parser
from dcr_ds.errors import UserError, write_errors_as_user_errors
from dcr_ds.recipe.layout import STAGE_OF_MODEL

DESCRIPTION = """\
Write a model or an adapter as safetensors that transformers, peft and vLLM load. Needs one process and no GPU.

  dcr-ds export runs/x --out model                               last stage: adapter or model
  dcr-ds export runs/x --merge --out model                       always a whole model
  dcr-ds export runs/x/align/checkpoints/step-00000050 --out m   a checkpoint of any ZeRO stage
  dcr-ds export runs/x/align/adapter --merge --out model         an adapter merged into its base

DeepSpeed checkpoints are pickles, which can run code: export only checkpoints that you trust.
"""


def run(arguments: list[str]) -> int:
    """Export, and push to the hub with --push.

    Raises:
        UserError: wrong usage, nothing to export, or the hub refuses the upload.
    """
    options = _parse(arguments)
    if not options.what.is_dir():
        raise UserError(f"{options.what}: no such folder")
    from dcr_ds.export.write import ExportOptions, export

    with write_errors_as_user_errors(options.out):
        exported = export(options.what, options.out, ExportOptions(options.merge, options.stage, options.base))
    print(f"{options.out}: {exported}")
    if options.push:
        from dcr_ds.export.push import push

        print(push(options.what, options.stage, options.out, options.push, options.base))
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = command_parser("export", DESCRIPTION)
    add = parser.add_argument
    add("what", type=Path, metavar="RUN|CHECKPOINT|ADAPTER", help="folder of a run, a checkpoint or an adapter")
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    add("--stage", choices=tuple(STAGE_OF_MODEL.values()), help="stage of a run (default: align, else refine)")
    add("--merge", action="store_true", help="merge a trained adapter into its base model")
    help_base = "folder or hub id of the base model, where the run or adapter no longer names the right one"
    add("--base", metavar="MODEL", help=help_base)
    help_push = "upload to this hub repository with the run's model card; a new one is private. Needs HF_TOKEN"
    add("--push", metavar="HUB_ID", help=help_push)
    return parser.parse_args(arguments)
