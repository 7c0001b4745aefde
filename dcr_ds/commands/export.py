"""The command `dcr-ds export`."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from dcr_ds.errors import UserError
from dcr_ds.recipe.layout import TRAINING_STAGES

DESCRIPTION = """\
Write a model or an adapter into a folder of safetensors that transformers, peft and vLLM load. No GPU, no ranks.

  dcr-ds export runs/smollm2-135m --out model                    the last stage's: its adapter with LoRA, else its model
  dcr-ds export runs/smollm2-135m --merge --out model            always a whole model
  dcr-ds export runs/x/align/checkpoints/step-00000050 --out m   from DeepSpeed's checkpoint, of any ZeRO stage
  dcr-ds export runs/x/align/adapter --merge --out model         an adapter merged into its base's own weights

DeepSpeed's checkpoints are pickles, which can run code: export your own only.
"""


def run(arguments: list[str]) -> int:
    """Export, and push where asked; returns the exit code.

    Raises:
        UserError: the arguments are wrong, there is nothing to export, or the hub refuses it.
    """
    parser = ArgumentParser(prog="dcr-ds export", description=DESCRIPTION, formatter_class=RawDescriptionHelpFormatter)
    parser.error = _refuse
    parser.add_argument("what", type=Path, metavar="RUN|CHECKPOINT|ADAPTER", help="folder of one of them")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--stage", choices=TRAINING_STAGES, help="of a run (default: the last that trained)")
    parser.add_argument("--merge", action="store_true", help="a whole model where an adapter was trained")
    told = "the base's folder or hub id, where it is no longer what the run or adapter names"
    parser.add_argument("--base", metavar="MODEL", help=told)
    told = "upload it to this hub repository (made private where it is new), with the run's model card; wants HF_TOKEN"
    parser.add_argument("--push", metavar="HUB_ID", help=told)
    options = parser.parse_args(arguments)
    if not options.what.is_dir():
        raise UserError(f"{options.what}: no such folder")
    from dcr_ds.export.write import Wanted, export

    told = export(options.what, options.out, Wanted(options.merge, options.stage, options.base))
    print(f"{options.out}: {told}")
    if options.push:
        from dcr_ds.export.push import push

        print(push(options.what, options.stage, options.out, options.push))
    return 0


def _refuse(message: str) -> None:
    raise UserError(f"export: {message}, e.g. dcr-ds export runs/smollm2-135m --out model")
