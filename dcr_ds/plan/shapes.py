"""Find the config.json of a model: in its folder, among the shipped shapes, or in the local cache of the hub."""

from contextlib import suppress
from pathlib import Path

import yaml

from dcr_ds.errors import UserError
from dcr_ds.files import expand_user
from dcr_ds.models.architectures import check_config
from dcr_ds.models.check import build_on_meta
from dcr_ds.models.checkpoint_files import check_not_quantised, model_config
from dcr_ds.models.locate import refuse_other_folders
from dcr_ds.models.rehearsal import check_architecture
from dcr_ds.recipe import ModelSection

SHAPES = Path(__file__).parent / "configs"


def find_shape(model: ModelSection) -> tuple[Path, str]:
    """The folder of a config.json, and where it comes from. Nothing is downloaded.

    Raises:
        UserError: none was found, or it is not a language model that can be trained: an adapter, a run, quantised, of
            an architecture that fails the checks, or with a config.json of which no model can be built.
    """
    folder, origin = _locate(model)
    config = model_config(folder)
    check_config(folder, config)
    if {"quantization_config", "compression_config"} & config.keys():
        check_not_quantised(folder)
    if folder.parent != SHAPES:
        build_on_meta(folder)
        check_architecture(folder)
    return folder, origin


def shipped() -> list[dict]:
    """The shipped shapes: folder, ids, parameters."""
    return yaml.safe_load((SHAPES / "shapes.yaml").read_text(encoding="utf-8"))


def _locate(model: ModelSection) -> tuple[Path, str]:
    path = expand_user(model.source)
    if path.is_dir():
        refuse_other_folders(path)
        return path, "its config.json"
    for shape in shipped():
        if model.source.lower() in [name.lower() for name in (shape["folder"], *shape["ids"])]:
            return SHAPES / shape["folder"], "shape shipped with dcr-ds"
    if model.source.count("/") == 1:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        with suppress(HFValidationError):  # a path that does not exist
            cached = try_to_load_from_cache(model.source, "config.json", revision=model.revision)
            if isinstance(cached, str):
                return Path(cached).parent, "the local cache of the hub"
    names = ", ".join(shape["folder"] for shape in shipped())
    raise UserError(
        f"model.source: {model.source} is not a model folder, a model in the hub's local cache or a shipped shape; "
        f"a plan downloads nothing. Use a shape ({names}) or a folder with the model's config.json"
    )
