"""Chat templates: the one module that turns messages into token ids.

Every prompt that the project trains on, embeds or answers is rendered here with the chat template of the tokenizer.
Common errors of templates are checked on every sample: a doubled BOS, a prompt that is not a prefix of the
conversation, an answer without an end-of-turn token.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from dcr_ds.errors import UserError
from dcr_ds.models.limits import check_ids, limits_of
from dcr_ds.models.plain_text import EncodingError, TextEncoder
from dcr_ds.models.reasoning_templates import continued, refuse_left_out
from dcr_ds.models.rendering import render
from dcr_ds.models.unread import refuse_unread
from dcr_ds.reasoning import empty_block, is_reasoning_mark, open_block

PROMPT_END_TOKENS = 64  # enough for a tag and white space
OPENING_END_TOKENS = 4  # of a given opening, decoded with its continuation so that white space between them is kept
# Texts put before the rest of a conversation while it is encoded alone; most tokenizers need none.
ANCHORS = ("", "\n", ".", "a")
Messages = Sequence[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as tokens: `ids[prompt_tokens:]`, the answer and its end-of-turn token, is supervised.

    The first `added_tokens` of them are an empty block of reasoning, or its end, which the data does not have.
    """

    ids: list[int]
    prompt_tokens: int
    added_tokens: int = 0

    @property
    def num_supervised(self) -> int:
        return len(self.ids) - self.prompt_tokens


@dataclass
class _Cached:
    """What follows from a chat template and the special tokens of its tokenizer."""

    key: tuple
    ends: list[int] | None = None
    encoder: TextEncoder | None = None
    unread: dict[str, bool] = field(default_factory=dict)
    conversations: "dict[tuple, Encoded]" = field(default_factory=dict)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | Messages) -> list[int]:
    """Token ids of a prompt, up to the start of the answer."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return _encode(tokenizer, _rendered(tokenizer, messages, add_generation_prompt=True))


def encode_within_context(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """As `encode_prompt`. Raises UserError for a prompt that is longer than the context of the model."""
    ids = encode_prompt(tokenizer, messages)
    if (context := limits_of(tokenizer).context) is not None and len(ids) > context:
        raise UserError(f"{len(ids)} tokens, but the model reads at most {context}; remove or shorten the prompt")
    return ids


def encode_opened(tokenizer: PreTrainedTokenizerBase, messages: Messages, opening: str) -> list[int]:
    """Token ids of a prompt and the first words of its answer, up to where the model continues the answer.

    The opening is placed where the template puts the text of an answer: after an empty block of reasoning, for example.

    Raises:
        UserError: the template does not render the opening as it is.
    """
    _, text, _ = _texts(tokenizer, [*messages, {"role": "assistant", "content": opening}])
    start = text.rfind(opening)
    if start < 0:
        raise UserError(f"model.chat_template: the template changes the text of answers, so none can begin {opening!r}")
    return _encode(tokenizer, text[: start + len(opening)])


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> Encoded:
    """Token ids of a conversation, cut after the first end-of-turn token of its last answer.

    The stages of a run share data sets, so the result is kept until `forget_encoded`. It must not be changed.

    Raises:
        UserError: the rendered prompt is not a prefix of the conversation, or the template ends the answer without a
            special token, so that a model trained on it would never learn to stop.
        EncodingError: these messages cannot be encoded; others can.
    """
    known = _cached(tokenizer).conversations
    key = tuple(tuple(message.items()) for message in messages)
    if key not in known:
        known[key] = _encode_conversation(tokenizer, messages)
    return known[key]


def forget_encoded(tokenizer: PreTrainedTokenizerBase) -> None:
    """Free the conversations that `encode_conversation` keeps with a tokenizer."""
    _cached(tokenizer).conversations.clear()


def _encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> Encoded:
    answered = encode_answered(tokenizer, messages)
    ends = set(turn_end_ids(tokenizer))
    end = next((i for i in range(answered.prompt_tokens, len(answered.ids)) if answered.ids[i] in ends), None)
    if end is None:
        raise UserError(
            "model.chat_template: no end-of-turn token follows the answer, so the model would never learn to stop; "
            f"expected one of {tokenizer.convert_ids_to_tokens(sorted(ends))}"
        )
    return replace(answered, ids=answered.ids[: end + 1])


def encode_answered(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> Encoded:
    """Token ids of a conversation with all that the template writes after the answer. Raises as encode_conversation."""
    prompt_text, text, added = _texts(tokenizer, messages)
    prompt, ids = _encode(tokenizer, prompt_text), _encode(tokenizer, text)
    if ids[: len(prompt)] != prompt:
        if not text.startswith(prompt_text):
            raise UserError(
                "model.chat_template: the prompt is not a token prefix of the conversation, so where the answer starts "
                f"is unknown; rendered prompt: {tokenizer.decode(prompt)[-80:]!r}; use a template that writes the same "
                "before an answer with and without add_generation_prompt, in model.chat_template"
            )
        # The answer begins with what merges with the end of the prompt: a line break, or spaces.
        ids = prompt + _encode_rest(tokenizer, text[len(prompt_text) :], prompt, ids)
    return Encoded(ids, len(prompt), _num_shared(tokenizer, ids[len(prompt) :], added))


def decode_answer(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text of generated tokens, without special tokens, but with the tags around reasoning.

    The tags are needed to find the answer: a tag that is a special token is kept, and one that the chat template has
    written at the end of the prompt is repeated before the text.
    """
    has_marks = any(is_reasoning_mark(str(token)) for token in tokenizer.convert_ids_to_tokens(list(ids)))
    text = str(tokenizer.decode(list(ids), skip_special_tokens=not has_marks)).strip()
    tag = open_block(str(tokenizer.decode(list(prompt[-PROMPT_END_TOKENS:]))))
    return f"{tag}\n{text}" if tag else text


def decode_continuation(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text of generated tokens that continue a given opening, with the white space before them."""
    before = list(prompt[-OPENING_END_TOKENS:])
    opening, text = (str(tokenizer.decode(part, skip_special_tokens=True)) for part in (before, before + list(ids)))
    continuation = text[len(opening) :] if text.startswith(opening) else str(tokenizer.decode(list(ids)))
    return continuation.rstrip()


def turn_end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a turn: EOS, and the special token that the template writes after an answer."""
    cached = _cached(tokenizer)
    if cached.ends is None:
        cached.ends = _turn_ends(tokenizer)
    return list(cached.ends)


def until_turn_end(tokenizer: PreTrainedTokenizerBase, answer: Sequence[int]) -> list[int]:
    """The tokens of an answer before its turn ends."""
    ends = set(turn_end_ids(tokenizer))
    return list(takewhile(lambda token: token not in ends, answer))


def _texts(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[str, str, str]:
    """A rendered prompt, the conversation, and the empty block of reasoning before the answer, if any."""
    prompt = _rendered(tokenizer, messages[:-1], add_generation_prompt=True)
    text = _rendered(tokenizer, messages, add_generation_prompt=False)
    content = _text_encoder(tokenizer).mask(messages[-1]["content"])
    if not text.startswith(prompt):
        return (prompt, *(continued(prompt, text, content) or (text, "")))
    refuse_left_out(text[len(prompt) :], content)
    return prompt, text, empty_block(text[len(prompt) :])


def _num_shared(tokenizer: PreTrainedTokenizerBase, answer: list[int], added: str) -> int:
    """The number of tokens at the start of an answer that hold nothing but the added text."""
    num_tokens = 0
    while added and num_tokens < len(answer) and added.startswith(str(tokenizer.decode(answer[: num_tokens + 1]))):
        num_tokens += 1
    return num_tokens


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Messages, add_generation_prompt: bool) -> str:
    refuse_unread(tokenizer, messages, _cached(tokenizer).unread)
    masked = [message | {"content": _text_encoder(tokenizer).mask(message["content"])} for message in messages]
    return render(tokenizer, masked, add_generation_prompt)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return _checked(tokenizer, _text_encoder(tokenizer).encode(text))


def _checked(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise UserError("model.chat_template: the rendered prompt starts with two BOS tokens; it must start with one")
    check_ids(ids, tokenizer)
    return ids


def _encode_rest(tokenizer: PreTrainedTokenizerBase, rest: str, prompt: list[int], ids: list[int]) -> list[int]:
    """Token ids of what follows the prompt, as the model generates it: the ids of the prompt stay as they are.

    A tokenizer may put a space before a text that it encodes alone; an anchor before the text keeps it away.

    Args:
        ids: the whole conversation in other tokens, whose text is the result's.
    """
    encoder = _text_encoder(tokenizer)
    whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    for anchor in ANCHORS:
        before, both = encoder.encode(anchor) if anchor else [], encoder.encode(anchor + rest)
        after = both[len(before) :]
        if both[: len(before)] == before and (
            tokenizer.decode(prompt + after, clean_up_tokenization_spaces=False) == whole
        ):
            return after
    raise EncodingError("the answer begins with text that merges with the chat template before it")


def _cached(tokenizer: PreTrainedTokenizerBase) -> _Cached:
    key = str(tokenizer.chat_template), tuple(tokenizer.all_special_tokens)
    cached = getattr(tokenizer, "encoding_cache", None)  # kept with the tokenizer, and freed with it
    if cached is None or cached.key != key:
        cached = tokenizer.encoding_cache = _Cached(key)
    return cached


def _text_encoder(tokenizer: PreTrainedTokenizerBase) -> TextEncoder:
    cached = _cached(tokenizer)
    if cached.encoder is None:
        cached.encoder = TextEncoder(tokenizer, _control_tokens(tokenizer))
    return cached.encoder


def _turn_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    special = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    closing = next((token for token in _after_answer(tokenizer) if token in special), None)
    return ends + [closing] if closing is not None and closing not in ends else ends


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Strings that count as tokens only where the template writes them.

    These are the special tokens, and other added tokens that the template writes around the turns of a conversation.
    Added tokens that it does not write there, and tags of reasoning such as <think>, are tokens in an answer, too.
    """
    added = {number: token for number, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    system, user, assistant = ({"role": role, "content": "a"} for role in ("system", "user", "assistant"))
    written: set[int] = set()
    for turns in ([user, assistant, user], [system, user, assistant, user]):
        with suppress(UserError):  # the template does not render these turns
            written |= {*_plain_ids(tokenizer, turns), *turn_end_ids(tokenizer)}
    special = set(tokenizer.all_special_tokens)
    return {
        token.content
        for number, token in added.items()
        if (number in written or token.special or token.content in special) and not is_reasoning_mark(token.content)
    }


def _after_answer(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the template writes after any answer: the common end of two conversations that differ in their answers.

    Special tokens before the answer, such as an empty <think> block, are not part of it.
    """
    question = {"role": "user", "content": "a"}
    first, second = (
        _plain_ids(tokenizer, [question, {"role": "assistant", "content": answer}])[::-1] for answer in ("b", "c")
    )
    num_same = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
    return first[:num_same][::-1]


def _plain_ids(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Token ids of messages without control tokens in their contents."""
    ids = tokenizer(render(tokenizer, messages, add_generation_prompt=False), add_special_tokens=False).input_ids
    return _checked(tokenizer, list(ids))
