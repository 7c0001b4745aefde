"""Guard models: models trained to label answers, used as their declarations describe.

A declaration defines the guard's input, how its output is parsed, and what it can judge: harm is not refusal. Readings
of one guard (WildGuard judges both) share its replies, so that both cost a single pass.
"""

import re
import sys
from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast
from weakref import WeakValueDictionary

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dcr_ds.errors import UserError, first_line
from dcr_ds.files import expand_user, hash_of
from dcr_ds.judges.answer_text import VERSION
from dcr_ds.judges.base import Answer, Verdict
from dcr_ds.judges.guard_declaration import Declaration, Reply, read, read_declaration
from dcr_ds.judges.labels import UNPARSED, label_answers
from dcr_ds.models.batches import pad_left, pad_right
from dcr_ds.models.chat import encode_prompt
from dcr_ds.models.checkpoint_files import FILES, model_config, model_hash, weight_files
from dcr_ds.models.limits import check_ids, model_limits, padding_id
from dcr_ds.models.load import DTYPES, flash_attention_problem, resolve_attention
from dcr_ds.models.plain_text import TextEncoder
from dcr_ds.models.tokenizer import load_tokenizer, read_tokenizer
from dcr_ds.recipe import GuardJudge

_open_models: WeakValueDictionary[tuple, "GuardModel"] = WeakValueDictionary()


class GuardModel:
    """A guard and its replies so far. The tokenizer is loaded immediately, the weights when they are needed."""

    def __init__(self, folder: Path, declaration: Declaration, batch_size: int) -> None:
        self.folder = folder
        self.declaration = declaration
        self.batch_size = batch_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        assert declaration.format is not None  # read_declaration demands it
        self.format = declaration.format
        self.tokenizer = load_tokenizer(folder) if self.format == "chat" else read_tokenizer(folder)
        self.num_cut = self.num_left_out = 0
        self._replies: dict[Answer, Reply | None] = {}

    def replies(self, answers: Sequence[Answer]) -> Iterator[Reply | None]:
        """Yield the replies in order, batch by batch; None if the prompt alone is too long."""
        for start in range(0, len(answers), self.batch_size):
            batch = answers[start : start + self.batch_size]
            new = [answer for answer in dict.fromkeys(batch) if answer not in self._replies]
            rows = {answer: ids for answer in new if (ids := self.encode(answer)) is not None}
            self.num_left_out += len(new) - len(rows)
            self._replies.update(dict.fromkeys(new))
            if rows:
                self._replies.update(zip(rows, self._replies_to(list(rows.values())), strict=True))
            yield from (self._replies[answer] for answer in batch)

    def encode(self, answer: Answer) -> list[int] | None:
        """Token ids of the input with the response truncated to fit; None if no part of the response fits."""
        ids = self._render(answer.prompt, answer.completion)
        if len(ids) <= self._room:
            return ids
        self.num_cut += 1
        too_long = bisect_left(
            range(len(answer.completion)),
            True,
            key=lambda length: len(self._render(answer.prompt, answer.completion[:length])) > self._room,
        )
        return self._render(answer.prompt, answer.completion[: too_long - 1]) if too_long > 1 else None

    def _render(self, prompt: str, response: str) -> list[int]:
        form = self.format
        if form == "chat":
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            return encode_prompt(self.tokenizer, messages)
        texts = {"{prompt}": self._encoder.mask(prompt), "{response}": self._encoder.mask(response)}
        text = re.sub(r"\{prompt\}|\{response\}", lambda match: texts[match[0]], form)
        bos = self.tokenizer.bos_token
        ids = self._encoder.encode(text, add_special_tokens=not (bos and form.startswith(bos)))
        check_ids(ids, self.tokenizer)
        return ids

    @cached_property
    def _encoder(self) -> TextEncoder:
        """Encodes prompts and answers as text, whatever control tokens they name."""
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return TextEncoder(self.tokenizer, special | set(self.tokenizer.all_special_tokens))

    @cached_property
    def _room(self) -> int:
        """Maximum number of input tokens."""
        context = model_limits(self.folder).context
        limits = [self.declaration.max_input_tokens, self.tokenizer.model_max_length]
        return min(limits + ([context - self.declaration.max_new_tokens] if context else []))

    @cached_property
    def _model(self) -> PreTrainedModel:
        if self.declaration.output == "classifier":
            model = self._load(AutoModelForSequenceClassification)
            model.config.pad_token_id = padding_id(self.tokenizer)
            return model
        model_type = model_config(self.folder).get("model_type", "")
        attention, _ = resolve_attention("auto", model_type, self.dtype, flash_attention_problem(self.device))
        model = self._load(AutoModelForCausalLM, attn_implementation=attention)
        ends = model.generation_config.eos_token_id or self.tokenizer.eos_token_id
        model.generation_config = GenerationConfig(  # replaced, because missing fields are filled from the model's own
            do_sample=False,
            max_new_tokens=self.declaration.max_new_tokens,
            eos_token_id=ends,
            pad_token_id=padding_id(self.tokenizer),
        )
        return model

    def _load(
        self, kind: type[AutoModelForCausalLM | AutoModelForSequenceClassification], **options
    ) -> PreTrainedModel:
        try:
            loaded: Any = kind.from_pretrained(
                self.folder, dtype=DTYPES[self.dtype], output_loading_info=True, **options, trust_remote_code=False
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = first_line(error)[:200]
            raise UserError(f"{self.folder}: transformers cannot load it as {kind.__name__} ({reason})") from None
        model, info = loaded
        if missing := sorted(info["missing_keys"]):  # transformers fills them with random numbers
            raise UserError(f"{self.folder}: not a {kind.__name__}: the weights lack {missing[0]}")
        return model.eval().to(self.device)

    def _replies_to(self, rows: list[list[int]]) -> list[Reply]:
        if self.declaration.output == "classifier":
            return self._classify(rows)
        if self.declaration.output == "first_token":
            return self._first_tokens(rows)
        ids = self._generate(rows).sequences[:, max(map(len, rows)) :]
        return list(self.tokenizer.batch_decode(ids, skip_special_tokens=True))

    @torch.inference_mode()
    def _classify(self, rows: list[list[int]]) -> list[Reply]:
        ids, mask = pad_right(rows, padding_id(self.tokenizer), self.device)
        logits = self._model(input_ids=ids, attention_mask=mask).logits.float().tolist()  # [B, classes]
        names: dict[int, str] = self._model.config.id2label  # type: ignore[assignment]  # its keys are integers
        return [{names[index]: value for index, value in enumerate(row)} for row in logits]

    def _first_tokens(self, rows: list[list[int]]) -> list[Reply]:
        logits = self._generate(rows).logits[0].float()  # [B, vocabulary]
        options = first_tokens(self.tokenizer, self.declaration)
        return [{option: row[token].item() for option, token in options.items()} for row in logits]

    @torch.inference_mode()
    def _generate(self, rows: list[list[int]]):
        ids, mask = pad_left(rows, padding_id(self.tokenizer), self.device)
        return cast(GenerationMixin, self._model).generate(
            input_ids=ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True
        )


class ModelJudge:
    """One reading of a guard model."""

    def __init__(self, name: str, judges: Literal["refusal", "harm"], model: GuardModel) -> None:
        self.name = name
        self.judges = judges
        self._model = model
        self._reading = model.declaration.readings[judges]
        described = model.declaration.model_dump(exclude={"about", "source", "licence", "format_from", "readings"})
        template = str(model.tokenizer.chat_template)
        self.version = hash_of(
            [described, self._reading.model_dump(), template, model_hash(model.folder), model.dtype, judges, VERSION]
        )

    def label(self, answers: Sequence[Answer]) -> Iterator[tuple[int, Verdict]]:
        """Yield the verdicts with their indices; no answer is degenerate without running the model."""
        return label_answers(answers, self._label)

    def _label(self, answers: list[Answer]) -> Generator[tuple[int, Verdict], None, None]:
        model = self._model
        try:
            for index, reply in enumerate(model.replies(answers)):
                yield index, UNPARSED if reply is None else read(reply, self._reading)
        finally:
            if model.num_cut:
                counts = (
                    f"{model.num_cut} responses were too long and truncated, {model.num_left_out} of them not judged"
                )
                print(f"{self.name}: {counts}", file=sys.stderr, flush=True)


def load_guard_judge(declared: GuardJudge) -> ModelJudge:
    """Load the judge that a recipe declares. Two readings of one guard share the model.

    Raises:
        UserError: declaration, format, labels or model are missing or do not match.
    """
    declaration = read_declaration(declared)
    assert declaration.source is not None  # read_declaration demands it
    folder = _locate(declaration.source, declared)
    key = (folder, declaration.model_dump_json(), declared.batch_size)
    model = _open_models.setdefault(key, GuardModel(folder, declaration, declared.batch_size))
    if declaration.output == "classifier":
        _check_classes(model, declared)
    if declaration.output == "first_token":
        _check_first_tokens(model, declared)
    return ModelJudge(declared.name, declared.judges, model)


def _check_classes(model: GuardModel, declared: GuardJudge) -> None:
    config = AutoConfig.from_pretrained(model.folder, trust_remote_code=False)
    classes, labels = sorted(config.id2label.values()), model.declaration.readings[declared.judges].labels
    if config.problem_type == "multi_label_classification" or len(classes) < 2:
        raise UserError(
            f"judge {declared.name}: {model.folder}: its classes are not mutually exclusive; it cannot judge"
        )
    if sorted(labels) != classes:
        raise UserError(
            f"judge {declared.name}: {model.folder} has the classes {', '.join(classes)}; `labels` must map each "
            f"of them (it maps {', '.join(labels)})"
        )


def _check_first_tokens(model: GuardModel, declared: GuardJudge) -> None:
    tokens = first_tokens(model.tokenizer, model.declaration)
    if len(set(tokens.values())) < len(tokens):
        raise UserError(f"judge {declared.name}: {', '.join(tokens)} begin with the same token; use output: text")


def first_tokens(tokenizer: PreTrainedTokenizerBase, declaration: Declaration) -> dict[str, int]:
    """The first token of each possible reply of the guard."""
    words = {word for reading in declaration.readings.values() for word in reading.labels}
    return {word: tokenizer(word, add_special_tokens=False).input_ids[0] for word in sorted(words)}


def _locate(source: str, declared: GuardJudge) -> Path:
    """The folder of the guard's model, downloaded if necessary; safetensors only."""
    folder = expand_user(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            folder = Path(snapshot_download(source, revision=declared.revision, allow_patterns=FILES))
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = first_line(error)[:200]
            raise UserError(
                f"judge {declared.name}: {source} could not be downloaded from the hub ({reason}); check the name, "
                "the network, HF_TOKEN and whether access was granted, or set `source` to a local folder"
            ) from None
    weight_files(folder)  # raises if they are missing, or pickles
    return folder
