"""Answers of a model by a server that this evaluation starts: the same prompts, template, stop tokens and rows.

The server gets a folder with the model's weights, and the chat template and end-of-turn tokens of local generation; so
nothing depends on the options of the server. It chooses its own batches, so the last bits of logits may differ.
"""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from dcr_ds.engine.distributed import Ranks, print_on_main, work_on_main
from dcr_ds.engine.machine import device_name
from dcr_ds.evaluate.cost import Cost
from dcr_ds.evaluate.generations import Generations
from dcr_ds.evaluate.model import EvaluatedModel
from dcr_ds.evaluate.remote import generate_remote
from dcr_ds.evaluate.serving.command import parallel_sizes, requests_in_flight
from dcr_ds.evaluate.serving.server import Server
from dcr_ds.files import write_json
from dcr_ds.models.chat import PROMPT_END_TOKENS, turn_end_ids
from dcr_ds.models.checkpoint_files import copied_files, model_config, tokenizer_folder, weight_files
from dcr_ds.models.dates import dated
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.models.limits import padding_id
from dcr_ds.models.merge import merge_lora
from dcr_ds.models.replies import Completion
from dcr_ds.models.request_fields import RequestFields
from dcr_ds.models.tokenizer_files import keep_template, keep_tokenizer
from dcr_ds.reasoning import open_block
from dcr_ds.recipe import EvaluateSection
from dcr_ds.recipe.engines import fill, server_words

LEAST_TIMEOUT = 600.0  # seconds: a server of its own that is busy does not fail


def answer_with_server(
    model: EvaluatedModel, missing: Sequence[Generations], settings: EvaluateSection, max_length: int, ranks: Ranks
) -> None:
    """Generate answers with a server that rank 0 starts, and end it. All ranks; the others wait without their GPUs.

    Args:
        max_length: the most tokens of a prompt and its answer, for {max_length} in the command.

    Raises:
        UserError, ServerFailed: see `Server`; received answers are kept.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the server needs it
    work_on_main(lambda: _answer(model, missing, settings, max_length, ranks), ranks)


def max_length_of(all_generations: Sequence[Generations]) -> int:
    return max(len(ids) + generations.max_new_tokens for generations in all_generations for ids in generations.ids)


def _answer(
    model: EvaluatedModel, missing: Sequence[Generations], settings: EvaluateSection, max_length: int, ranks: Ranks
) -> None:
    gpus = torch.cuda.device_count()
    tensor, data = parallel_sizes(gpus, model_config(model.source))
    folder = model.folder.served.absolute()
    values = {
        "model": folder,
        "dtype": str(model.dtype).removeprefix("torch."),
        "max_length": max_length,
        "tensor_parallel": tensor,
        "data_parallel": data,
    }
    device = f"{gpus} × {torch.cuda.get_device_name(0)}" if gpus > 1 else device_name(ranks.device)
    cost = Cost(model.folder.cost, device, ranks.world_size)
    try:
        write_served_folder(model, folder)
        words = fill(server_words(settings.engine), values)
        with Server(words, folder, model.folder.server_log, settings.server_minutes) as server:
            for generations in missing:
                name, key = generations.benchmark, generations.settings_hash
                print_on_main(ranks, f"evaluate {model.name}: {name}, {len(generations.prompts)} prompts")
                endpoint = _endpoint(server, folder, settings)
                text_of = partial(_text, model, generations)
                generate_remote(generations, endpoint, ranks, partial(cost.spend, name, key), text_of)
                cost.finish(name, key, generated_tokens=generations.generated_tokens)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _endpoint(server: Server, folder: Path, settings: EvaluateSection) -> Endpoint:
    section = settings.endpoint
    endpoint = Endpoint(
        server.url,
        str(folder),
        "",  # no key
        requests_in_flight(settings.engine, section.concurrency),
        max(section.timeout_seconds, LEAST_TIMEOUT),
        section.retries,
    )
    endpoint.fields = RequestFields(section.limit_field, temperature=0.0, seed=None)  # greedy, without a seed
    return endpoint


def _text(model: EvaluatedModel, generations: Generations, index: int, reply: Completion) -> str:
    """The answer as local generation writes it: with the tag of reasoning that the end of the prompt opens."""
    text = reply.text.strip()
    tag = open_block(str(model.tokenizer.decode(generations.ids[index][-PROMPT_END_TOKENS:])))
    return f"{tag}\n{text}" if tag and not reply.has_reasoning else text


def write_served_folder(model: EvaluatedModel, folder: Path) -> None:
    """Write the folder that a server loads: weights as links, or merged with the adapter, and files of our own.

    Its chat template has the template variables and the date of local generation, and its generation config says greedy
    decoding, without a repetition penalty or other settings of the model, up to the end-of-turn tokens.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if model.adapter is not None:
        merge_lora(model.source, model.adapter, folder)
    else:
        folder.mkdir(parents=True)
        for file in weight_files(model.source):
            (folder / file.name).symlink_to(file.resolve())
        for file in copied_files(model.source, ("config.json", "*.safetensors.index.json")):
            shutil.copyfile(file, folder / file.name)
    tokenizer = model.tokenizer
    keep_tokenizer(tokenizer_folder(model.source, model.adapter), None, folder)
    keep_template(dated(tokenizer.get_chat_template()), folder)
    ends = turn_end_ids(tokenizer)
    generation = {"do_sample": False, "bos_token_id": tokenizer.bos_token_id, "pad_token_id": padding_id(tokenizer)}
    write_json(folder / "generation_config.json", generation | {"eos_token_id": ends})
