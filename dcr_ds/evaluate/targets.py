"""Models that exist already, as targets of an evaluation: a folder, an adapter, a baseline, a hub id, an endpoint."""

import re
import sys
from pathlib import Path
from typing import NamedTuple

from dcr_ds.data.load import RunData
from dcr_ds.engine.launcher import is_main_process
from dcr_ds.errors import UserError
from dcr_ds.evaluate.serving.command import requests_in_flight
from dcr_ds.files import expand_user
from dcr_ds.models.checkpoint_files import BASELINE_RECORD, base_of_adapter, holds_hook, tokenizer_folder
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.models.hashes import check_base
from dcr_ds.models.hooks.record import read_record
from dcr_ds.models.locate import base_fields, prepare_source
from dcr_ds.models.request_fields import RequestFields
from dcr_ds.recipe import EndpointSection, EvaluateSection, ModelSection
from dcr_ds.recipe.engines import LOCAL

ENDPOINT = re.compile(r"(https?://[^#]+)#(.+)")  # URL#MODEL


class LocalModel(NamedTuple):
    """A model folder on this machine, an adapter to merge into it, and a baseline folder whose hook it gets."""

    source: Path
    adapter: Path | None
    hook: Path | None = None

    @property
    def tokenizer(self) -> Path:
        """The folder to load the tokenizer from."""
        return tokenizer_folder(self.source, self.hook or self.adapter)


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
    from dcr_ds.models.tokenizer import load_tokenizer, template_hash

    local = _locate_files(model)
    tokenizer = load_tokenizer(local.tokenizer, model.template, local.source)
    if local.hook and template_hash(tokenizer) != read_record(local.hook).template:
        raise UserError(
            f"{local.hook}: the baseline was made with another chat template, which it holds; leave out "
            "--chat-template and --chat-template-kwargs, or make the baseline again with them"
        )
    return local


def checked_source(model: ModelSection) -> Path:
    """The folder of a model, after `check_model`, whose notes rank 0 prints."""
    from dcr_ds.models.check import check_model

    source = prepare_source(model)
    for note in check_model(source):
        if is_main_process():
            print(note, file=sys.stderr, flush=True)
    return source


def check_hooked(local: LocalModel, data: RunData, settings: EvaluateSection) -> None:
    """Raise UserError if an evaluation asks for what a model with a hook cannot do."""
    if local.hook is None:
        return
    check_hook_fits(local.hook, settings.ranks_per_copy)
    if settings.engine != LOCAL:
        raise UserError(
            f"{local.hook}: a server cannot install the hook of a baseline; leave out --engine and --server-command"
        )
    if prefilled := [benchmark.name for benchmark in data.benchmarks if benchmark.opening]:
        raise UserError(
            f"{local.hook}: {prefilled[0]} gives the beginning of the answer, where the hook of a baseline acts; leave "
            "this attack out"
        )


def check_hook_fits(hook: Path | None, ranks_per_copy: int | str) -> None:
    """Raise UserError if a model with a hook would be spread over ranks."""
    if hook is not None and ranks_per_copy not in ("auto", 1):
        raise UserError(
            f"{hook}: the hook of a baseline cannot be installed in a model that is spread over {ranks_per_copy} "
            "ranks; set --ranks-per-copy 1, on a GPU that holds the model"
        )


def _locate_files(model: ModelSection) -> LocalModel:
    folder = expand_user(model.source)
    if holds_hook(folder):
        return _locate_hooked(folder)
    base = base_of_adapter(folder)
    if base is None:
        return LocalModel(checked_source(model), None)
    try:
        source = checked_source(model.model_copy(update=base_fields(folder, base)))
    except UserError as error:
        raise UserError(
            f"{folder}: the adapter's base model {base!r} cannot be used ({error}); adapter_config.json names it as "
            "base_model_name_or_path"
        ) from None
    check_base(source, folder)
    return LocalModel(source, folder)


def _locate_hooked(folder: Path) -> LocalModel:
    record = read_record(folder)
    path = expand_user(record.source)
    if holds_hook(path):
        raise UserError(f"{folder}: its source {record.source} is a baseline as well; make it from a model")
    if path.is_absolute() and not path.exists():
        raise UserError(
            f"{folder}: its source model {record.source} is not there; move it back, or set `source` in "
            f"{folder / BASELINE_RECORD} to where it is"
        )
    try:
        local = _locate_files(ModelSection(source=record.source))
    except UserError as error:
        raise UserError(f"{folder}: its source model cannot be used ({error})") from None
    record.check_source(folder, local.source, local.adapter)
    return local._replace(hook=folder)
