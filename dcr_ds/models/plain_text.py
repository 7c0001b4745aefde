"""Encode texts in which control tokens count only where a template wrote them.

`<|im_end|>` or `</s>` in a user's message or in an answer is text. Read as a token it would cut the answer, or turn one
prompt into several turns. A text that holds such a string is encoded with a copy of the tokenizer in which the control
tokens have secret names, so that everything else is tokenised as in any other text.
"""

import json
import re
import secrets
from functools import cached_property

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from dcr_ds.errors import UserError

BEGIN, END = "\ufdd0", "\ufdd1"  # of a mask; these are not characters, so no text has them


class EncodingError(UserError):
    """One row cannot be encoded; others can."""


class TextEncoder:
    """Encodes texts rendered from masked contents.

    Args:
        control: strings of the control tokens; all are added tokens of the tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: set[str]) -> None:
        self._tokenizer = tokenizer
        # no template changes digits, and nobody can foresee them in a data set
        nonce = str(secrets.randbits(64))
        self._nonce = nonce
        # the longest first, as the tokenizer matches them
        ordered = sorted(control, key=lambda token: (-len(token), token))
        self._names = {token: f"\ue000{nonce}-{number}\ue001" for number, token in enumerate(ordered)}
        self._masks = {token: f"{BEGIN}{nonce}-{number}{END}" for number, token in enumerate(ordered)}
        self._texts = {mask: token for token, mask in self._masks.items()}
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        self._ids = {tokenizer.convert_tokens_to_ids(token) for token in ordered} - {tokenizer.unk_token_id}

    def mask(self, content: str) -> str:
        """Hide the control tokens in a content, so that those of the template can be told from them."""
        return self._pattern.sub(lambda match: self._masks[match[0]], content) if self._pattern else content

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text that a template made of masked contents.

        Raises:
            EncodingError: the tokenizer cannot encode a control token as text.
        """
        if BEGIN not in text and END not in text:
            ids = list(self._tokenizer(text, add_special_tokens=add_special_tokens).input_ids)
            # a normaliser can make control tokens of other strings
            if add_special_tokens or self._count(ids) <= self._num_control(text):
                return ids
        num_control = self._num_control(text)
        if self._pattern:
            text = self._pattern.sub(lambda match: self._names[match[0]], text)
        text = re.sub(f"{BEGIN}{self._nonce}-[0-9]+{END}", lambda match: self._texts[match[0]], text)
        if BEGIN in text or END in text:
            raise EncodingError("model.chat_template: it cuts a content within a control token")
        ids = self._copy.encode(text, add_special_tokens=add_special_tokens).ids
        if not add_special_tokens and self._count(ids) != num_control:
            raise self._impossible()
        return list(ids)

    def _num_control(self, text: str) -> int:
        """The number of control tokens in a text, without the unknown token, which is also that of other texts."""
        found = self._pattern.findall(text) if self._pattern else []
        return sum(self._tokenizer.convert_tokens_to_ids(token) in self._ids for token in found)

    def _count(self, ids: list[int]) -> int:
        return sum(token in self._ids for token in ids)

    @cached_property
    def _copy(self) -> Tokenizer:
        """The tokenizer, with other names of the control tokens and the same ids."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:  # not a tokenizer of the tokenizers library
            raise self._impossible()
        state = json.loads(backend.to_str())
        state["truncation"] = state["padding"] = None
        for token in state["added_tokens"]:
            token["content"] = self._name(token["content"])
        _rename_vocabulary(state["model"], self._names)
        try:
            copy = Tokenizer.from_str(json.dumps(state))
        except Exception:  # the library raises plain exceptions
            raise self._impossible() from None
        added = backend.get_added_tokens_decoder()
        if any(copy.token_to_id(self._name(token.content)) != number for number, token in added.items()):
            raise self._impossible()
        return copy

    def _name(self, token: str) -> str:
        return self._names.get(token, token)

    def _impossible(self) -> EncodingError:
        return EncodingError("a message contains a control token, which this tokenizer cannot encode as text")


def _rename_vocabulary(model: dict, names: dict[str, str]) -> None:
    """Rename control tokens that the model's own vocabulary holds, so that no text is encoded as one of them."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if model.get("merges"):
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not {"".join(pair), *pair} & names.keys()]
