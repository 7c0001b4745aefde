"""Upload an exported folder to the hub."""

from pathlib import Path
from shlex import quote

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from dcr_ds.errors import UserError, one_line
from dcr_ds.export.publish import make_public
from dcr_ds.export.write import run_and_stage
from dcr_ds.files import write_atomically
from dcr_ds.models.checkpoint_files import EXPORT_RECORD
from dcr_ds.recipe.layout import STAGE_OF_MODEL, RunFolder
from dcr_ds.report.card import model_card
from dcr_ds.report.numbers.comparison import compare
from dcr_ds.report.numbers.read import read_run

MESSAGE = "Exported by dcr-ds"


def check_hub_id(hub_id: str) -> None:
    """Raise UserError unless a repository of the hub can have this name."""
    try:
        validate_repo_id(hub_id)
        reason = "" if "/" in hub_id else "the owner is missing"
    except HFValidationError as error:
        reason = one_line(error)
    if reason:
        raise UserError(f"--push {hub_id}: not a hub id ({reason}); give OWNER/NAME, such as you/model")


def push(trained: Path, stage: str | None, folder: Path, hub_id: str) -> str:
    """Upload a folder that was exported from `trained`, with the model card of its run; returns the address.

    What is uploaded names no local paths.

    Raises:
        UserError: an adapter's base model is not on the hub; the hub cannot be reached or refuses the upload. The
            folder is kept.
    """
    make_public(folder)
    add_card(trained, stage, folder)
    api = HfApi()
    try:
        address = api.create_repo(hub_id, private=True, exist_ok=True)
        api.upload_folder(repo_id=hub_id, folder_path=folder, commit_message=MESSAGE, ignore_patterns=[EXPORT_RECORD])
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = one_line(error)
        raise UserError(
            f"--push {hub_id}: the hub cannot be reached or refuses the upload ({reason}); check the name, the network "
            f"and HF_TOKEN. The exported folder is {folder}; upload it with: hf upload {hub_id} {quote(str(folder))} . "
            f"--private --exclude {EXPORT_RECORD}"
        ) from None
    return str(address)


def add_card(trained: Path, stage: str | None, folder: Path) -> None:
    """Write the model card of a finished stage as README.md of an exported folder, unless the folder has one."""
    try:
        run, stage, _ = run_and_stage(trained, stage)
    except UserError:  # an adapter outside of a run
        return
    if RunFolder(run).stage(stage).is_done and not (folder / "README.md").is_file():
        model = next(model for model, trained_in in STAGE_OF_MODEL.items() if trained_in == stage)
        write_atomically(folder / "README.md", model_card(compare([read_run(run)]), model))
