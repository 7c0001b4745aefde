"""Chat templates: the one module that turns messages into token ids.

Every prompt that the project trains on, embeds or answers is rendered here with the chat template of the tokenizer.
Common errors of templates are checked on every sample: a doubled BOS, a prompt that is not a prefix of the
conversation, an answer without an end-of-turn token.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dcr_ds.errors import UserError
from dcr_ds.models.dates import dated
from dcr_ds.models.limits import check_ids, model_limits
from dcr_ds.reasoning import is_reasoning_mark, open_block
from dcr_ds.recipe import find_file

TEMPLATES = Path(__file__).parent / "templates"
PROMPT_END_TOKENS = 64  # enough for a tag and white space
Messages = Sequence[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as tokens: `ids[prompt_tokens:]`, the answer and its end-of-turn token, is supervised."""

    ids: list[int]
    prompt_tokens: int

    @property
    def num_supervised(self) -> int:
        return len(self.ids) - self.prompt_tokens


def load_tokenizer(
    folder: Path, chat_template: str | None = None, model: Path | None = None
) -> PreTrainedTokenizerBase:
    """Load a tokenizer with a chat template: its own, a Jinja file, or the name of a shipped template.

    Args:
        model: folder of the model that reads the tokens, whose limits are known to `limits_of` from then on; None: the
            same folder.
    """
    tokenizer = read_tokenizer(folder, model)
    if chat_template is not None:
        tokenizer.chat_template = read_template(chat_template)
    if tokenizer.chat_template is None:
        raise UserError(
            f"{folder}: this tokenizer has no chat template (a base model?); set model.chat_template to a Jinja "
            "file (dcr-ds evaluate: --chat-template FILE) or to a shipped template: "
            f"{', '.join(sorted(path.stem for path in TEMPLATES.glob('*.jinja')))}"
        )
    return tokenizer


def read_tokenizer(folder: Path, model: Path | None = None) -> PreTrainedTokenizerBase:
    """As `load_tokenizer`, with a chat template or without."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no tokenizer that transformers can load ({_first_line(error)})") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_limits = model_limits(model or folder)  # where `limits_of` finds it
    return tokenizer


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | Messages) -> list[int]:
    """Token ids of a prompt, up to the start of the answer."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return _render(tokenizer, messages, add_generation_prompt=True)


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> Encoded:
    """Token ids of a conversation, cut after the first end-of-turn token of its last answer.

    Raises:
        UserError: the prompt is not a token prefix of the conversation, or the template ends the answer without a
            special token, so that a model trained on it would never learn to stop.
    """
    prompt = encode_prompt(tokenizer, messages[:-1])
    full = _render(tokenizer, list(messages), add_generation_prompt=False)
    if full[: len(prompt)] != prompt:
        raise UserError(
            "model.chat_template: the prompt is not a token prefix of the conversation, so where "
            f"the answer starts is unknown; rendered prompt: {tokenizer.decode(prompt)[-80:]!r}"
        )
    ends = set(turn_end_ids(tokenizer))
    end = next((i for i in range(len(prompt), len(full)) if full[i] in ends), None)
    if end is None:
        raise UserError(
            "model.chat_template: no end-of-turn token follows the answer, so the model would never learn to stop; "
            f"expected one of {tokenizer.convert_ids_to_tokens(sorted(ends))}"
        )
    return Encoded(full[: end + 1], len(prompt))


def decode_answer(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text of generated tokens, without special tokens, but with the tags around reasoning.

    The tags are needed to find the answer: a tag that is a special token is kept, and one that the chat template has
    written at the end of the prompt is repeated before the text.
    """
    has_marks = any(is_reasoning_mark(str(token)) for token in tokenizer.convert_ids_to_tokens(list(ids)))
    text = str(tokenizer.decode(list(ids), skip_special_tokens=not has_marks)).strip()
    tag = open_block(str(tokenizer.decode(list(prompt[-PROMPT_END_TOKENS:]))))
    return f"{tag}\n{text}" if tag else text


def turn_end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a turn: EOS, and the special token that the template writes after an answer."""
    ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    special = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    closing = next((token for token in _after_answer(tokenizer) if token in special), None)
    return ends + [closing] if closing is not None and closing not in ends else ends


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Short hash of the chat template: equal in training and evaluation, or they are not comparable."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]


def _after_answer(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the template writes after any answer: the common end of two conversations that differ in their answers.

    Special tokens before the answer, such as an empty <think> block, are not part of it.
    """
    question = {"role": "user", "content": "a"}
    first, second = (
        _render(tokenizer, [question, {"role": "assistant", "content": answer}], add_generation_prompt=False)[::-1]
        for answer in ("b", "c")
    )
    num_same = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
    return first[:num_same][::-1]


def _render(tokenizer: PreTrainedTokenizerBase, messages: list, add_generation_prompt: bool) -> list[int]:
    try:
        ids: Any = tokenizer.apply_chat_template(
            messages,
            chat_template=dated(tokenizer.get_chat_template()),
            add_generation_prompt=add_generation_prompt,
            tokenize=True,
            return_dict=False,
        )
    except TemplateError as error:  # invalid Jinja, or it rejects these messages (a system role, for example)
        raise UserError(f"model.chat_template: cannot render these messages: {error}") from None
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise UserError("model.chat_template: the rendered prompt starts with two BOS tokens; it must start with one")
    check_ids(ids, tokenizer)
    return list(ids)


def read_template(name: str) -> str:
    """The text of a chat template: a Jinja file, or the name of a shipped template."""
    shipped = TEMPLATES / f"{name}.jinja"
    path = shipped if shipped.is_file() else find_file(name)
    if path is None:
        known = ", ".join(sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
        raise UserError(f"model.chat_template: no such file {name!r}, and no shipped template of that name ({known})")
    return path.read_text(encoding="utf-8")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
