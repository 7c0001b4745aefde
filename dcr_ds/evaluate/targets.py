"""Models that exist already, as targets of an evaluation: a folder, an adapter, a hub id or an endpoint."""

import re
import sys
from pathlib import Path
from typing import NamedTuple

from dcr_ds.engine.distributed import is_main_process
from dcr_ds.errors import UserError
from dcr_ds.evaluate.serving.command import requests_in_flight
from dcr_ds.files import expand_user
from dcr_ds.models.checkpoint_files import base_of_adapter, tokenizer_folder
from dcr_ds.models.endpoint import Endpoint, RequestFields
from dcr_ds.models.hashes import check_base
from dcr_ds.models.locate import prepare_source
from dcr_ds.recipe import EndpointSection, ModelSection
from dcr_ds.recipe.engines import LOCAL

ENDPOINT = re.compile(r"(https?://[^#]+)#(.+)")  # URL#MODEL


class LocalModel(NamedTuple):
    """A model folder on this machine, and an adapter to merge into it."""

    source: Path
    adapter: Path | None


def locate_target(model: ModelSection, settings: EndpointSection) -> LocalModel | Endpoint:
    """Locate a model and check it: its weights, as before training, and its chat template; or the key of an endpoint.

    Raises:
        UserError: what is missing, and where.
    """
    if remote := ENDPOINT.fullmatch(model.source):
        endpoint = Endpoint(
            remote[1],
            remote[2],
            settings.key_env,
            requests_in_flight(LOCAL, settings.concurrency),
            settings.timeout_seconds,
            settings.retries,
        )
        endpoint.fields = RequestFields(
            settings.limit_field, settings.temperature, settings.seed, model.chat_template_kwargs or None
        )
        return endpoint
    if re.match(r"https?://", model.source):
        raise UserError(f"{model.source}: name the endpoint with its model: {model.source}#MODEL")
    from dcr_ds.models.chat import load_tokenizer

    local = _locate_files(model)
    load_tokenizer(tokenizer_folder(*local), model.template, local.source)
    return local


def checked_source(model: ModelSection) -> Path:
    """The folder of a model, after `check_model`, whose notes rank 0 prints."""
    from dcr_ds.models.check import check_model

    source = prepare_source(model)
    for note in check_model(source):
        if is_main_process():
            print(note, file=sys.stderr, flush=True)
    return source


def _locate_files(model: ModelSection) -> LocalModel:
    folder = expand_user(model.source)
    base = base_of_adapter(folder)
    if base is None:
        return LocalModel(checked_source(model), None)
    try:
        source = checked_source(model.model_copy(update={"source": base, "revision": None}))
    except UserError as error:
        raise UserError(
            f"{folder}: the adapter's base model {base!r} cannot be used ({error}); adapter_config.json names it as "
            "base_model_name_or_path"
        ) from None
    check_base(source, folder)
    return LocalModel(source, folder)
