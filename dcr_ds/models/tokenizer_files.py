"""The tokenizer files of a trained model or adapter: the chat template that it was trained with, and where it stops."""

import shutil
from pathlib import Path

from transformers import AutoTokenizer

from dcr_ds.files import read_json, read_object, write_atomically, write_json
from dcr_ds.models.chat import turn_end_ids
from dcr_ds.models.checkpoint_files import TOKENIZER_FILES, copied_files
from dcr_ds.models.limits import SPECIAL_IDS, ids_beyond, model_limits
from dcr_ds.models.tokenizer import load_tokenizer, makes_other_tokens, read_template
from dcr_ds.recipe import ChatTemplate

AS_SAVED = "PreTrainedTokenizerFast"  # the class that reads tokenizer.json as it is
TEMPLATE, CONFIG = "chat_template.jinja", "tokenizer_config.json"


def keep_tokenizer(source: Path, chat_template: ChatTemplate | str | None, folder: Path) -> None:
    """Save the tokenizer next to a trained model or adapter, so that other programs render prompts alike. Rank 0.

    A model's generation_config.json gets the end-of-turn token of the template, at which it learned to stop.

    Args:
        source: the folder that the tokenizer was loaded from.
        chat_template: `model.template`; its file is None for the tokenizer's own template.
    """
    for file in copied_files(source, TOKENIZER_FILES):
        shutil.copyfile(file, folder / file.name)
    template = ChatTemplate.of(chat_template)
    if template.file is not None or template.variables:
        if template.variables:
            text = load_tokenizer(source, template).get_chat_template()
        else:
            text = read_template(str(template.file))
        keep_template(text, folder)
    if makes_other_tokens(AutoTokenizer.from_pretrained(source, trust_remote_code=False), source):
        write_json(folder / CONFIG, read_object(folder / CONFIG) | {"tokenizer_class": AS_SAVED})
    if (folder / "config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if tokenizer.chat_template is not None:
            _stop_at(turn_end_ids(tokenizer), folder)


def keep_template(text: str, folder: Path) -> None:
    """Save a chat template next to a tokenizer, in place of its own."""
    write_atomically(folder / TEMPLATE, text)
    config = read_json(folder / CONFIG)
    if isinstance(config, dict) and config.pop("chat_template", None):  # older, from before .jinja files
        write_json(folder / CONFIG, config)


def _stop_at(ids: list[int], folder: Path) -> None:
    """Add token ids to those at which `generate` stops, and remove those that the model does not have."""
    file, config = folder / "generation_config.json", read_json(folder / "config.json")
    values, rows = read_json(file), model_limits(folder).rows
    if not isinstance(values, dict):
        values = {name: config[name] for name in SPECIAL_IDS if config.get(name) is not None}
    ends = values.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    beyond = ids_beyond([*ends, *ids], rows)  # generate would read rows that the embedding does not have
    stops = [token for token in dict.fromkeys([*ends, *ids]) if token not in beyond]
    known = {name: value for name, value in values.items() if name not in SPECIAL_IDS or not ids_beyond(value, rows)}
    if stops != ends or known != values:
        write_json(file, known | ({"eos_token_id": stops} if stops else {}))
